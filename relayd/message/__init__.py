"""The nouns both halves share: envelope, queue id, outcome, trace header, delivery status notification.

Pure: no I/O, no clock, no randomness of its own.
"""
