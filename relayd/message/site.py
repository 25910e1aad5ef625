"""A site: the hosts that take a domain's mail. Domains with equal sites share connections and limits."""

import msgspec


class Host(msgspec.Struct, frozen=True, array_like=True, gc=False, cache_hash=True):
    """A name (or address) and a port to connect to."""

    name: str
    port: int

    def __str__(self) -> str:
        return f"[{self.name}]:{self.port}" if ":" in self.name else f"{self.name}:{self.port}"


class Site(msgspec.Struct, frozen=True, array_like=True, gc=False, cache_hash=True):
    """Hosts grouped by preference, best first; within a group sorted, so that equal sets are equal keys.

    trusted: the hosts were configured (a route), so private addresses are allowed.
    """

    groups: tuple[tuple[Host, ...], ...]
    trusted: bool = False

    def __str__(self) -> str:
        return ", ".join("|".join(map(str, group)) for group in self.groups)
