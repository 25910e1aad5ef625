"""Queue ids carry their shard and nothing that a path or a terminal could trip over."""

import os

import pytest

from relayd.message import queue_id


@pytest.mark.parametrize("shard", [0, 1, 31, 32, queue_id.MAX_SHARDS - 1])
def test_the_shard_is_in_the_id(shard: int) -> None:
    identifier = queue_id.compose(shard, os.urandom(10))
    assert queue_id.is_valid(identifier)
    assert queue_id.shard_of(identifier) == shard
    assert identifier.isascii()
    assert identifier.isalnum()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "000",
        "../../etc/passwd",
        "000" + "a" * 19,
        "000" + "a" * 21,
        "000" + "A" * 20,
        "000" + "a" * 20 + "\n",
        "٠٠٠" + "a" * 20,
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    assert not queue_id.is_valid(text)
