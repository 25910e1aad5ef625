"""Plays the transcripts of this folder against inbound; README.md tells how one is written."""

import re
import tomllib
from pathlib import Path

import pytest

from tests.fakes.inbound import HOSTNAME, PATIENCE, Client, Inbound

TRANSCRIPTS = sorted(Path(__file__).parent.glob("*.smtp"))

_LINE = re.compile(r"(?P<who>[CSQPB])(?:\*(?P<times>\d+))?(?P<mode>[:>!]) ?(?P<text>.*)")
_ESCAPE = re.compile(rb"\\(?:x([0-9a-fA-F]{2})|([rn0\\]))")
_OCTETS = {b"r": b"\r", b"n": b"\n", b"0": b"\0", b"\\": b"\\"}


class Player:
    """One transcript against one server."""

    def __init__(self, inbound: Inbound, client: Client) -> None:
        self.inbound = inbound
        self.client = client
        self.unsent = b""
        self.seen = 0

    async def play(self, line: str) -> None:
        if not line.startswith("C"):
            await self.client.send(self.unsent)
            self.unsent = b""
        if line == "-- tls":
            await self.client.writer.start_tls(self.client._context, server_hostname=HOSTNAME)
        elif line == "-- closed":
            assert await self.client.line() == ""
        else:
            match = _LINE.fullmatch(line)
            assert match, f"not a line of a dialog: {line!r}"
            for _ in range(int(match["times"] or 1)):
                await getattr(self, "play_" + match["who"])(match["text"], match["mode"])

    async def play_C(self, text: str, mode: str) -> None:
        self.unsent += octets(text) + (b"\r\n" if mode == ":" else b"")

    async def play_S(self, text: str, mode: str) -> None:
        said = await self.client.line()
        assert pattern(text).fullmatch(said), f"expected {text!r}, the server said {said!r}"

    async def play_Q(self, text: str, mode: str) -> None:
        messages = self.inbound.messages
        if text == "none":
            assert len(messages) == self.seen
            return
        envelope = messages[self.seen].envelope
        self.seen += 1
        recipients = " ".join(f"<{recipient}>" for recipient in envelope.recipients)
        assert f"<{envelope.sender}> -> {recipients}" == text

    async def play_P(self, text: str, mode: str) -> None:
        assert str(self.inbound.messages[self.seen - 1].envelope.priority) == text

    async def play_B(self, text: str, mode: str) -> None:
        lines = self.inbound.messages[self.seen - 1].body.decode("latin-1").split("\r\n")
        found = any(pattern(text).fullmatch(line) for line in lines)
        assert found is (mode == ":"), f"{text!r} in {lines!r}"


def octets(text: str) -> bytes:
    return _ESCAPE.sub(lambda match: bytes.fromhex(match[1].decode()) if match[1] else _OCTETS[match[2]], text.encode())


def pattern(text: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, text.split("*"))), re.DOTALL)


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
async def test_dialog(path, tmp_path, certificate):
    head, _, dialog = path.read_text(encoding="utf-8").partition("---\n")
    settings = tomllib.loads(head)
    kind = settings.pop("kind", "relay")
    bare_lf = settings.pop("bare_lf", "reject")
    async with Inbound(tmp_path, certificate, settings=settings, bare_lf=bare_lf) as inbound:
        player = Player(inbound, await inbound.dial(kind))
        for number, line in enumerate(dialog.splitlines(), start=head.count("\n") + 2):
            if line and not line.startswith("#"):
                try:
                    await player.play(line)
                except (AssertionError, IndexError, TimeoutError) as error:
                    raise AssertionError(f"{path.name}:{number}: {line!r}: {error!r}") from error


def test_there_are_transcripts():
    assert len(TRANSCRIPTS) > 20
    assert PATIENCE
