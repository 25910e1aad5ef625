"""Where secrets come from: files and commands, hostile ones too, within bounds and without telling."""

import asyncio
import base64
import json
import os
import sys
import threading
import time
import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.outbound import credentials
from relayd.outbound.credentials import (
    DROP_PAUSE,
    EARLY,
    LIFE,
    MAX_LIFE,
    MAX_OCTETS,
    Credentials,
    CredentialsError,
    Secret,
)
from relayd.outbound.login import Mechanism, choose, masked
from tests.unit.outbound.settings import settings


def python(script, *arguments):
    return (sys.executable, "-c", "import os, sys, time; " + script, *map(str, arguments))


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def counted(tmp_path):
    """A command that notes that it ran: `counted(text)`; `counted.times()`."""

    def made(output="token-%d", before="pass"):
        script = f"f = open(sys.argv[1], 'ab'); f.write(b'x'); f.flush(); {before}; n = f.tell(); print(sys.argv[2].replace('%d', str(n)))"
        return python(script, tmp_path / "ran", output)

    made.times = lambda: (tmp_path / "ran").stat().st_size if (tmp_path / "ran").exists() else 0
    return made


async def text(kept):
    return (await kept.secret()).text.get_secret_value()


def token(seconds=None, value="abc"):
    return json.dumps(
        {"token_type": "Bearer", "access_token": value} | ({} if seconds is None else {"expires_in": seconds})
    )


# --- files -------------------------------------------------------------------------------------------------------------


async def test_a_password():
    assert await Credentials(settings("it is me")).secret() == Secret(settings("it is me").password)


@pytest.mark.parametrize("content", [b"secret", b"secret\n", b"secret\r\n", b"secret\nsecond line \xff\n"])
async def test_the_first_line_of_a_file_is_the_password_and_it_is_read_each_time(tmp_path, content):
    file = tmp_path / "password"
    kept = Credentials(settings(password_file=file))
    file.write_bytes(content)
    assert await text(kept) == "secret"
    file.write_text("changed")
    assert await text(kept) == "changed"


@pytest.mark.parametrize("content", ["abc", " abc \n", token(), token(3600)])
async def test_a_token_file(tmp_path, content):
    file = tmp_path / "token"
    kept = Credentials(settings(token_file=file))
    file.write_text(content)
    secret = await kept.secret()
    assert (secret.text.get_secret_value(), secret.token) == ("abc", True)
    file.write_text("next")
    assert await text(kept) == "next"


BAD = [
    b"",
    b"\nsecond",
    b"p\xc3\xa4ss",
    b"p\0ss",
    b"p\x01ss",
    b"p\rss",
    b"p\tss",
    b"\x7f",
    b"\xff",
    b"p" * (MAX_OCTETS + 1),
]


@pytest.mark.parametrize("content", BAD)
async def test_what_no_mechanism_carries_is_an_error_that_tells_nothing(tmp_path, content):
    file = tmp_path / "password"
    file.write_bytes(content)
    with pytest.raises(CredentialsError, match="^password_file: ") as raised:
        await Credentials(settings(password_file=file)).secret()
    assert "p" * 9 not in str(raised.value)
    assert "ss" not in str(raised.value).removeprefix("password_file")


@pytest.mark.parametrize("password", ["", "a\r\nQUIT", "a\nb", "a\0b", "ä"])
async def test_nor_does_one_in_the_configuration(password):
    with pytest.raises(CredentialsError, match="^password: "):
        await Credentials(settings(password)).secret()


@pytest.mark.parametrize("name", ["", "a\r\nb", "a\0b", "a\x01b", "ä"])
def test_nor_a_user_name(name):
    with pytest.raises(CredentialsError, match="^username: "):
        Credentials(settings("x", username=name))


