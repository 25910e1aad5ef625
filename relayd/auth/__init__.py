"""Who may submit: mechanisms (RFC 4954), the users file, the check of a password, the limit on failures.

Must not know of sessions, replies or the queue: it answers with values, inbound chooses the words.
"""
