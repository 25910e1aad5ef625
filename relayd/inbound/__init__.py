"""Mail arriving: listeners, sessions, what is taken and on which terms.

Hands complete messages to the queue and answers 250 when they are durable. Knows nothing of outbound, of scheduling or
of files.
"""