async def test_files_that_cannot_be_read(tmp_path):
    for file, why in ((tmp_path / "none", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(CredentialsError, match=why):
            await Credentials(settings(token_file=file)).secret()


@pytest.mark.parametrize("written_to", [False, True])
async def test_a_pipe_into_which_nobody_writes_is_empty(tmp_path, written_to):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = os.open(pipe, os.O_RDWR) if written_to else None
    with pytest.raises(CredentialsError, match="empty"):
        await Credentials(settings(password_file=pipe)).secret()
    if writer is not None:
        os.close(writer)


async def test_a_file_system_that_hangs_holds_no_other_credentials(tmp_path, monkeypatch):
    """Sessions that wait for one file, more of them than there are threads to read."""
    monkeypatch.setattr(credentials, "FETCH_SECONDS", 0.2)
    hanging, fine, there = tmp_path / "hanging", tmp_path / "fine", threading.Event()
    read = credentials._read
    monkeypatch.setattr(credentials, "_read", lambda file: there.wait() and b"late" if file == hanging else read(file))
    fine.write_text("geheim")
    kept = Credentials(settings(password_file=hanging))
    tried = await asyncio.gather(*(kept.secret() for _ in range(100)), return_exceptions=True)
    assert {str(error) for error in tried} == {f"password_file: {hanging} cannot be read within 0.2 s"}
    monkeypatch.setattr(credentials, "FETCH_SECONDS", 10)
    try:
        assert await text(Credentials(settings(password_file=fine))) == "geheim"
    finally:
        there.set()
    assert await text(kept) == "late"


async def test_nothing_configured():
    with pytest.raises(CredentialsError):
        await Credentials(settings()).secret()


# --- commands ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "life"),
    [
        ("abc", LIFE),
        (token(), LIFE),
        (token(3600), 3600 - EARLY),
        (token("3600"), 3600 - EARLY),
        (token(1e300), MAX_LIFE),
    ],
)
async def test_a_token_is_kept_until_shortly_before_its_end(counted, clock, output, life):
    kept = Credentials(settings(token_command=counted(output)), clock)
    for now, times in ((0, 1), (life - 1, 1), (life, 2), (life + 1, 2)):
        clock.now = now
        secret = await kept.secret()
        assert (secret.text.get_secret_value(), secret.token, counted.times()) == ("abc", True, times)


@pytest.mark.parametrize("seconds", [EARLY, 1, 0, -5, "nan", "-inf"])
async def test_a_token_that_is_over_at_once_is_used_at_once_and_not_kept(counted, clock, seconds):
    kept = Credentials(settings(token_command=counted(token(seconds))), clock)
    assert [await text(kept), await text(kept)] == ["abc", "abc"]
    assert counted.times() == 2


async def test_one_command_for_all_who_wait(counted):
    kept = Credentials(settings(token_command=counted(before="time.sleep(0.2)")))
    waiting = [asyncio.create_task(text(kept)) for _ in range(20)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    assert set(await asyncio.gather(*waiting[1:])) == {"token-1"}
    assert counted.times() == 1
    assert waiting[0].cancelled()


async def test_a_refused_token_is_dropped_once_a_minute(counted, clock):
    kept = Credentials(settings(token_command=counted()), clock)
    first = await kept.secret()
    kept.drop(first)
    second = await kept.secret()
    assert second != first
    for now, another in ((0, False), (DROP_PAUSE - 1, False), (DROP_PAUSE, True)):
        clock.now = now
        kept.drop(first)  # by a session that had it before
        kept.drop(second)
        assert (await kept.secret() != second) is another


async def test_forgotten(counted, clock):
    kept = Credentials(settings(token_command=counted()), clock)
    assert [await text(kept), kept.forget(), await text(kept)] == ["token-1", None, "token-2"]


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("print('geheim'); sys.exit(3)", "ended with status 3"),
        ("print('geheim', flush=True); os.kill(os.getpid(), 9)", "ended with status -9"),
        ("print('geheim' * 20_000)", "more than 65536 octets"),
        ("print('geheim')\nwhile True: print('geheim' * 20_000)", "more than 65536 octets"),
        ("print('geheim\\0')", "printable ASCII"),
        ("print('\\u00e4geheim')", "printable ASCII"),
        ("pass", "empty"),
        ('print(\'{"error": "geheim"}\')', "without an access_token"),
        ('print(\'{"access_token": 1, "geheim": 2}\')', "without an access_token"),
        ('print(\'{"access_token": "geheim\')', "without an access_token"),
        ('print(\'{"access_token": "gehe\\\\nim"}\')', "printable ASCII"),
        ("print('{\"a\":' + '[' * 50_000 + ']' * 50_000 + '}')", "more than"),
        ("print('{\"a\":' + '[' * 30_000 + ']' * 30_000 + '}')", "without an access_token"),
        ("sys.stderr.write('geheim' * 100_000); sys.exit(1)", "status 1"),
        ("sys.exit(len(sys.stdin.read()) or 7)", "status 7"),
    ],
)
async def test_commands_that_fail(script, why):
    kept = Credentials(settings(token_command=(sys.executable, "-c", "import os, sys\n" + script)))
    for _ in range(2):
        with pytest.raises(CredentialsError, match=why) as raised:
            await kept.secret()
        assert "geheim" not in "".join(traceback.format_exception(raised.value))


