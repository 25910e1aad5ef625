"""Outbound against a scripted peer on real sockets, on both event loops."""
