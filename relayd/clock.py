"""The two clocks, read in one place.

Wall time is what is stored (ages, due times survive a restart); monotonic time is what is waited for (a clock that is
set must not fire every timer at once). Rooms that decide take `now` as an argument; only rooms that act read a clock.
"""

import time

wall = time.time
"""Seconds since the epoch; may jump."""

monotonic = time.monotonic
"""Seconds since an arbitrary start; never goes back. The event loop's own clock."""
