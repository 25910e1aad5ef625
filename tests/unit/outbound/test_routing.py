import math

import pytest

from relayd.config.schema import Settings
from relayd.message.envelope import Envelope
from relayd.message.outcome import Outcome, Scope, Verdict
from relayd.message.site import Family, Host, Site, Source, Terms, Tls, Way
from relayd.outbound.routing import CACHED_WAYS, Router
from relayd.resolver.client import Resolver
from relayd.smtp.address import parse
from tests.fakes.dns_server import DnsServer


@pytest.fixture
async def dns():
    async with DnsServer() as server:
        yield server


@pytest.fixture
async def made(dns):
    """Makes a router of a configuration."""
    resolver = Resolver([dns.address], "relay.example")
    yield lambda **settings: Router(
        Settings.model_validate({"hostname": "relay.example", "delivery": {"port": 2525}, **settings}), resolver
    )
    await resolver.close()


@pytest.fixture
async def router(made):
    """Makes a router of routes: domains and next hops."""
    return lambda *routes: made(routes=[{"domains": domains, "next_hops": hops} for domains, hops in routes])


def mail(sender: str = "ada@sender.example", account: str = "user:ada") -> Envelope:
    return Envelope("00ABCDEFGHIJKLMNOP", parse(sender) if sender else sender, (), account, 0.0, 0)


def known(router: Router, domain: str, **fields) -> Site | None:
    return router.known(router.way(mail(**fields), domain))


async def routed(router: Router, domain: str, **fields) -> Site:
    found = await router.route(router.way(mail(**fields), domain))
    assert not isinstance(found, Outcome), found
    return found[0]


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
    assert hop(known(router(*ROUTES), domain)) == name


async def test_next_hops_are_hosts_in_order_trusted_and_hold_for_ever(router):
    routes = router((("*",), ("a.example:25", "[::1]:26", "10.0.0.1:27")))
    site, valid = await routes.route(routes.way(mail(), "x.example"))
    assert site.groups == ((Host("a.example", 25),), (Host("::1", 26),), (Host("10.0.0.1", 27),))
    assert site.terms == Terms("routes[0]", trusted=True)
    assert valid == math.inf


@pytest.mark.parametrize(("domain", "address"), [("[192.0.2.1]", "192.0.2.1"), ("[IPv6:2001:db8::1]", "2001:db8::1")])
async def test_address_literals_are_their_own_untrusted_host(router, domain, address):
    site = await routed(router(), domain)
    assert site == Site(((Host(address, 2525),),), Terms(trusted=False))


async def test_mx_by_preference_on_the_configured_port(router, dns):
    dns.add("x.example", "MX", "10 b.example", "10 a.example", "20 c.example", ttl=600)
    site, valid = await router((("other.example",), ("h:1",))).route(Way("x.example"))
    assert site == Site(((Host("a.example", 2525), Host("b.example", 2525)), (Host("c.example", 2525),)))
    assert 0 < valid <= 600


async def test_what_dns_refuses_is_an_outcome(router, dns):
    outcome = await router().route(Way("nowhere.example"))
    assert isinstance(outcome, Outcome)
    assert (outcome.verdict, outcome.scope, outcome.reply.enhanced) == (Verdict.FAILED, Scope.SITE, "5.1.2")


async def test_a_recipient_without_a_domain_is_not_looked_up(router, dns):
    outcome = await router().route(Way(""))
    assert isinstance(outcome, Outcome)
    assert outcome.verdict is Verdict.DEFERRED
    assert not dns.queries


# --- routes with conditions -----------------------------------------------------------------------------------------


def route(domains, hop, **options):
    return {"domains": domains, "next_hops": [f"{hop}:25"], **options}


