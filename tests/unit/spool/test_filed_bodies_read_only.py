"""Bodies in files of their own, for whoever only looks at a spool: given out whole, or told of as damaged."""

from __future__ import annotations

import pytest

from relayd.spool.audit import audit
from relayd.spool.bodyfile import path_of
from relayd.spool.journal import RecordError
from relayd.spool.memory import Memory
from relayd.spool.records import Accepted
from relayd.spool.shard import JournalStore
from relayd.spool.viewer import MissingError, Viewer
from tests.fakes.mail import accepted, name

BODY = b"Subject: large\r\n\r\n" + b"x" * 70 * 1024 + b"\r\n"


@pytest.fixture(params=["in the journal", "at rest"])
async def spool(request, tmp_path):
    """A spool with message 1, its body in a file."""
    store = JournalStore(tmp_path / "shard-00", 0)
    await store.open()
    writing = store.bodies.write(name(1), Memory(1 << 20))
    writing.write(BODY)
    await store.commit([Accepted(accepted(1).envelope, await writing.finish())])
    if request.param == "at rest":
        await store.seal()
        assert store.rest.count == 1
    await store.close()
    return tmp_path


def flaws(spool):
    told = []
    result = audit(spool, tell=told.append)
    assert result.flaws == len(told)
    return result.files, [flaw.what for flaw in told]


def test_a_sound_body_is_given_out_in_parts(spool):
    with Viewer(spool) as viewer:
        (message,) = viewer.messages()
        assert b"".join(viewer.body(message)) == BODY
    assert flaws(spool) == (1, [])


def test_a_damaged_body_is_told_of_and_not_given_out(spool):
    path = path_of(spool / "shard-00/bodies", name(1))
    octets = bytearray(path.read_bytes())
    octets[1000] ^= 1
    path.write_bytes(octets)
    with Viewer(spool) as viewer:
        (message,) = viewer.messages()
        with pytest.raises(RecordError, match="checksum"):
            list(viewer.body(message))
    files, (what,) = flaws(spool)
    assert (files, "checksum" in what) == (1, True)


def test_a_missing_body_is_told_of(spool):
    path_of(spool / "shard-00/bodies", name(1)).unlink()
    with Viewer(spool) as viewer:
        (message,) = viewer.messages()
        with pytest.raises((MissingError, RecordError)):
            list(viewer.body(message))
    assert len(flaws(spool)[1]) == 1


async def test_a_start_removes_no_body_of_a_message_at_rest(spool):
    store = JournalStore(spool / "shard-00", 0)
    await store.open()
    assert path_of(spool / "shard-00/bodies", name(1)).exists()
    await store.close()
    assert flaws(spool) == (1, [])
