"""What every test may use: waiting on a condition with a deadline, never on time alone."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest

T = TypeVar("T")

Eventually = Callable[..., Awaitable[object]]


@pytest.fixture
def eventually() -> Eventually:
    """`await eventually(condition, seconds=10)`: the condition's first true value, or a failed test at the deadline."""

    async def wait(condition: Callable[[], T], seconds: float = 10.0) -> T:
        deadline = time.monotonic() + seconds
        while not (value := condition()):
            assert time.monotonic() < deadline, f"not within {seconds} s: {condition}"
            await asyncio.sleep(0.005)
        return value

    return wait