CONDITIONAL = (
    route(["*"], "news", senders=["news@Sender.example"], accounts=["user:news"]),
    route(["never.example"], "both", senders=["sender.example"], accounts=["user:bob", "net:10.0.0.0/8"]),
    route(["*.example"], "bounces", senders=["<>"]),
    route(["fixed.example"], "fixed"),
    route(["*"], "late", accounts=["user:late"]),
    route(["*"], "sub", senders=["*.sender.example", "bücher.example"]),
    route(["fixed.example"], "too-late", accounts=["user:ada"]),
)


@pytest.mark.parametrize(
    ("domain", "sender", "account", "name"),
    [
        ("x.example", "news@sender.example", "user:news", "news"),
        ("x.example", "NEWS@SENDER.example", "user:news", "news"),
        ("x.example", "news@sender.example", "user:ada", None),
        ("x.example", "news@sender.example", "user:NEWS", None),
        ("x.example", "ada@sender.example", "user:news", None),
        ("x.example", "news@other.example", "user:news", None),
        ("never.example", "ada@sender.example", "net:10.0.0.0/8", "both"),
        ("never.example", "ada@sender.example", "user:bob", "both"),
        ("never.example", "ada@sender.example", "user:ada", None),
        ("never.example", "ada@a.sender.example", "user:bob", "sub"),
        ("x.example", "", "", "bounces"),
        ("example", "", "", None),
        ("fixed.example", "", "", "bounces"),
        ("fixed.example", "ada@sender.example", "user:ada", "fixed"),
        ("fixed.example", "ada@sender.example", "user:late", "fixed"),
        ("x.test", "ada@sender.example", "user:late", "late"),
        ("x.test", "ada@a.b.sender.example", "user:ada", "sub"),
        ("x.test", "ada@sender.example", "user:ada", None),
        ("x.test", "ada@xn--bcher-kva.example", "user:ada", "sub"),
        ("x.test", "ö@Bücher.example", "user:ada", "sub"),
        ("", "ada@sender.example", "user:late", "late"),
        ("[192.0.2.1]", "ada@sender.example", "user:late", "late"),
    ],
)
async def test_a_route_takes_what_meets_all_of_its_conditions(made, domain, sender, account, name):
    router = made(routes=CONDITIONAL)
    way = router.way(mail(sender, account), domain)
    assert (hop(router.known(way)) if way.route >= 0 else None) == name


async def test_any_sender_is_not_the_null_sender(made):
    router = made(routes=[route(["*"], "a", senders=["*"])])
    assert router.way(mail("ada@x.example"), "y.example").route == 0
    assert router.way(mail("ada@[192.0.2.1]"), "y.example").route == 0
    assert router.way(mail(""), "y.example").route == -1


async def test_equal_mail_shares_its_way_where_the_domain_alone_decides(made, router):
    plain = router((("a.example",), ("h:1",)))
    assert plain.way(mail(), "a.example") is plain.way(mail("bob@other.example", "user:bob"), "a.example")
    conditional = made(routes=CONDITIONAL)
    assert conditional.way(mail(), "a.test") == conditional.way(mail(), "a.test") == Way("a.test")


async def test_memory_is_bounded_whatever_domains_are_asked_for(router):
    plain = router((("a.example",), ("h:1",)))
    first = plain.way(mail(), "0.example")
    for number in range(CACHED_WAYS + 1):
        plain.way(mail(), f"{number}.example")
    assert plain.way(mail(), "0.example") is not first


async def test_ten_thousand_routes_cost_no_more_than_one(made):
    """Patterns that match are asked for; others are not looked at."""
    routes = [route([f"{number}.example"], "h", accounts=["user:x"]) for number in range(10_000)]
    router = made(routes=[*routes, route(["*"], "all")])
    seen = []
    router._conditions = _Counting(router._conditions, seen)
    assert router.way(mail(account="user:x"), "77.example").route == 77
    assert router.way(mail(account="user:y"), "77.example").route == 10_000
    assert seen == [77, 77, 10_000]


class _Counting(list):
    def __init__(self, items, seen):
        super().__init__(items)
        self.seen = seen

    def __getitem__(self, position):
        self.seen.append(position)
        return super().__getitem__(position)


