"""The budget of message bodies held in memory: `limits.memory`, shared by everything in the process."""


class Memory:
    """Octets of bodies. Invariant: `used` is what was taken or forced and not yet given back. O(1)."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    def take(self, octets: int) -> bool:
        """Count a body in, unless that would exceed the limit: then nothing is taken and False returned."""
        if self.used + octets > self.limit:
            return False
        self.used += octets
        return True

    def force(self, octets: int) -> None:
        """Count in what cannot be refused: recovered mail and notifications."""
        self.used += octets

    def give(self, octets: int) -> None:
        """Count a body out."""
        self.used -= octets
