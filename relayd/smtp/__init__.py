"""Protocol pieces without I/O, used by both halves: addresses, parameters, replies, framing.

Knows nothing of sockets, queues or configuration. Bytes and values in, values out.
"""
