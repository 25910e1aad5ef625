"""Lines and dots of message data (RFC 5321 §4.5.2, §2.3.8): only CRLF ends a line, only CRLF.CRLF ends a message.

Searches over whole buffers, never line by line: a message in one piece, or a large one in parts cut anywhere
(`Unstuffing`, `Stuffing`, `Strays`), which give what the whole would. A body is bytes that end in CRLF (or are empty).
stringzilla searches 16 to 64 octets at a time, CPython one: that was a tenth of the relay's work for a message of 5 KB.
"""

from __future__ import annotations

import re

import stringzilla

END = b"\r\n.\r\n"
_DOT = b"\r\n."
_BARE_LF = re.compile(rb"(?<!\r)\n")
_FAULTS = ("", "bare LF", "bare CR", "NUL")
"""What `stray` finds, the worst last."""


class DataReader:
    """What follows 354: feed chunks until that is True; `rest` is then what came behind the end.

    The message is `body`. If more than `whole` octets came without the end, `large` is set, and the message is what
    `take` gives out after each chunk, to whom it may be too large. Otherwise `too_large` means: above `limit`. While
    it is set, here or by the caller, only the end is looked for. `received` counts all.
    """

    def __init__(self, limit: int, whole: int | None = None) -> None:
        self._limit = limit
        # Stuffing may double every octet of a hostile body; the exact size is judged at the end.
        most = limit * 2 + 16
        self._passes_on = whole is not None and whole <= most
        self._bound = whole if whole is not None and self._passes_on else most
        # The end-of-data dot may stand on the first line: the CRLF of the DATA command counts (RFC 5321 §4.1.1.4).
        self._buffer = bytearray(b"\r\n")
        self._taken = False
        self._dotted = False
        """Whether a line that is not the end begins with a dot."""
        self.received = 0
        self.too_large = False
        self.large = False
        self.ended = False
        self.body: bytes | None = None
        self.rest = b""

    def feed(self, data: bytes) -> bool:
        """Take a chunk; True once the end has been seen. O(len(data))."""
        searched = max(0, len(self._buffer) - len(END) + 1)
        self._buffer += data
        self.received += len(data)
        end = self._find_end(searched)
        if end >= 0:
            self._end(end)
            return True
        if self.too_large or len(self._buffer) > self._bound:
            self._beyond()
        return False

    def _find_end(self, start: int) -> int:
        """Nearly always the first line that begins with a dot is the end; only behind another one is it looked for."""
        if not self._dotted:
            found: int = stringzilla.find(self._buffer, _DOT, start)
            if found < 0 or self._buffer.startswith(END, found):
                return found
            if len(self._buffer) < found + len(END):
                return -1  # it may become the end
            self._dotted, start = True, found
        end: int = stringzilla.find(self._buffer, END, start)
        return end

    def take(self) -> bytes:
        """What has come of a large message and cannot belong to its end, still stuffed."""
        cut = len(self._buffer) if self.ended else len(self._buffer) - len(END) + 1
        start = 0 if self._taken else 2
        if cut <= start:
            return b""
        part = bytes(self._buffer[start:cut])
        del self._buffer[:cut]
        self._taken = True
        return part

    def _end(self, end: int) -> None:
        self.ended = True
        self.rest = bytes(self._buffer[end + len(END) :])
        self.received -= len(self.rest)
        if self.large:
            del self._buffer[end + 2 :]
            return
        if self.too_large:
            self.body = b""
        else:
            text = bytes(memoryview(self._buffer)[2 : end + 2])
            self.body = unstuffed(text) if self._dotted else text
        if len(self.body) > self._limit:
            self.too_large = True
            self.body = b""
        self._buffer.clear()

    def _beyond(self) -> None:
        if not self.large and not self.too_large:
            self.large = self._passes_on
            self.too_large = not self._passes_on
        if self.too_large:
            del self._buffer[: 1 - len(END)]


class Unstuffing:
    """A large message on its way through: the text without added dots, its stray octets noticed or made CRLF.

    octets: of the text so far, before bare LFs became CRLF. fault: as of `stray`, of the text so far; a bare LF is none
    with `normalize`. O(octets); keeps two of them.
    """

    def __init__(self, *, normalize: bool) -> None:
        self.octets = 0
        self.fault = ""
        self._normalize = normalize
        self._strays = Strays()
        self._raw = b"\r\n"
        self._last = b""

    def feed(self, raw: bytes) -> bytes:
        """The text of the next part."""
        if not raw:
            return b""
        # What was before decides whether the first octets are a line's dot; it is never part of an added dot itself.
        text = (self._raw + raw).replace(_DOT, b"\r\n")[len(self._raw) :]
        self._raw = raw[-2:] if len(raw) > 1 else (self._raw + raw)[-2:]
        self.octets += len(text)
        self.fault = self._strays.feed(text)
        if self._normalize and self.fault == "bare LF":
            self.fault = ""
            text = self._with_crlf(text)
        self._last = text[-1:] or self._last
        return text

    def _with_crlf(self, text: bytes) -> bytes:
        if self._last == b"\r" and text.startswith(b"\n"):
            return b"\n" + with_crlf(text[1:])
        return with_crlf(text)


class Stuffing:
    """The reverse: the parts of a body as they go out, with every line-initial dot doubled."""

    def __init__(self) -> None:
        self._before = b"\r\n"

    def feed(self, text: bytes) -> bytes:
        """The next part, stuffed. O(octets), keeps two of them."""
        wire = (self._before + text).replace(_DOT, b"\r\n..")[len(self._before) :]
        self._before = (self._before + text[-2:])[-2:]
        return wire


class Strays:
    """What RFC 5321 §2.3.8 forbids, looked for in the parts of a body that ends in CRLF."""

    def __init__(self) -> None:
        self._cr = False
        self._fault = ""

    def feed(self, text: bytes) -> str:
        """As `stray`, of all parts so far; a CR at their end waits for what follows it."""
        if self._cr:
            text = b"\r" + text
        self._cr = text.endswith(b"\r")
        found = stray(text[:-1] if self._cr else text)
        self._fault = max(self._fault, found, key=_FAULTS.index)
        return self._fault


def unstuffed(data: bytes) -> bytes:
    """The body of stuffed lines: the dots that stuffing added are gone."""
    return data.removeprefix(b".").replace(_DOT, b"\r\n")


def stuffed(body: bytes) -> bytes:
    """The body with every line-initial dot doubled, ready for `.` CRLF to follow."""
    if body.startswith(b"."):
        body = b"." + body
    return body if stringzilla.find(body, _DOT) < 0 else body.replace(_DOT, b"\r\n..")


def stray(body: bytes) -> str:
    """What stands in the body that RFC 5321 §2.3.8 forbids: "NUL", "bare CR", "bare LF", or "" for none."""
    if 0 in body:  # not b"\0", which bytes takes for a number first
        return "NUL"
    ends = stringzilla.count(body, b"\r\n")
    if stringzilla.count(body, b"\r") != ends:
        return "bare CR"
    return "bare LF" if stringzilla.count(body, b"\n") != ends else ""


def with_crlf(body: bytes) -> bytes:
    """The body with each bare LF made CRLF."""
    return _BARE_LF.sub(b"\r\n", body)