@pytest.mark.parametrize("command", [("/nonexistent/geheim",), ("/etc",), ("a\0b",)])
async def test_commands_that_cannot_be_started(command):
    with pytest.raises(CredentialsError, match="cannot be started"):
        await Credentials(settings(token_command=command)).secret()


async def test_no_shell_sees_the_command(tmp_path):
    kept = Credentials(settings(token_command=("echo", "$HOME;`id`|*")))
    assert await text(kept) == "$HOME;`id`|*"


def running(pid):
    """Whether a process is there, and not only what is left of it."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def gone(*pids):
    async with asyncio.timeout(10):
        while any(map(running, pids)):
            await asyncio.sleep(0.01)


FAMILY = (
    "child = os.fork()\n"
    "if child: open(sys.argv[1] + '.new', 'w').write(f'{os.getpid()} {child}'); os.rename(sys.argv[1] + '.new', sys.argv[1])\n"
    "time.sleep(600)"
)


async def family(file):
    """The processes of FAMILY, as soon as they run."""
    async with asyncio.timeout(10):
        while not file.exists():
            await asyncio.sleep(0.01)
    return [int(pid) for pid in file.read_text().split()]


@pytest.fixture
def sleeping(tmp_path):
    return (sys.executable, "-c", "import os, sys, time\n" + FAMILY, str(tmp_path / "pids"))


async def test_a_command_without_end_is_killed_with_its_children(tmp_path, sleeping, monkeypatch):
    monkeypatch.setattr(credentials, "FETCH_SECONDS", 1.0)
    started = time.monotonic()
    with pytest.raises(CredentialsError, match="no end within 1 s"):
        await Credentials(settings(token_command=sleeping)).secret()
    assert time.monotonic() - started < 10
    await gone(*await family(tmp_path / "pids"))


async def test_closed_in_the_midst_of_a_command(tmp_path, sleeping):
    kept = Credentials(settings(token_command=sleeping))
    waiting = asyncio.create_task(kept.secret())
    pids = await family(tmp_path / "pids")
    await kept.close()
    assert waiting.cancelled() or isinstance(
        (await asyncio.gather(waiting, return_exceptions=True))[0], asyncio.CancelledError
    )
    await gone(*pids)
    await kept.close()


async def test_nobody_waits_any_more_when_it_fails():
    kept = Credentials(settings(token_command=python("time.sleep(0.1); sys.exit(1)")))
    waiting = asyncio.create_task(kept.secret())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(CredentialsError):
        await kept.secret()


# --- not told ----------------------------------------------------------------------------------------------------------


def test_reprs_hide_it():
    secret = Secret(settings("geheim").password, token=True)
    kept = Credentials(settings("geheim"))
    assert "geheim" not in f"{secret!r} {secret} {kept!r} {settings('geheim')!r} {list(secret.__rich_repr__())!r}"


@given(st.text(), st.text(min_size=1), st.text())
def test_no_text_is_kept_with_a_secret_in_it(before, secret, after):
    told = masked(before + secret + after, [secret, base64.b64encode(secret.encode()).decode()])
    assert len(told) == len(before + secret + after)
    if set(secret) != {"*"}:
        assert secret not in told


@given(st.text(alphabet="abcde ", max_size=60))
def test_other_text_is_kept(text):
    assert masked(text, ["ABC123abc", "xyz", "12345678901234567890"]) == text


@pytest.mark.parametrize(
    ("offered", "wanted", "is_token", "chosen"),
    [
        ("PLAIN LOGIN XOAUTH2", None, False, Mechanism.PLAIN),
        ("LOGIN PLAIN", None, False, Mechanism.PLAIN),
        ("login cram-md5", None, False, Mechanism.LOGIN),
        ("PLAIN LOGIN", "login", False, Mechanism.LOGIN),
        ("PLAIN", "login", False, None),
        ("PLAIN LOGIN", None, True, None),
        ("PLAIN xoauth2", None, True, Mechanism.XOAUTH2),
        ("XOAUTH2", None, False, None),
        ("XOAUTH2", "xoauth2", False, None),
        ("PLAIN XOAUTH2", "plain", True, None),
        ("", None, False, None),
        ("PLAIN-CLIENTTOKEN", None, False, None),
    ],
)
def test_the_mechanism(offered, wanted, is_token, chosen):
    assert choose(offered, wanted, Secret(settings("x").password, is_token)) is chosen
