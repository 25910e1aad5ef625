"""The control socket: how commands talk to a running relayd. Knows a `Backend`, never the service behind it."""
