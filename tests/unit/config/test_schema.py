"""Values of options: what is accepted, as what, and how it is written back."""

import pytest
from pydantic import ValidationError

from relayd.config import schema
from relayd.config.schema import Delivery, Dns, Endpoint, Limits, Local, Relay, Route, Settings


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
    assert Limits.model_validate({"memory": schema.size_text(octets)}).memory == octets


@pytest.mark.parametrize("seconds", [0.25, 1, 90, 120, 9600, 14400, 432000])
def test_a_duration_is_written_as_it_can_be_read(seconds: float) -> None:
    assert Delivery.model_validate({"max_age": schema.duration_text(seconds)}).max_age == seconds


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
