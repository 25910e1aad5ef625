"""The DNS as delivery sees it: which hosts take a domain's mail, and at which addresses.

Owns the one aiodns resolver of a worker and the cache above it. Knows names and outcomes; must not know routes, sites,
ports, private networks or attempts. Outbound asks it.
"""
