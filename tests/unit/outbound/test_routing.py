import math

import pytest

from relayd.config.schema import Route
from relayd.message.outcome import Outcome, Scope, Verdict
from relayd.message.site import Host, Site, Terms
from relayd.outbound.routing import Router
from relayd.resolver.client import Resolver
from tests.fakes.dns_server import DnsServer


@pytest.fixture
async def dns():
    async with DnsServer() as server:
        yield server


@pytest.fixture
async def router(dns):
    resolver = Resolver([dns.address], "relay.example")

    def made(*routes: tuple[tuple[str, ...], tuple[str, ...]]) -> Router:
        return Router([Route(domains=domains, next_hops=hops) for domains, hops in routes], resolver, 2525)

    yield made
    await resolver.close()


def hop(site: Site | None) -> str:
    assert site is not None
    return site.groups[0][0].name


ROUTES = (
    (("exact.example",), ("exact:1",)),
    (("*.sub.example", "other.example"), ("sub:1",)),
    (("deep.a.sub.example",), ("too-late:1",)),
    (("bücher.example", "UPPER.Example"), ("folded:1",)),
    (("*",), ("all:1",)),
    (("never.example",), ("too-late:1",)),
)


@pytest.mark.parametrize(
    ("domain", "name"),
    [
        ("exact.example", "exact"),
        ("not.exact.example", "all"),
        ("a.sub.example", "sub"),
        ("deep.a.sub.example", "sub"),
        ("sub.example", "all"),
        ("notsub.example", "all"),
        ("other.example", "sub"),
        ("xn--bcher-kva.example", "folded"),
        ("upper.example", "folded"),
        ("never.example", "all"),
        ("[192.0.2.1]", "all"),
        ("", "all"),
    ],
)
async def test_the_first_matching_route_wins(router, domain, name):
    assert hop(router(*ROUTES).known(domain)) == name


async def test_next_hops_are_hosts_in_order_trusted_and_hold_for_ever(router):
    site, valid = await router((("*",), ("a.example:25", "[::1]:26", "10.0.0.1:27"))).route("x.example")
    assert site == Site(((Host("a.example", 25),), (Host("::1", 26),), (Host("10.0.0.1", 27),)), Terms(trusted=True))
    assert valid == math.inf


@pytest.mark.parametrize(("domain", "address"), [("[192.0.2.1]", "192.0.2.1"), ("[IPv6:2001:db8::1]", "2001:db8::1")])
async def test_address_literals_are_their_own_untrusted_host(router, domain, address):
    site, _ = await router().route(domain)
    assert site == Site(((Host(address, 2525),),), Terms(trusted=False))


async def test_mx_by_preference_on_the_configured_port(router, dns):
    dns.add("x.example", "MX", "10 b.example", "10 a.example", "20 c.example", ttl=600)
    site, valid = await router((("other.example",), ("h:1",))).route("x.example")
    assert site == Site(((Host("a.example", 2525), Host("b.example", 2525)), (Host("c.example", 2525),)))
    assert 0 < valid <= 600


async def test_what_dns_refuses_is_an_outcome(router, dns):
    outcome = await router().route("nowhere.example")
    assert isinstance(outcome, Outcome)
    assert (outcome.verdict, outcome.scope, outcome.reply.enhanced) == (Verdict.FAILED, Scope.SITE, "5.1.2")


async def test_a_recipient_without_a_domain_is_not_looked_up(router, dns):
    outcome = await router().route("")
    assert isinstance(outcome, Outcome)
    assert outcome.verdict is Verdict.DEFERRED
    assert not dns.queries
