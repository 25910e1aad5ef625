import pytest

from relayd.outbound.recent import Recent


@pytest.fixture
def now():
    return [100.0]


@pytest.fixture
def recent(now):
    return Recent(60, 3, lambda: now[0])


def test_remembered_for_its_time(recent, now):
    assert "a" not in recent
    recent.add("a")
    now[0] += 59
    assert "a" in recent
    now[0] += 1
    assert "a" not in recent
    assert len(recent) == 0


def test_added_again_it_begins_anew(recent, now):
    recent.add("a")
    now[0] += 59
    recent.add("a")
    now[0] += 59
    assert "a" in recent


def test_the_oldest_go_when_there_are_too_many(recent):
    for key in "abcabdx":
        recent.add(key)
    assert [key for key in "abcdx" if key in recent] == ["b", "d", "x"]
    assert len(recent) == 3


def test_cleared(recent):
    recent.add("a")
    recent.clear()
    assert "a" not in recent
