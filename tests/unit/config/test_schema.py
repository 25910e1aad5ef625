"""Values of options: what is accepted, as what, and how it is written back."""

import pytest
from pydantic import ValidationError

from relayd.config import schema, values
from relayd.config.schema import Credentials, Delivery, Destination, Dns, Limits, Local, Relay, Route, Settings, Source
from relayd.config.values import Endpoint


@pytest.mark.parametrize(
    ("text", "octets"), [("0", 0), ("500B", 500), ("256KB", 262144), ("50 mb", 52428800), ("1GB", 1 << 30), (7, 7)]
)
def test_sizes_are_octets_in_units_of_1024(text: object, octets: int) -> None:
    assert Limits.model_validate({"memory": text}).memory == octets


@pytest.mark.parametrize("text", ["", "MB", "1.5MB", "-1", "50XB", "1 0MB"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        Limits.model_validate({"memory": text})


@pytest.mark.parametrize(
    ("text", "seconds"), [("1s", 1), ("2m", 120), ("4h", 14400), ("5d", 432000), ("250ms", 0.25), (9, 9)]
)
def test_durations_are_seconds(text: object, seconds: float) -> None:
    assert Delivery.model_validate({"max_age": text}).max_age == seconds


@pytest.mark.parametrize("text", ["", "0s", "-1s", "2 weeks", "m", float("inf"), "9" * 400 + "s"])
def test_other_durations_are_refused(text: object) -> None:
    with pytest.raises(ValidationError):
        Delivery.model_validate({"max_age": text})


@pytest.mark.parametrize("octets", [0, 1, 500, 1023, 1024, 262144, 1 << 30, 3 << 40, 1_000_001])
def test_a_size_is_written_as_it_can_be_read(octets: int) -> None:
    assert Limits.model_validate({"memory": values.size_text(octets)}).memory == octets


@pytest.mark.parametrize("seconds", [0.25, 1, 90, 120, 9600, 14400, 432000])
def test_a_duration_is_written_as_it_can_be_read(seconds: float) -> None:
    assert Delivery.model_validate({"max_age": values.duration_text(seconds)}).max_age == seconds


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [("127.0.0.1:25", "127.0.0.1", 25), ("[::1]:2525", "::1", 2525), ("mx.example:0", "mx.example", 0)],
)
def test_endpoints(text: str, host: str, port: int) -> None:
    endpoint = Endpoint.model_validate(text)
    assert (endpoint.host, endpoint.port) == (host, port)
    assert str(endpoint) == text


@pytest.mark.parametrize(
    "text", ["127.0.0.1", ":25", "::1:25", "[::1]", "[x]:25", "a:65536", "a:-1", "a:٢٥", "a..b:25", "a b:25", "a\0:25"]
)
def test_other_endpoints_are_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        Endpoint.model_validate(text)


def test_interactive_accounts_are_named_as_inbound_names_them() -> None:
    delivery = Delivery.model_validate({"interactive_accounts": ["user:otp", "net:10.0.0.1/32", "net:2001:DB8::/32"]})
    assert delivery.interactive_accounts == ("user:otp", "net:10.0.0.1/32", "net:2001:db8::/32")


@pytest.mark.parametrize("account", ["", "otp", "user:", "net:", "net:10.0.0.1/8", "net:lan", "group:otp", 7])
def test_accounts_that_cannot_be_are_refused(account: object) -> None:
    with pytest.raises(ValidationError):
        Delivery.model_validate({"interactive_accounts": [account]})


@pytest.mark.parametrize("share", [-0.1, 0.95, 1, float("nan"), float("inf"), "many"])
def test_a_share_leaves_something_to_the_others(share: object) -> None:
    assert Delivery.model_validate({"interactive_share": 0.9}).interactive_share == 0.9
    with pytest.raises(ValidationError):
        Delivery.model_validate({"interactive_share": share})


def test_domain_patterns_become_routing_keys() -> None:
    route = Route.model_validate({"domains": ["*", "*.Example.NET", "bücher.example"], "next_hops": ["a:25"]})
    assert route.domains == ("*", "*.example.net", "xn--bcher-kva.example")


@pytest.mark.parametrize("pattern", ["", "*.", "a*.example", "user@example.net", "*.*", "a b"])
def test_other_domain_patterns_are_refused(pattern: str) -> None:
    with pytest.raises(ValidationError):
        Route.model_validate({"domains": [pattern], "next_hops": ["a:25"]})


@pytest.mark.parametrize(
    ("pattern", "key"),
    [
        ("News@Example.NET", "news@example.net"),
        ('"a b"@example.net', '"a b"@example.net'),
        ("*.Example.net", "*.example.net"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("ö@bücher.example", "ö@xn--bcher-kva.example"),
        ("*", "*"),
        ("<>", "<>"),
    ],
)
def test_sender_patterns_become_routing_keys(pattern: str, key: str) -> None:
    route = Route.model_validate({"domains": ["*"], "next_hops": ["a:25"], "senders": [pattern]})
    assert route.senders == (key,)


@pytest.mark.parametrize(
    "pattern", ["", "@example.net", "a@", "a@*.example", "a b@c.example", "<a@b.example>", "a@b\n"]
)
def test_other_sender_patterns_are_refused(pattern: str) -> None:
    with pytest.raises(ValidationError):
        Route.model_validate({"domains": ["*"], "next_hops": ["a:25"], "senders": [pattern]})


@pytest.mark.parametrize(
    ("account", "key"),
    [
        ("user:ada", "user:ada"),
        ("user:ada@example.net", "user:ada@example.net"),
        ("net:2001:DB8::/32", "net:2001:db8::/32"),
        ("net:192.0.2.7", "net:192.0.2.7/32"),
    ],
)
def test_accounts_are_as_envelopes_name_them(account: str, key: str) -> None:
    route = Route.model_validate({"domains": ["*"], "next_hops": ["a:25"], "accounts": [account]})
    assert route.accounts == (key,)


@pytest.mark.parametrize(
    "account", ["", "ada", "user:", "user: ", "user:a\n", "net:", "net:10.0.0.1/8", "network:10.0.0.0/8"]
)
def test_other_accounts_are_refused(account: str) -> None:
    with pytest.raises(ValidationError):
        Route.model_validate({"domains": ["*"], "next_hops": ["a:25"], "accounts": [account]})


@pytest.mark.parametrize(
    ("pattern", "key"), [("MX_1.Example.net.", "mx_1.example.net"), ("*.Example.NET", "*.example.net"), ("mx", "mx")]
)
def test_host_patterns_are_compared_in_lower_case(pattern: str, key: str) -> None:
    assert Destination.model_validate({"hosts": [pattern]}).hosts == (key,)


@pytest.mark.parametrize(
    "pattern", ["", "*", "*.", ".", "a..b", "192.0.2.1", "mx*.example", "a b", "a.example\n", "x" * 64]
)
def test_other_host_patterns_are_refused(pattern: str) -> None:
    with pytest.raises(ValidationError):
        Destination.model_validate({"hosts": [pattern]})


def test_a_next_hop_is_a_text_or_a_table() -> None:
    hops = ["a:25", {"host": "b", "port": 587, "weight": 3}, {"host": "c", "port": 465}, "[::1]:465"]
    route = Route.model_validate({"domains": ["*"], "next_hops": hops})
    assert [(hop.host, hop.port, hop.weight, hop.tls_at_once) for hop in route.next_hops] == [
        ("a", 25, 1, False),
        ("b", 587, 3, False),
        ("c", 465, 1, True),
        ("::1", 465, 1, True),
    ]
    assert route.model_dump(mode="json")["next_hops"] == [*hops[:2], "c:465", "[::1]:465"]


@pytest.mark.parametrize(
    "hop", [{"host": "a"}, {"host": "", "port": 25}, {"host": "a", "port": 25, "weight": 0}, {"host": "a", "port": 25, "weight": 10**400}, "a", "a:0", 25]
)  # fmt: skip
def test_other_next_hops_are_refused(hop: object) -> None:
    with pytest.raises(ValidationError):
        Route.model_validate({"domains": ["*"], "next_hops": [hop]})


@pytest.mark.parametrize(
    "address",
    [
        {},
        {"ipv4": ""},
        {"ipv4": 3},
        {"ipv4": "::1"},
        {"ipv4": "0.0.0.0"},
        {"ipv4": "224.0.0.1"},
        {"ipv6": "192.0.2.1"},
        {"ipv6": "::"},
        {"ipv6": "::ffff:192.0.2.1"},
        {"ipv6": "fe80::1%eth0"},
        {"ipv4": "192.0.2.1", "weight": 0},
        {"ipv4": "192.0.2.1", "hostname": "a b"},
    ],
)
def test_addresses_that_are_no_source_are_refused(address: object) -> None:
    with pytest.raises(ValidationError):
        Source.model_validate({"name": "main", "addresses": [address]})


@pytest.mark.parametrize("value", [0, 0.0002, -1, float("inf"), float("nan"), "fast"])
def test_other_rates_are_refused(value: object) -> None:
    with pytest.raises(ValidationError):
        Destination.model_validate({"domains": ["*"], "messages_per_second": value})


@pytest.mark.parametrize(
    "options",
    [{"username": ""}, {"username": "a\0b"}, {"password": ""}, {"password": "a\0b"}, {"token_command": ["a\0b"]}],
)
def test_credentials_that_no_mechanism_can_say_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Credentials.model_validate({"username": "ada", **options})


def test_a_password_is_shown_nowhere() -> None:
    credentials = Credentials.model_validate({"username": "ada", "password": "hunter2"})
    assert "hunter2" not in f"{credentials} {credentials!r} {credentials.model_dump_json()} {credentials.model_dump()}"


@pytest.mark.parametrize(
    ("options", "tls"),
    [({}, "opportunistic"), ({"credentials": {"username": "ada"}}, "verify"), ({"tls": "none"}, "none")],
)
def test_a_password_goes_to_nobody_unknown_unless_that_is_said(options: dict[str, object], tls: str) -> None:
    assert Route.model_validate({"domains": ["*"], "next_hops": ["a:25"], **options}).tls_policy.value == tls


@pytest.mark.parametrize("server", ["127.0.0.1", "127.0.0.1:5353", "::1", "[::1]:53"])
def test_nameservers_are_addresses(server: str) -> None:
    assert Dns.model_validate({"nameservers": [server]}).nameservers == (server,)


def test_a_header_has_room_in_what_is_kept_in_memory() -> None:
    assert Limits().inline_body == 512 * 1024
    assert Limits.model_validate({"inline_body": "300KB"}).inline_body == 300 * 1024
    with pytest.raises(ValidationError, match="above header_size"):
        Limits.model_validate({"inline_body": "256KB"})


@pytest.mark.parametrize(
    ("section", "value"),
    [
        (Dns, {"nameservers": ["dns.example"]}),
        (Relay, {"trusted_networks": ["10.0.0.1/8"]}),
        (Relay, {"trusted_networks": [3]}),
        (Local, {"postmaster": "nobody"}),
        (Local, {"postmaster": "ö@example.net"}),
        (Settings, {"hostname": "has space"}),
        (Settings, {"hostname": "a.example\n"}),
        (Settings, {"hostname": "a.example", "workers": 0}),
    ],
)
def test_refused(section: type[schema.Section], value: object) -> None:
    with pytest.raises(ValidationError):
        section.model_validate(value)
