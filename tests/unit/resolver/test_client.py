"""The resolver against a real DNS server on loopback."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import pytest

from relayd import clock
from relayd.message.outcome import Outcome, Scope, Verdict
from relayd.resolver.client import MAX_ADDRESSES, MAX_TTL, MIN_TTL, Resolver
from relayd.resolver.mx import MAX_HOSTS
from tests.conftest import Eventually
from tests.fakes.dns_server import DnsServer

OWN = "relay.example.net"
SECONDS = 3.0


@pytest.fixture
async def dns() -> AsyncIterator[DnsServer]:
    async with DnsServer() as server:
        yield server


@pytest.fixture
async def make() -> AsyncIterator[Callable[..., Resolver]]:
    """Makes resolvers that are closed even where a test fails: an open one would call into a loop that is gone."""
    made: list[Resolver] = []

    def make(*servers: str, seconds: float = SECONDS, now: Callable[[], float] = clock.monotonic) -> Resolver:
        made.append(Resolver(servers, OWN, seconds, now))
        return made[-1]

    yield make
    for resolver in made:
        await resolver.close()


@pytest.fixture
def resolver(dns: DnsServer, make: Callable[..., Resolver]) -> Resolver:
    return make(dns.address)


def _refused(result: object) -> str:
    assert isinstance(result, Outcome), result
    assert (result.scope, result.host, result.uncertain) == (Scope.SITE, "", False)
    assert result.verdict is (Verdict.DEFERRED if result.reply.code == 451 else Verdict.FAILED)
    assert result.reply.text
    assert result.reply.text.isprintable()
    return f"{result.reply.code} {result.reply.enhanced}"


# --- hosts of a domain


async def test_mail_hosts_by_preference(dns: DnsServer, resolver: Resolver) -> None:
    dns.add("d.example", "MX", "20 c.example", "10 b.example", "10 a.example", ttl=600)
    assert await resolver.mail_hosts("d.example") == ((("a.example", "b.example"), ("c.example",)), 600)


async def test_names_are_the_same_in_any_case_and_with_the_dot(dns: DnsServer, resolver: Resolver) -> None:
    dns.add("d.example", "MX", "10 a.example")
    first = await resolver.mail_hosts("D.Example")
    second = await resolver.mail_hosts("d.example.")
    assert not isinstance(first, Outcome)
    assert not isinstance(second, Outcome)
    assert first[0] == second[0] == (("a.example",),)
    assert dns.asked("d.example", "MX") == 1


async def test_without_mx_the_domain_is_its_own_host(dns: DnsServer, resolver: Resolver) -> None:
    dns.add("d.example", "A", "192.0.2.1", ttl=120)
    assert await resolver.mail_hosts("d.example") == ((("d.example",),), 120)


async def test_without_mx_and_address_the_domain_is_not_found(dns: DnsServer, resolver: Resolver) -> None:
    dns.add("d.example", "TXT", "v=spf1 -all")
    assert _refused(await resolver.mail_hosts("d.example")) == "550 5.1.2"


async def test_without_mx_trouble_with_the_address_defers(dns: DnsServer, resolver: Resolver) -> None:
    dns.add("alias.example", "CNAME", "target.example")
    dns.add("target.example", "TXT", "")
    dns.drop("target.example", "A")
    dns.drop("target.example", "AAAA")
    dns.chase = False
    assert _refused(await resolver.mail_hosts("alias.example")) == "451 4.4.3"


async def test_without_mx_our_own_domain_loops_back(dns: DnsServer, resolver: Resolver) -> None:
    dns.add(OWN, "A", "192.0.2.1")
    assert _refused(await resolver.mail_hosts(OWN)) == "550 5.4.6"


async def test_own_host_cuts_worse_hosts(dns: DnsServer, resolver: Resolver) -> None:
    dns.add("d.example", "MX", "10 a.example", "20 RELAY.example.NET", "30 b.example")
    dns.add("loop.example", "MX", "10 relay.example.net", "30 b.example")
    result = await resolver.mail_hosts("d.example")
    assert not isinstance(result, Outcome)
    assert result[0] == (("a.example",),)
    assert _refused(await resolver.mail_hosts("loop.example")) == "550 5.4.6"


async def test_null_mx_fails_at_once(dns: DnsServer, resolver: Resolver) -> None:
    dns.add("null.example", "MX", "0 .")
    dns.add("null.example", "A", "192.0.2.1")
    assert _refused(await resolver.mail_hosts("null.example")) == "550 5.1.10"


async def test_unknown_domain_fails(resolver: Resolver) -> None:
    assert _refused(await resolver.mail_hosts("nowhere.example")) == "550 5.1.2"


@pytest.mark.parametrize(
    "domain", ["", ".", "a..example", "192.0.2.1", "x" * 64 + ".example", "a\nb.example", "ü.example"]
)
async def test_what_is_no_domain_is_not_asked_for(dns: DnsServer, resolver: Resolver, domain: str) -> None:
    assert _refused(await resolver.mail_hosts(domain)) == "550 5.1.2"
    assert not dns.queries


@pytest.mark.parametrize("code", ["SERVFAIL", "REFUSED", "NOTIMP", "FORMERR", "NOTAUTH", "YXDOMAIN"])
async def test_any_other_answer_defers(dns: DnsServer, resolver: Resolver, code: str) -> None:
    dns.fail("d.example", code)
    assert _refused(await resolver.mail_hosts("d.example")) == "451 4.4.3"
    assert _refused(await resolver.addresses("d.example")) == "451 4.4.3"


async def test_trouble_is_over_when_it_is_over(dns: DnsServer, resolver: Resolver) -> None:
    dns.fail("d.example")
    assert _refused(await resolver.mail_hosts("d.example")) == "451 4.4.3"
    dns.remove("d.example")
    dns.add("d.example", "MX", "10 a.example")
    assert not isinstance(await resolver.mail_hosts("d.example"), Outcome)


async def test_hostile_exchanges_are_left_out(dns: DnsServer, resolver: Resolver) -> None:
    for labels in ((b"a\x00b", b"example"), (b"a\r\nRCPT", b"example"), (b"a.b\xff", b"example"), (b"a b", b"example")):
        dns.add_exchange("d.example", 5, labels)
    dns.add("d.example", "MX", "5 192.0.2.1", "10 a.example")
    result = await resolver.mail_hosts("d.example")
    assert not isinstance(result, Outcome)
    assert result[0] == (("a.example",),)


async def test_only_addresses_as_exchanges_fail(dns: DnsServer, resolver: Resolver) -> None:
    dns.add("d.example", "MX", "5 192.0.2.1")
    assert _refused(await resolver.mail_hosts("d.example")) == "550 5.4.4"


async def test_thousands_of_hosts_come_by_tcp_and_are_cut(dns: DnsServer, resolver: Resolver) -> None:
    dns.add("big.example", "MX", *(f"{number % 7} mx{number:04}.big.example" for number in range(2000)))
    result = await resolver.mail_hosts("big.example")
    assert not isinstance(result, Outcome)
    assert sum(map(len, result[0])) == MAX_HOSTS
    assert dns.tcp_queries == 1


# --- aliases


@pytest.mark.parametrize("chase", [True, False])
async def test_an_alias_is_followed(dns: DnsServer, resolver: Resolver, *, chase: bool) -> None:
    dns.chase = chase
    dns.add("alias.example", "CNAME", "Alias2.example", ttl=500)
    dns.add("alias2.example", "CNAME", "d.example", ttl=200)
    dns.add("d.example", "MX", "10 a.example", ttl=300)
    assert await resolver.mail_hosts("alias.example") == ((("a.example",),), 200)


async def test_an_alias_to_a_name_without_mx_is_its_own_host(dns: DnsServer, resolver: Resolver) -> None:
    dns.add("alias.example", "CNAME", "d.example")
    dns.add("d.example", "AAAA", "2001:db8::1")
    assert await resolver.mail_hosts("alias.example") == ((("alias.example",),), 300)
    assert await resolver.addresses("alias.example") == ("2001:db8::1",)


async def test_an_alias_to_nowhere_is_not_found(dns: DnsServer, resolver: Resolver) -> None:
    dns.add("alias.example", "CNAME", "nowhere.example")
    assert _refused(await resolver.mail_hosts("alias.example")) == "550 5.1.2"


@pytest.mark.parametrize("chase", [True, False])
async def test_a_loop_of_aliases_defers(dns: DnsServer, resolver: Resolver, *, chase: bool) -> None:
    dns.chase = chase
    dns.add("a.example", "CNAME", "b.example")
    dns.add("b.example", "CNAME", "a.example")
    assert _refused(await resolver.mail_hosts("a.example")) == "451 4.4.3"
    assert _refused(await resolver.addresses("a.example")) == "451 4.4.3"
    assert sum(dns.queries.values()) < 40


@pytest.mark.parametrize("chase", [True, False])
@pytest.mark.parametrize(("links", "found"), [(8, True), (9, False)])
async def test_eight_aliases_are_followed(
    dns: DnsServer, resolver: Resolver, links: int, *, chase: bool, found: bool
) -> None:
    dns.chase = chase
    for number in range(links):
        dns.add(f"h{number}.example", "CNAME", f"h{number + 1}.example")
    dns.add(f"h{links}.example", "A", "192.0.2.1")
    assert (await resolver.addresses("h0.example") == ("192.0.2.1",)) is found


# --- addresses of a host


async def test_addresses_of_both_families_alternate(dns: DnsServer, resolver: Resolver) -> None:
    dns.add("h.example", "A", "192.0.2.1", "192.0.2.2", "192.0.2.3")
    dns.add("h.example", "AAAA", "2001:db8::1")
    assert await resolver.addresses("H.example") == ("2001:db8::1", "192.0.2.1", "192.0.2.2", "192.0.2.3")


async def test_many_addresses_are_cut(dns: DnsServer, resolver: Resolver) -> None:
    dns.add("h.example", "A", *(f"192.0.2.{number}" for number in range(100)))
    dns.add("h.example", "AAAA", *(f"2001:db8::{number:x}" for number in range(1, 100)))
    addresses = await resolver.addresses("h.example")
    assert not isinstance(addresses, Outcome)
    assert len(addresses) == MAX_ADDRESSES
    assert len([address for address in addresses if ":" in address]) == MAX_ADDRESSES / 2


@pytest.mark.parametrize("text", ["192.0.2.1", "2001:db8::1", "::ffff:127.0.0.1"])
async def test_an_address_is_itself(dns: DnsServer, resolver: Resolver, text: str) -> None:
    assert await resolver.addresses(text) == (text,)
    assert not dns.queries


@pytest.mark.parametrize("host", ["localhost", "LocalHost.", "any.localhost"])
async def test_localhost_is_not_asked_for(dns: DnsServer, resolver: Resolver, host: str) -> None:
    assert await resolver.addresses(host) == ("::1", "127.0.0.1")
    assert not dns.queries


@pytest.mark.parametrize("kind", ["A", "AAAA"])
async def test_one_family_in_trouble_leaves_the_other(dns: DnsServer, resolver: Resolver, kind: str) -> None:
    dns.add("h.example", "A", "192.0.2.1", ttl=3000)
    dns.add("h.example", "AAAA", "2001:db8::1", ttl=3000)
    dns.drop("h.example", kind)
    assert await resolver.addresses("h.example") == (("192.0.2.1",) if kind == "AAAA" else ("2001:db8::1",))


async def test_one_family_in_trouble_and_none_of_the_other_defers(dns: DnsServer, resolver: Resolver) -> None:
    dns.add("h.example", "TXT", "")
    dns.drop("h.example", "AAAA")
    assert _refused(await resolver.addresses("h.example")) == "451 4.4.3"


@pytest.mark.parametrize("host", ["empty.example", "nowhere.example", "a b", ""])
async def test_no_address_fails(dns: DnsServer, resolver: Resolver, host: str) -> None:
    dns.add("empty.example", "TXT", "")
    assert _refused(await resolver.addresses(host)) == "550 5.4.4"


# --- a server that does not answer


async def test_a_silent_server_defers_in_bounded_time(dns: DnsServer, make: Callable[..., Resolver]) -> None:
    dns.drop("d.example")
    resolver = make(dns.address, seconds=0.4)
    started = time.monotonic()
    assert _refused(await resolver.mail_hosts("d.example")) == "451 4.4.3"
    assert _refused(await resolver.addresses("d.example")) == "451 4.4.3"
    assert time.monotonic() - started < 2


async def test_a_server_that_is_down_defers_and_is_asked_again(make: Callable[..., Resolver]) -> None:
    down = DnsServer()
    async with down:
        down.add("d.example", "MX", "10 a.example")
    resolver = make(down.address, seconds=0.4)
    assert _refused(await resolver.mail_hosts("d.example")) == "451 4.4.3"
    async with down:
        assert not isinstance(await resolver.mail_hosts("d.example"), Outcome)


async def test_the_second_server_answers_for_the_first(dns: DnsServer, make: Callable[..., Resolver]) -> None:
    dns.add("d.example", "MX", "10 a.example")
    async with DnsServer() as silent:
        silent.drop("d.example")
        resolver = make(silent.address, dns.address, seconds=2.0)
        assert not isinstance(await resolver.mail_hosts("d.example"), Outcome)
        assert silent.asked("d.example", "MX") == 1


async def test_what_is_no_server_defers(make: Callable[..., Resolver]) -> None:
    resolver = make("not an address")
    assert _refused(await resolver.mail_hosts("d.example")) == "451 4.4.3"


# --- what is kept and shared


async def test_an_answer_is_used_for_its_time(dns: DnsServer, make: Callable[..., Resolver]) -> None:
    now = 0.0
    resolver = make(dns.address, now=lambda: now)
    # TTL 0 keeps c-ares from answering out of its own cache.
    dns.add("d.example", "MX", "10 a.example", ttl=0)
    assert await resolver.mail_hosts("d.example") == ((("a.example",),), MIN_TTL)
    now = MIN_TTL - 1
    assert await resolver.mail_hosts("d.example") == ((("a.example",),), 1)
    assert dns.asked("d.example", "MX") == 1
    now = MIN_TTL
    dns.remove("d.example")
    dns.add("d.example", "MX", "10 b.example", ttl=0)
    assert await resolver.mail_hosts("d.example") == ((("b.example",),), MIN_TTL)


async def test_addresses_with_a_family_in_trouble_are_used_for_little(
    dns: DnsServer, make: Callable[..., Resolver]
) -> None:
    now = 0.0
    resolver = make(dns.address, now=lambda: now)
    dns.add("h.example", "A", "192.0.2.1", ttl=3000)
    dns.drop("h.example", "AAAA")
    assert await resolver.addresses("h.example") == ("192.0.2.1",)
    asked = dns.asked("h.example", "AAAA")
    await resolver.addresses("h.example")
    assert dns.asked("h.example", "AAAA") == asked
    now = MIN_TTL
    await resolver.addresses("h.example")
    assert dns.asked("h.example", "AAAA") > asked


async def test_a_refusal_is_not_kept(dns: DnsServer, resolver: Resolver) -> None:
    dns.add("d.example", "MX", "0 .", ttl=0)
    assert _refused(await resolver.mail_hosts("d.example")) == "550 5.1.10"
    dns.remove("d.example")
    dns.add("d.example", "MX", "10 a.example")
    assert not isinstance(await resolver.mail_hosts("d.example"), Outcome)


async def test_no_answer_is_used_for_long(dns: DnsServer, resolver: Resolver) -> None:
    dns.add("d.example", "MX", "10 a.example", ttl=2**31 - 1)
    assert await resolver.mail_hosts("d.example") == ((("a.example",),), MAX_TTL)


async def test_questions_at_the_same_time_are_one_and_survive_each_other(
    dns: DnsServer, resolver: Resolver, eventually: Eventually
) -> None:
    dns.add("d.example", "MX", "10 a.example")
    slow = dns.hold("d.example")
    calls = [asyncio.create_task(resolver.mail_hosts("d.example")) for _ in range(10)]
    await eventually(lambda: dns.asked("d.example", "MX"))
    calls[0].cancel()
    slow.set()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert all(isinstance(result, tuple) for result in results[1:])
    assert dns.asked("d.example", "MX") == 1


# --- closing


async def test_closing_ends_what_is_asked(
    dns: DnsServer, eventually: Eventually, make: Callable[..., Resolver]
) -> None:
    dns.hold("d.example")
    resolver = make(dns.address)
    calls = [
        asyncio.create_task(resolver.mail_hosts("d.example")),
        asyncio.create_task(resolver.addresses("d.example")),
    ]
    await eventually(lambda: len(dns.queries) == 3)
    await resolver.close()
    assert [_refused(await call) for call in calls] == ["451 4.4.3"] * 2
    assert _refused(await resolver.mail_hosts("other.example")) == "451 4.4.3"
    await resolver.close()


async def test_closing_leaves_no_task(dns: DnsServer, eventually: Eventually, make: Callable[..., Resolver]) -> None:
    dns.hold("d.example")
    resolver = make(dns.address)
    call = asyncio.create_task(resolver.mail_hosts("d.example"))
    await eventually(lambda: dns.queries)
    call.cancel()
    await resolver.close()
    assert [task for task in asyncio.all_tasks() if task.get_name() == "resolve d.example"] == []


async def test_closing_unused_is_harmless() -> None:
    await Resolver([], OWN).close()