# --- next hops and terms --------------------------------------------------------------------------------------------


async def test_next_hops_of_equal_preference_are_one_group(made):
    hops = [
        {"host": "b", "port": 25, "weight": 3, "preference": 1},
        "second:25",
        {"host": "a", "port": 465, "preference": 1},
        {"host": "first", "port": 25, "implicit_tls": True, "preference": 0},
    ]
    site = known(made(routes=[{"domains": ["*"], "next_hops": hops}]), "x.example")
    assert site.groups == (
        (Host("first", 25, 1, implicit_tls=True),),
        (Host("a", 465, 1, implicit_tls=True), Host("b", 25, 3), Host("second", 25)),
    )


OPTIONS = {
    "connections": 3,
    "messages_per_second": 0.5,
    "messages_per_connection": 7,
    "tls": "encrypt",
    "retry_schedule": ["1s", "1m"],
    "addresses": "ipv4",
    "eight_bit": "refuse",
}
SAID = Terms("", False, Tls.ENCRYPT, Family.IPV4, 3, 0.5, 7, (1.0, 60.0), True)


def terms(name: str, *, trusted: bool) -> Terms:
    return Terms(name, trusted, *(getattr(SAID, field) for field in Terms.__struct_fields__[2:]))


async def test_what_a_route_says_is_its_sites_terms(made):
    router = made(routes=[route(["a.example"], "h"), route(["*"], "h", **OPTIONS)])
    assert known(router, "x.example").terms == terms("routes[1]", trusted=True)


async def test_what_is_not_said_is_as_usual(made, dns):
    dns.add("x.example", "MX", "10 a.example")
    router = made(
        delivery={"connections_per_site": 9},
        destinations=[{"domains": ["y.example"]}],
        routes=[route(["z.example"], "h")],
    )
    assert (await routed(router, "x.example")).terms == Terms(connections=9)
    assert (await routed(router, "[192.0.2.1]")).terms == Terms(connections=9)
    assert known(router, "z.example").terms == Terms("routes[0]", trusted=True, connections=9)


async def test_credentials_go_to_hosts_that_are_verified(made):
    router = made(routes=[route(["*"], "h", credentials={"username": "ada", "password": "hunter2"})])
    assert known(router, "x.example").terms.tls is Tls.VERIFY


# --- destinations ---------------------------------------------------------------------------------------------------

DESTINATIONS = (
    {"domains": ["named.example", "[192.0.2.1]"]},
    {"hosts": ["*.big.example", "mx.other.example"]},
    {"domains": ["*.sub.example"], "hosts": ["one.small.example"]},
    {"hosts": ["*.small.example"]},
    {"domains": ["hosted.example", "late.example"]},
)


@pytest.mark.parametrize(
    ("domain", "mx", "name"),
    [
        ("named.example", ["10 a.big.example"], "destinations[0]"),
        ("hosted.example", ["10 A.Big.Example"], "destinations[1]"),
        ("hosted.example", ["10 a.big.example", "10 mx.other.example"], "destinations[1]"),
        ("hosted.example", ["10 a.big.example", "10 elsewhere.example"], "destinations[4]"),
        ("hosted.example", ["10 a.big.example", "20 elsewhere.example"], "destinations[1]"),
        ("hosted.example", ["10 elsewhere.example", "20 a.big.example"], "destinations[4]"),
        ("hosted.example", ["10 big.example"], "destinations[4]"),
        ("hosted.example", ["10 one.small.example", "10 two.small.example"], "destinations[3]"),
        ("hosted.example", ["10 one.small.example", "10 mx.other.example"], "destinations[4]"),
        ("a.sub.example", ["10 elsewhere.example"], "destinations[2]"),
        ("a.sub.example", ["10 two.small.example"], "destinations[2]"),
        ("free.example", ["10 one.small.example"], "destinations[2]"),
        ("free.example", ["10 elsewhere.example"], ""),
    ],
)
async def test_the_first_destination_of_the_domain_or_its_best_hosts(made, dns, domain, mx, name):
    dns.add(domain, "MX", *mx)
    router = made(destinations=DESTINATIONS)
    assert (await routed(router, domain)).terms.name == name


