import threading

import pytest

from relayd.auth import users
from relayd.auth.users import HASHER, UsersError, UsersFile

HASH = "$argon2id$v=19$m=19456,t=2,p=1$" + "A" * 22 + "$" + "A" * 43


@pytest.fixture
def path(tmp_path):
    return tmp_path / "users"


@pytest.fixture
def alerts(monkeypatch):
    seen = []
    monkeypatch.setattr(users.log, "alert", lambda what, **facts: seen.append(facts["reason"]))
    return seen


def test_add_passwd_list_remove(path):
    users.add(path, "bob", "builder")
    users.add(path, "alice", "wonderland")
    assert users.names(path) == ["alice", "bob"]
    assert path.stat().st_mode & 0o777 == 0o600
    assert HASHER.verify(users.load(path)["bob"], "builder")
    assert "m=19456,t=2,p=1" in users.load(path)["bob"]
    users.passwd(path, "bob", "other")
    assert HASHER.verify(users.load(path)["bob"], "other")
    users.remove(path, "bob")
    assert users.names(path) == ["alice"]


def test_refused_changes(path):
    users.add(path, "bob", "builder")
    before = path.read_bytes()
    for change in (
        lambda: users.add(path, "bob", "x"),
        lambda: users.passwd(path, "carol", "x"),
        lambda: users.remove(path, "carol"),
        lambda: users.add(path, "carol", ""),
        lambda: users.add(path, "carol", "a\0b"),
    ):
        with pytest.raises(UsersError):
            change()
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["", "a:b", "a b", "a\tb", "a\nb", "a\x7f", "x" * 256, "\u200b", "a\u00a0b"])
def test_names_that_are_none(path, name):
    with pytest.raises(UsersError):
        users.add(path, name, "x")
    assert not path.exists()


def test_names_are_nfc(path):
    users.add(path, "mu\u0308ller", "x")
    assert users.names(path) == ["m\u00fcller"]
    with pytest.raises(UsersError):
        users.add(path, "m\u00fcller", "x")


def test_changes_exclude_each_other(path, monkeypatch):
    monkeypatch.setattr(users.HASHER.__class__, "hash", lambda self, password: HASH)
    threads = [threading.Thread(target=users.add, args=(path, f"u{n}", "x")) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(users.names(path)) == 20


def test_missing_is_empty_and_then_followed(path, alerts):
    file = UsersFile(path)
    assert file.lookup("alice") is None
    path.write_text(f"alice:{HASH}\n")
    assert file.lookup("alice") == HASH
    generation = file.generation
    path.unlink()
    assert file.lookup("alice") is None
    assert file.generation > generation
    assert not alerts


@pytest.mark.parametrize(
    "content",
    [
        "",
        f"bob:{HASH}",
        f"bob:{HASH}\nalice\n",
        f"bob:{HASH}\nalice:{HASH}x$\n",
        f"bob:{HASH}\nbob:{HASH}\n",
        f"bob:{HASH}\n\n",
        "bob:secret\n",
        "bob:$argon2i$v=19$m=19456,t=2,p=1$AAAAAAAAAAA$AAAAAAAAAA\n",
        f" bob:{HASH}\n",
        f"bob:{HASH}\r\n",
        "\udcff",
    ],
)
def test_what_is_not_whole_leaves_the_old_one_in_force(path, alerts, content):
    path.write_text(f"alice:{HASH}\n")
    file = UsersFile(path)
    generation = file.generation
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    for _ in range(3):
        assert file.lookup("alice") == HASH
        assert file.lookup("bob") is None
    assert len(alerts) == 1, "said once"
    assert file.generation == generation
    path.write_text(f"bob:{HASH}\n")
    assert file.lookup("bob") == HASH
    assert file.lookup("alice") is None


def test_an_unreadable_file_at_start_is_empty_and_an_alert(path, alerts):
    path.mkdir()
    assert UsersFile(path).lookup("alice") is None
    assert len(alerts) == 1
