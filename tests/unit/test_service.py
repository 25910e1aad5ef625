"""Where shards are: spread over directories, and left where they are."""

from __future__ import annotations

import pytest

from relayd import service
from relayd.spool.store import StoreError


def made(*directories):
    for directory in directories:
        (directory / "journal").mkdir(parents=True)


def places(directories, shards):
    return {store.shard: store._directory for store in service._stores(directories, shards)}


def test_new_shards_are_spread_over_the_directories_in_turn(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    assert places([a, b], 3) == {0: a / "shard-00", 1: b / "shard-01", 2: a / "shard-02"}


def test_a_shard_stays_where_it_is(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    made(a / "shard-01", b / "shard-02")
    assert places([a, b], 2) == {0: a / "shard-00", 1: a / "shard-01", 2: b / "shard-02"}


def test_shards_beyond_the_number_are_opened_to_be_drained(tmp_path):
    made(tmp_path / "shard-00", tmp_path / "shard-07")
    assert list(places([tmp_path], 1)) == [0, 7]


def test_the_same_shard_in_two_directories_is_refused(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    made(a / "shard-00", b / "shard-00")
    with pytest.raises(StoreError, match="shard 0 is both in"):
        service._stores([a, b], 1)
