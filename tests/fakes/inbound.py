"""Inbound on real sockets over a queue without a disk, and a client that says exactly what a test wants it to say.

async with Inbound(tmp_path, certificate) as inbound:
    client = await inbound.connect("relay")
    assert await client.ask("EHLO client.test") == ...
"""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import trustme

from relayd import metrics, tls
from relayd.auth.authenticator import Authenticator
from relayd.auth.users import HASHER
from relayd.config.schema import Settings
from relayd.inbound import sockets
from relayd.inbound.headcount import Headcount
from relayd.inbound.listener import Listeners
from relayd.inbound.terms import Timing
from relayd.spool.bodyfile import HEADER, path_of
from relayd.spool.memory import Memory
from relayd.spool.queue import Queue
from relayd.spool.records import Message
from tests.fakes.memory_store import MemoryStore

PATIENCE = 10.0
"""Seconds a client waits for anything before the test fails."""

HOSTNAME = "relay.test"
KINDS = ("relay", "submission", "submissions")
QUICK = Timing(idle=5.0, data_grace=5.0, handshake=5.0, linger=0.5, tick=0.02, accept_pause=0.05)

PLAIN = base64.b64encode(b"\0alice\0wonderland").decode()
"""The right credentials of the user `Inbound` makes."""

ALICE = f"alice:{HASHER.hash('wonderland')}\n"
"""The users file."""


class Certificate:
    """One for all tests of a run: making keys is slow."""

    def __init__(self, directory: Path) -> None:
        authority = trustme.CA()
        issued = authority.issue_cert(HOSTNAME, "127.0.0.1")
        self.certificate = directory / "cert.pem"
        self.private_key = directory / "key.pem"
        for pem in issued.cert_chain_pems:
            pem.write_to_path(str(self.certificate), append=True)
        issued.private_key_pem.write_to_path(str(self.private_key))
        self.context = tls.listener_context(self.certificate, self.private_key)
        self.client_context = ssl.create_default_context()
        authority.configure_trust(self.client_context)


class Inbound:
    """All three kinds of listener, one user (alice, wonderland), loopback trusted unless said otherwise."""

    def __init__(
        self,
        directory: Path,
        certificate: Certificate,
        *,
        settings: Mapping[str, object] | None = None,
        bare_lf: str = "reject",
        timing: Timing = QUICK,
        headcount: Headcount | None = None,
    ) -> None:
        """headcount: where other processes accept, too."""
        self.directory = directory
        self.certificate = certificate
        self.users_file = directory / "users"
        listeners = [{"bind": "127.0.0.1:0", "kind": kind, "bare_lf": bare_lf} for kind in KINDS]
        values: dict[str, object] = {
            "hostname": HOSTNAME,
            "relay": {"trusted_networks": ["127.0.0.0/8"]},
            "auth": {"users_file": self.users_file},
            "listeners": listeners,
        }
        self.settings = Settings.model_validate(values | dict(settings or {}))
        self.spool = directory / "spool"
        self.store = MemoryStore(directory=self.spool)
        self.memory = Memory(self.settings.limits.memory)
        self.queue = Queue([self.store], self.memory)
        self.queue.added = self._added
        self.messages: list[Message] = []
        self._timing = timing
        self._headcount = headcount
        self._clients: list[Client] = []
        self.bugs = metrics.bugs._value.get()

    async def __aenter__(self) -> Inbound:
        if not self.users_file.exists():
            self.users_file.write_text(ALICE)
        for name in ("bodies", "quarantine"):
            (self.spool / name).mkdir(parents=True, exist_ok=True)
        await self.queue.open()
        self.authenticator = Authenticator(self.users_file, self.directory / "failures")
        self.listeners = Listeners(
            self.settings, self.certificate.context, self.queue, self.authenticator, timing=self._timing
        )
        if self._headcount:
            self.listeners.adopt(sockets.bind(self.settings.listeners), self._headcount)
        self.bound = await self.listeners.open()
        self.ports = {kind: port for kind, _, port in self.bound}
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for client in self._clients:
            client.close()
        await self.listeners.drain(0.0)
        self.authenticator.close()
        await self.queue.close()
        assert metrics.bugs._value.get() == self.bugs, "the log has the traceback"

    def _added(self, message: Message) -> None:
        self.messages.append(message)

    def body(self, number: int = -1) -> bytes:
        """The body of an accepted message, out of its file where it has one."""
        message = self.messages[number]
        if isinstance(message.body, bytes):
            return message.body
        path = path_of(self.spool / "bodies", message.envelope.id)
        return path.read_bytes()[HEADER:]

    async def dial(self, kind: str) -> Client:
        """A connection whose greeting is not read yet."""
        context = self.certificate.client_context if kind == "submissions" else None
        name = HOSTNAME if context else None
        async with asyncio.timeout(PATIENCE):
            streams = await asyncio.open_connection(
                "127.0.0.1", self.ports[kind], ssl=context, server_hostname=name, limit=2**20
            )
        client = Client(*streams, self.certificate.client_context)
        self._clients.append(client)
        return client

    async def connect(self, kind: str = "relay") -> Client:
        """A greeted client: EHLO, on submission kinds after STARTTLS, and AUTH said already."""
        client = await self.dial(kind)
        assert await client.code() == 220
        await client.expect(250, "EHLO client.test")
        if kind == "submission":
            await client.start_tls()
            await client.expect(250, "EHLO client.test")
        if kind != "relay":
            await client.expect(235, f"AUTH PLAIN {PLAIN}")
        return client


