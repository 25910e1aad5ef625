"""What may run now: due times, bindings of domains to sites, connection limits, fairness, the census, backoff.

Pure: the time and the dice are arguments, nothing here waits, logs or does I/O. Knows envelopes and sites, not replies,
bodies or sockets. Only outbound's dispatcher talks to it. docs/SCHEDULER.md has the formulas and the costs.
"""
