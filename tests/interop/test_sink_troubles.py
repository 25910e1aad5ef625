"""A next hop that fails at each command in every way smtp-sink knows: what comes of the mail is what the ledger says.

Refused for the moment, or cut off, it waits, and arrives once as soon as a sound next hop listens there; twice only where
the answer to the final dot was lost. Refused for good it comes back to its sender. Slow and old peers get it whole.
"""

import asyncio
import enum
import itertools
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import Eventually
from tests.fakes.judge import Delivery, Judge, address, delivery, message
from tests.fakes.relay_process import RelayProcess, free_ports
from tests.fakes.sender import Sender
from tests.fakes.sink import Sink
from tests.interop.smtp_sink import SmtpSink

MESSAGES = 4
"""For each next hop."""

EVERYWHERE = ("CONNECT", "EHLO", "MAIL", "RCPT", "DATA", ".")
IN_TURN = ("MAIL", "RCPT", "DATA", ".")
"""Commands that differ when they are not pipelined; told to refuse something, smtp-sink does not offer that (-p)."""

DISCONNECTS = [
    *(("-q", verb) for verb in (*EVERYWHERE, "QUIT")),
    *(("-p", "-q", verb) for verb in IN_TURN),
    ("-e", "-q", "HELO"),
    ("-r", "RCPT", "-q", "RSET"),
]
SAYS_421 = [
    *(("-Q", verb) for verb in (*EVERYWHERE, "QUIT")),
    *(("-p", "-Q", verb) for verb in IN_TURN),
    ("-e", "-Q", "HELO"),
    ("-r", "DATA", "-Q", "RSET"),
]
REFUSES_FOR_NOW = [
    *(("-r", verb) for verb in (*EVERYWHERE, "QUIT")),
    ("-e", "-r", "HELO"),
    ("-r", "RCPT,RSET"),
    # Refused for good, but not the message: nobody is told that a host is out of order before five days are over.
    ("-f", "CONNECT"),
    ("-f", "EHLO,HELO"),
]
REFUSES_FOR_GOOD = [*(("-f", verb) for verb in IN_TURN), ("-f", "RCPT,RSET"), ("-f", "DATA", "-q", "RSET")]
SOUND = [
    (),
    ("-p",),
    ("-8",),
    ("-e",),
    ("-P",),
    ("-E",),
    ("-f", "EHLO"),
    ("-f", "QUIT"),
    # What is delayed is overtaken by the replies to what follows in a pipeline.
    *(("-W", f"{verb}:1") for verb in ("EHLO", "DATA", ".", "QUIT")),
    *(("-p", "-W", f"{verb}:1") for verb in IN_TURN),
    ("-T", "1000", "-H", "1"),
]


ABORTS = [("-A", "0"), ("-p", "-A", "0")]


def content(number: int) -> bytes:
    """The judge's message, with 8-bit text; one in each four above what a socket buffers."""
    return message(number, 5120 if number % MESSAGES else 400_000) + "Grüße\r\n".encode()


class Dot(enum.Enum):
    """What became of mail that was read to the final dot."""

    TAKEN = "it was answered 250"
    REFUSED = "it was answered otherwise"
    UNANSWERED = "nobody knows"


def dot(flags: Sequence[str]) -> Dot:
    """What these flags of smtp-sink mean for it."""
    flag = next((flag for flag, verbs in itertools.pairwise(flags) if verbs == "."), "")
    return {"-q": Dot.UNANSWERED, "-Q": Dot.UNANSWERED, "-r": Dot.REFUSED, "-f": Dot.REFUSED}.get(flag, Dot.TAKEN)


class Hop(NamedTuple):
    """A next hop, the domain whose mail goes there, and the numbers of that."""

    domain: str
    sink: SmtpSink
    numbers: range
    dot: Dot

    @property
    def deliveries(self) -> set[Delivery]:
        """What is sent there."""
        return {delivery(address(number, self.domain)) for number in self.numbers}


class Stage(NamedTuple):
    """A relayd and its next hops. What it tells senders goes to the judge by a sink of its own."""

    relay: RelayProcess
    judge: Judge
    hops: Sequence[Hop]

    async def send(self) -> None:
        """Submit everything."""
        port = self.relay.ports["relay"]
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            for hop in self.hops:
                group.create_task(Sender(port, self.judge, sessions=1).send(hop.numbers, hop.domain))
        assert len(self.judge.acknowledged) == MESSAGES * len(self.hops)

    def ends(self, domain: str) -> list[str]:
        """How attempts to deliver mail of this domain ended, in order."""
        whole, _, _ = (self.relay.directory / "events.log").read_bytes().rpartition(b"\n")
        events = map(json.loads, whole.splitlines())
        return [event["event"] for event in events if event.get("recipient", "").endswith(f"@{domain}")]

    def all_tried(self) -> bool:
        """Whether each next hop was asked for something, and is done where it takes mail."""
        ends = [self.ends(hop.domain) for hop in self.hops]
        return all(ends) and all(each.count("delivered") in (0, MESSAGES) for each in ends)

    def stop(self) -> None:
        """End the next hops and tell the judge what they took."""
        for hop in self.hops:
            hop.sink.stop()
            if hop.dot is not Dot.REFUSED:
                for received in hop.sink.taken():
                    self.judge.take(received, answered=hop.dot is Dot.TAKEN)

    @asynccontextmanager
    async def healed(self) -> AsyncIterator[None]:
        """Sound next hops where those were that failed."""
        self.stop()
        async with AsyncExitStack() as sinks:
            for hop in self.hops:
                sink = Sink(on_message=self.judge.take)
                sink.port = hop.sink.port
                await sinks.enter_async_context(sink)
            yield

    async def uncertain(self) -> float:
        """How many answers relayd says were lost, when its queue is empty."""
        await self.relay.emptied(30)
        samples = await self.relay.metrics()
        assert samples["relayd_bugs_total"] == 0, self.relay.log()
        return samples["relayd_uncertain_deliveries_total"]