class Client:
    """Sends octets, reads replies, each within PATIENCE."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, context: ssl.SSLContext) -> None:
        self.reader = reader
        self.writer = writer
        self._context = context

    async def send(self, data: bytes | str) -> None:
        """Octets as they are."""
        self.writer.write(data.encode() if isinstance(data, str) else data)
        async with asyncio.timeout(PATIENCE):
            await self.writer.drain()

    async def drip(self, data: bytes) -> None:
        """Each octet in a segment of its own, as far as the kernel can be told."""
        for octet in data:
            await self.send(bytes([octet]))
            await asyncio.sleep(0)

    async def line(self) -> str:
        """One line, "" at the end of the connection."""
        async with asyncio.timeout(PATIENCE):
            try:
                line = await self.reader.readline()
            except ConnectionError:
                return ""
        return line.decode().removesuffix("\r\n")

    async def reply(self) -> str:
        """One reply, its lines joined by "\\n"; "" at the end of the connection."""
        lines = [await self.line()]
        while lines[-1][3:4] == "-":
            lines.append(await self.line())
        return "\n".join(lines)

    async def code(self) -> int:
        """The code of one reply, 0 at the end of the connection."""
        return int((await self.reply())[:3] or 0)

    async def ask(self, command: str | bytes) -> str:
        """The reply to a command; CRLF is added."""
        await self.send((command.encode() if isinstance(command, str) else command) + b"\r\n")
        return await self.reply()

    async def expect(self, code: int, command: str | bytes) -> str:
        """The reply to a command, which has this code."""
        answer = await self.ask(command)
        assert answer.startswith(str(code)), f"{command!r}: {answer!r}"
        return answer

    async def begin(self, *recipients: str, sender: str = "a@sender.test") -> None:
        """A transaction up to 354."""
        await self.expect(250, f"MAIL FROM:<{sender}>")
        for recipient in recipients or ("b@example.test",):
            await self.expect(250, f"RCPT TO:<{recipient}>")
        await self.expect(354, "DATA")

    async def mail(self, body: bytes, *recipients: str) -> str:
        """The reply to a whole message; `body` is stuffed already and ends its lines."""
        await self.begin(*recipients)
        await self.send(body + b".\r\n")
        return await self.reply()

    async def ended(self) -> bool:
        """Whether the server closed, whatever it said before."""
        async with asyncio.timeout(PATIENCE):
            try:
                while await self.reader.read(65536):
                    pass
            except ConnectionError:
                pass
        return True

    async def start_tls(self) -> None:
        """STARTTLS and the handshake."""
        await self.expect(220, "STARTTLS")
        async with asyncio.timeout(PATIENCE):
            await self.writer.start_tls(self._context, server_hostname=HOSTNAME)

    def close(self) -> None:
        """Without QUIT."""
        self.writer.close()

    def reset(self) -> None:
        """With RST."""
        self.writer.transport.abort()