async def test_what_a_destination_says_is_its_sites_terms(made, dns):
    dns.add("x.example", "MX", "10 a.example")
    router = made(destinations=[{"domains": ["*"], **OPTIONS}])
    assert (await routed(router, "x.example")).terms == terms("destinations[0]", trusted=False)
    assert (await routed(router, "[192.0.2.1]")).terms == terms("destinations[0]", trusted=False)


async def test_a_literal_may_be_named(made):
    assert (await routed(made(destinations=DESTINATIONS), "[192.0.2.1]")).terms.name == "destinations[0]"


async def test_routes_have_no_destination(made):
    router = made(destinations=[{"domains": ["*"], "connections": 1}], routes=[route(["*"], "h")])
    assert known(router, "x.example").terms == Terms("routes[0]", trusted=True)


# --- sources --------------------------------------------------------------------------------------------------------


def pool(name: str, *last: int, **options):
    return {"name": name, "addresses": [{"ipv4": f"192.0.2.{number}"} for number in last], **options}


SOURCES = {
    "sources": [pool("of-account", 1, accounts=["user:own"]), pool("of-route", 2), pool("of-domain", 3)],
    "routes": [route(["routed.example"], "h", source="of-route"), route(["plain.example"], "h")],
    "destinations": [
        {"domains": ["early.example"]},
        {"domains": ["*.named.example", "early.example", "routed.example", "plain.example"], "source": "of-domain"},
        {"domains": ["[192.0.2.9]"], "source": "of-domain"},
        {"hosts": ["*.big.example"]},
    ],
}


@pytest.mark.parametrize(
    ("domain", "account", "address"),
    [
        ("routed.example", "user:own", "192.0.2.1"),
        ("a.named.example", "user:own", "192.0.2.1"),
        ("x.example", "user:own", "192.0.2.1"),
        ("routed.example", "user:ada", "192.0.2.2"),
        ("a.named.example", "user:ada", "192.0.2.3"),
        ("[192.0.2.9]", "user:ada", "192.0.2.3"),
        ("plain.example", "user:ada", ""),
        ("early.example", "user:ada", ""),
        ("x.example", "user:ada", ""),
        ("", "", ""),
    ],
)
async def test_the_accounts_source_before_the_routes_before_the_destinations(made, dns, domain, account, address):
    for name in ("a.named.example", "early.example", "x.example"):
        dns.add(name, "MX", "10 a.big.example")
    router = made(**SOURCES)
    way = router.way(mail(account=account), domain)
    assert way.source == Source("", address)
    if domain:
        assert (await routed(router, domain, account=account)).source == way.source


async def test_mail_of_two_sources_goes_to_two_sites(made):
    router = made(**SOURCES)
    one, other = known(router, "plain.example", account="user:own"), known(router, "plain.example")
    assert (one.groups, one.terms) == (other.groups, other.terms)
    assert one != other


async def test_a_sender_keeps_its_address_and_others_use_the_rest(made):
    router = made(sources=[pool("main", *range(1, 9))], routes=[route(["*"], "h", source="main")])
    senders = [f"user{number}@sender.example" for number in range(100)]
    first = [router.way(mail(sender), "x.example").source for sender in senders]
    assert first == [router.way(mail(sender, account="user:other"), "x.example").source for sender in senders]
    assert len(set(first)) == 8


async def test_a_domain_of_many_labels_is_no_work(made):
    router = made(sources=[pool("main", 1)], destinations=[{"domains": ["*"], "source": "main"}])
    assert router.way(mail("a@" + "a." * 120 + "example"), "a." * 120 + "example").source.ipv4 == "192.0.2.1"
