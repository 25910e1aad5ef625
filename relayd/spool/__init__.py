"""The promise: what was answered 250 is on stable storage until its last recipient is settled.

`queue` is what inbound and outbound talk to, `repair` what follows a failed commit, `memory` the budget of bodies.
`store` is the protocol an engine fulfils, `records` what is written. The embedded engine is `shard`: `journal` is its
file format, `writer` its blocking half, `ledger` what the records add up to, `lock` its ownership, `recovery` how files
become messages again. Must not know SMTP sessions, sites or schedules. docs/SPOOL.md shows the files.
"""
