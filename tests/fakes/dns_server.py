"""A DNS server on a free loopback port, UDP and TCP, that answers from a zone the test writes.

It answers as a recursive resolver does: CNAMEs are chased and sent along, a name without the wanted type gets an empty
answer, an unknown name NXDOMAIN, and what does not fit into a datagram is truncated for the client to ask by TCP.
Knows nothing of relayd.

    async with DnsServer() as dns:
        dns.add("example.net", "MX", "10 mx.example.net")
        Resolver([dns.address], "relay.example.org")
"""

from __future__ import annotations

import asyncio
import collections
import errno
import struct
from types import TracebackType
from typing import Self

from dnslib import AAAA, CNAME, MX, QTYPE, RCODE, RD, RR, TXT, A, DNSLabel, DNSRecord

_DATA: dict[str, type[RD]] = {"A": A, "AAAA": AAAA, "MX": MX, "CNAME": CNAME, "TXT": TXT}
_CHASED = 16
_BIND_ATTEMPTS = 20


class DnsServer:
    """The zone is empty at first; names are case-insensitive. Started and stopped as a context manager.

    queries counts (name, type) as asked, TCP repetitions included; tcp_queries those by TCP alone.
    """

    def __init__(self) -> None:
        self.queries: collections.Counter[tuple[str, str]] = collections.Counter()
        self.tcp_queries = 0
        self.chase = True
        self._records: dict[str, list[RR]] = {}
        self._codes: dict[str, str] = {}
        self._dropped: set[tuple[str, str]] = set()
        self._held: dict[str, asyncio.Event] = {}
        self._answering: set[asyncio.Task[None]] = set()
        self._udp: asyncio.DatagramTransport | None = None
        self._tcp: asyncio.Server | None = None
        self._streams: set[asyncio.StreamWriter] = set()
        self.port = 0

    @property
    def address(self) -> str:
        """What to put into `nameservers`."""
        return f"127.0.0.1:{self.port}"

    def add(self, name: str, kind: str, *values: str, ttl: int = 300) -> None:
        """Add records in zone-file form: add("a.example", "MX", "10 mx.example"). Without values: the name exists."""
        self._records.setdefault(_key(name), []).extend(
            RR(name, QTYPE.reverse[kind], rdata=_data(kind, value), ttl=ttl) for value in values
        )

    def add_exchange(self, name: str, preference: int, labels: tuple[bytes, ...], ttl: int = 300) -> None:
        """Add an MX record whose exchange has any octets in its labels: NUL, newline, dots."""
        rr = RR(name, QTYPE.MX, rdata=MX(DNSLabel(labels), preference), ttl=ttl)
        self._records.setdefault(_key(name), []).append(rr)

    def remove(self, name: str) -> None:
        """Forget the name, also what `fail`, `drop` and `hold` said of it."""
        key = _key(name)
        self._records.pop(key, None)
        self._codes.pop(key, None)
        self._dropped = {(other, kind) for other, kind in self._dropped if other != key}
        self._held.pop(key, asyncio.Event()).set()

    def fail(self, name: str, code: str = "SERVFAIL") -> None:
        """Answer the name with this code (SERVFAIL, REFUSED, NXDOMAIN, NOTAUTH, ...) and nothing else."""
        self._codes[_key(name)] = code

    def drop(self, name: str, kind: str = "*") -> None:
        """Never answer questions for the name (of one type, or all)."""
        self._dropped.add((_key(name), kind))

    def hold(self, name: str) -> asyncio.Event:
        """Answer questions for the name only once the returned event is set: a slow server without waiting."""
        return self._held.setdefault(_key(name), asyncio.Event())

    def asked(self, name: str, kind: str) -> int:
        """How often the question arrived."""
        return self.queries[_key(name), kind]

    async def __aenter__(self) -> Self:
        for _ in range(_BIND_ATTEMPTS):
            tcp = await asyncio.start_server(self._serve_stream, "127.0.0.1", self.port)
            port = tcp.sockets[0].getsockname()[1]
            try:
                await self._open_udp(port)
            except OSError as error:
                tcp.close()
                if error.errno != errno.EADDRINUSE or self.port:
                    raise
                continue
            self._tcp, self.port = tcp, port
            return self
        raise OSError(errno.EADDRINUSE, "no port free for both UDP and TCP")

    async def _open_udp(self, port: int) -> None:
        loop = asyncio.get_running_loop()
        self._udp, _ = await loop.create_datagram_endpoint(lambda: _Datagrams(self), ("127.0.0.1", port))

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop; the port is kept, so that the same server can be entered again after an outage."""
        assert self._udp is not None
        assert self._tcp is not None
        self._udp.close()
        self._tcp.close()
        for writer in self._streams:
            writer.close()
        for task in self._answering:
            task.cancel()
        await asyncio.gather(*self._answering, return_exceptions=True)
        await self._tcp.wait_closed()

    def datagram(self, data: bytes, client: tuple[str, int]) -> None:
        """A question by UDP arrived."""
        task = asyncio.create_task(self._answer_datagram(data, client))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def _answer_datagram(self, data: bytes, client: tuple[str, int]) -> None:
        query = DNSRecord.parse(data)
        reply = await self._reply(query)
        if reply is None or self._udp is None or self._udp.is_closing():
            return
        packed = reply.pack()
        if len(packed) > max((rr.edns_len for rr in query.ar if rr.rtype == QTYPE.OPT), default=512):
            truncated = query.reply()
            truncated.header.tc = 1  # RFC 1035 §4.1.1: the client asks again by TCP
            packed = truncated.pack()
        self._udp.sendto(packed, client)

    async def _serve_stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._streams.add(writer)
        try:
            while True:
                (length,) = struct.unpack("!H", await reader.readexactly(2))
                reply = await self._reply(DNSRecord.parse(await reader.readexactly(length)))
                self.tcp_queries += 1
                if reply is not None:
                    packed = reply.pack()
                    writer.write(struct.pack("!H", len(packed)) + packed)
                    await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has what it wanted and closed
        finally:
            self._streams.discard(writer)
            writer.close()

    async def _reply(self, query: DNSRecord) -> DNSRecord | None:
        name, kind = _key(str(query.q.qname)), QTYPE.get(query.q.qtype)
        self.queries[name, kind] += 1
        if (name, kind) in self._dropped or (name, "*") in self._dropped:
            return None
        if name in self._held:
            await self._held[name].wait()
        reply: DNSRecord = query.reply()
        reply.header.ra = 1
        self._fill(reply, name, kind)
        return reply

    def _fill(self, reply: DNSRecord, name: str, kind: str) -> None:
        for _ in range(_CHASED):
            code = self._codes.get(name, "NOERROR" if name in self._records else "NXDOMAIN")
            reply.header.rcode = RCODE.reverse[code]
            records = self._records.get(name, ()) if code == "NOERROR" else ()
            found = [rr for rr in records if QTYPE.get(rr.rtype) == kind]
            aliases = [rr for rr in records if rr.rtype == QTYPE.CNAME]
            reply.add_answer(*(found or aliases))
            if found or not aliases or not self.chase:
                return
            name = _key(str(aliases[0].rdata))


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, server: DnsServer) -> None:
        self._server = server

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._server.datagram(data, addr)


def _key(name: str) -> str:
    return name.rstrip(".").lower()


def _data(kind: str, value: str) -> RD:
    if kind == "MX":
        preference, exchange = value.split()
        return MX(exchange, int(preference))
    return _DATA[kind](value)