@asynccontextmanager
async def staged(directory: Path, troubles: Sequence[Sequence[str]], delivery: str = "") -> AsyncIterator[Stage]:
    """A relayd with a next hop for each of these lists of flags. delivery: lines of that table."""
    judge = Judge(content)
    hops: list[Hop] = []
    async with AsyncExitStack() as stack:
        for number, (flags, port) in enumerate(zip(troubles, free_ports(len(troubles)), strict=True)):
            sink = SmtpSink(directory / f"sink{number}", port, flags)
            stack.callback(sink.stop)
            numbers = range(number * MESSAGES, (number + 1) * MESSAGES)
            hops.append(Hop(f"hop{number}.test", sink, numbers, dot(flags)))
        notified = await stack.enter_async_context(Sink(on_message=judge.take))
        routes = {hop.domain: [hop.sink.port] for hop in hops}
        relay = await stack.enter_async_context(
            RelayProcess(directory, [notified.port], routes=routes, delivery=delivery)
        )
        yield Stage(relay, judge, hops)


@pytest.mark.parametrize(
    "troubles",
    [DISCONNECTS, SAYS_421, REFUSES_FOR_NOW],
    ids=["disconnects", "says-421", "refuses-for-now"],
)
async def test_mail_outwaits_trouble(troubles: Sequence[Sequence[str]], tmp_path: Path, eventually: Eventually) -> None:
    async with staged(tmp_path, troubles) as stage:
        await stage.send()
        await eventually(stage.all_tried, 20)
        async with stage.healed():
            uncertain = await stage.uncertain()
    judge = stage.judge
    verdict = judge.verdict()
    assert verdict.faults() == {}
    assert not judge.bounces
    assert {one for one, times in judge.arrivals.items() if times} == judge.acknowledged
    unanswered = set[Delivery]().union(*(hop.deliveries for hop in stage.hops if hop.dot is Dot.UNANSWERED))
    assert verdict.duplicate <= unanswered
    assert bool(verdict.duplicate) == bool(unanswered)
    # More when a sink was ended while it read.
    assert uncertain >= sum(len(hop.sink.taken()) for hop in stage.hops if hop.dot is Dot.UNANSWERED)


async def test_what_is_refused_for_good_comes_back(tmp_path: Path) -> None:
    async with staged(tmp_path, REFUSES_FOR_GOOD) as stage:
        stage.judge.refused |= set[Delivery]().union(*(hop.deliveries for hop in stage.hops))
        await stage.send()
        assert await stage.uncertain() == 0
        stage.stop()
    judge = stage.judge
    assert judge.verdict().faults() == {}
    assert not judge.arrivals
    assert {one: len(times) for one, times in judge.bounces.items()} == dict.fromkeys(judge.acknowledged, 1)


async def test_what_never_gets_better_expires(tmp_path: Path) -> None:
    troubles = [("-q", "CONNECT"), ("-Q", "EHLO"), ("-r", "MAIL"), ("-f", "CONNECT"), ("-p", "-q", "DATA"), ("-q", ".")]
    async with staged(tmp_path, troubles, 'max_age = "3s"') as stage:
        await stage.send()
        await stage.uncertain()
        stage.stop()
        for hop in stage.hops:
            ends = stage.ends(hop.domain)
            assert ends.count("expired") == MESSAGES
            assert set(ends) == {"deferred", "expired"}, "it was tried more than once"
    judge = stage.judge
    assert {one: len(times) for one, times in judge.bounces.items()} == dict.fromkeys(judge.acknowledged, 1)


async def test_a_hop_that_refuses_inside_a_message_gets_it_no_second_time(
    tmp_path: Path, eventually: Eventually
) -> None:
    """It answers 550 to the first octets and closes what it did not read, so that the answer may be lost on the way."""
    async with staged(tmp_path, ABORTS) as stage:
        stage.judge.refused |= set[Delivery]().union(*(hop.deliveries for hop in stage.hops))
        await stage.send()
        await eventually(stage.all_tried, 20)
        async with stage.healed():
            await stage.uncertain()
    verdict = stage.judge.verdict()
    assert verdict.faults() == {}
    assert not verdict.duplicate


async def test_slow_and_old_peers_get_everything_whole(tmp_path: Path) -> None:
    async with staged(tmp_path, SOUND) as stage:
        await stage.send()
        assert await stage.uncertain() == 0
        stage.stop()
    judge = stage.judge
    verdict = judge.verdict()
    assert verdict.faults() == {}
    assert not verdict.duplicate
    assert not judge.bounces
    assert judge.arrivals.keys() == judge.acknowledged
