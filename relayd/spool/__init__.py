"""The promise: what was answered 250 is on stable storage until its last recipient is settled.

`store` is the protocol an engine fulfils, `records` what is written, `journal` the file format, `recovery` how files
become messages again, `shard` the embedded engine, `queue` what inbound and outbound talk to.
"""
