"""Mail leaving: routing, the dispatcher, delivery, the pool, connections (aiosmtplib), what replies mean, bounces.

Only `dispatcher` talks to the scheduler, the queue and the log of attempts; the others know one attempt, one session
or one reply. Knows nothing of inbound: both halves meet at the spool.
"""
