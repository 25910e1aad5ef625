"""What options cannot say together: quotas, sources, destinations, routes, accounts and credentials.

Owns contradictions between options that are right by themselves; looks whether files can be read, but reads none.
`load` calls it and reports what it finds, with everything else.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from relayd.config.schema import Credentials, Route, Settings, SiteOptions, Source
from relayd.message.site import Family, Tls


class Contradiction(NamedTuple):
    """The option that should be different, what it says ("" where that is too much, or secret), and why."""

    key: str
    value: str
    reason: str


def of_sources(settings: Settings) -> Iterator[Contradiction]:
    """Names, accounts and addresses that are there twice. O(all of them)."""
    names: dict[str, str] = {}
    accounts: dict[str, str] = {}
    for number, source in enumerate(settings.sources):
        key = f"sources[{number}]"
        yield from _repeated(names, f"{key}.name", source.name)
        for position, account in enumerate(source.accounts):
            yield from _repeated(accounts, f"{key}.accounts[{position}]", account)
        addresses: dict[str, str] = {}
        for position, address in enumerate(source.addresses):
            for text in filter(None, (address.ipv4, address.ipv6)):
                yield from _repeated(addresses, f"{key}.addresses[{position}]", text)


def of_quotas(settings: Settings) -> Iterator[Contradiction]:
    """Accounts with two quotas, and two for all that have none of their own. O(all of them)."""
    accounts: dict[str, str] = {}
    usual = ""
    for number, quota in enumerate(settings.quotas):
        key = f"quotas[{number}].accounts"
        for position, account in enumerate(quota.accounts):
            yield from _repeated(accounts, f"{key}[{position}]", account)
        if not quota.accounts:
            if usual:
                yield Contradiction(key, "", f"needed, as {usual} is empty, too")
            usual = usual or key


def _repeated(seen: dict[str, str], key: str, value: str) -> Iterator[Contradiction]:
    if (first := seen.setdefault(value, key)) != key:
        yield Contradiction(key, value, f"already said by {first}")


def of_destinations(settings: Settings) -> Iterator[Contradiction]:
    """A source where the hosts decide: it has to be chosen before they are known."""
    earlier = ""
    for number, destination in enumerate(settings.destinations):
        key = f"destinations[{number}]"
        if destination.hosts:
            earlier = earlier or key
        if destination.source is not None and earlier:
            why = f"needs a place before {earlier}, which has hosts, and none itself: they are known too late"
            yield Contradiction(f"{key}.source", destination.source, why)


def of_routes(settings: Settings) -> Iterator[Contradiction]:
    """TLS that a route asks for and rules out, and credentials that prove nothing, or that anyone could read."""
    for number, route in enumerate(settings.routes):
        key = f"routes[{number}]"
        if route.tls is Tls.NONE:
            for position, hop in enumerate(route.next_hops):
                if hop.tls_at_once:
                    yield Contradiction(f"{key}.next_hops[{position}]", str(hop), 'TLS at once, but tls is "none"')
        if route.credentials:
            yield from _of_credentials(f"{key}.credentials", route.credentials)
            if route.tls_policy not in {Tls.ENCRYPT, Tls.VERIFY} and not _stays_here(route):
                why = 'credentials may go in clear: "verify" or "encrypt" is needed'
                yield Contradiction(f"{key}.tls", route.tls_policy.value, why)


def _stays_here(route: Route) -> bool:
    """Whether every next hop is a loopback address, where nobody listens on the way."""

    def is_loopback(host: str) -> bool:
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False

    return all(is_loopback(hop.host) for hop in route.next_hops)


def _of_credentials(key: str, credentials: Credentials) -> Iterator[Contradiction]:
    passwords = {"password": credentials.password, "password_file": credentials.password_file}
    tokens = {"token_file": credentials.token_file, "token_command": credentials.token_command or None}
    given = [name for name, value in {**passwords, **tokens}.items() if value is not None]
    if len(given) != 1:
        choices = "password, password_file, token_file or token_command"
        yield Contradiction(key, "", f"{' and '.join(given)}: one is enough" if given else f"{choices} is needed")
    elif credentials.mechanism and (credentials.mechanism == "xoauth2") != (given[0] in tokens):
        yield Contradiction(f"{key}.mechanism", "", f"{credentials.mechanism} takes no {given[0].partition('_')[0]}")
    for name in ("password_file", "token_file"):
        path = getattr(credentials, name)
        if isinstance(path, Path) and (reason := unreadable(path)):
            yield Contradiction(f"{key}.{name}", "", f"{path} {reason}")


def of_references(settings: Settings) -> Iterator[Contradiction]:
    """Sources that there are not, or that cannot reach the addresses that are asked for."""
    sources = {source.name: source for source in settings.sources}
    for key, options in _site_options(settings):
        if options.source is None:
            continue
        if (source := sources.get(options.source)) is None:
            yield Contradiction(f"{key}.source", options.source, "no [[sources]] of that name")
        elif not _reaches(source, options.addresses):
            yield Contradiction(
                f"{key}.addresses", options.addresses.value, f'source "{source.name}" has addresses of the other family'
            )


def of_accounts(settings: Settings) -> Iterator[Contradiction]:
    """Networks that nobody's mail comes from, as they do not stand in relay.trusted_networks like that."""
    trusted = {f"net:{network}" for network in settings.relay.trusted_networks}
    places = [("delivery.interactive_accounts", settings.delivery.interactive_accounts)]
    places += [(f"quotas[{number}].accounts", quota.accounts) for number, quota in enumerate(settings.quotas)]
    places += [(f"sources[{number}].accounts", source.accounts) for number, source in enumerate(settings.sources)]
    places += [(f"routes[{number}].accounts", route.accounts or ()) for number, route in enumerate(settings.routes)]
    for key, accounts in places:
        for position, account in enumerate(accounts):
            if account.startswith("net:") and account not in trusted:
                yield Contradiction(f"{key}[{position}]", account, "not a network of relay.trusted_networks")


def _site_options(settings: Settings) -> Iterator[tuple[str, SiteOptions]]:
    yield from ((f"destinations[{number}]", options) for number, options in enumerate(settings.destinations))
    yield from ((f"routes[{number}]", options) for number, options in enumerate(settings.routes))


def _reaches(source: Source, family: Family) -> bool:
    """Whether each address of the source can be used for the family."""
    match family:
        case Family.ANY:
            return True
        case Family.IPV4:
            return all(address.ipv4 for address in source.addresses)
        case Family.IPV6:
            return all(address.ipv6 for address in source.addresses)


def unreadable(path: Path) -> str:
    """Why a file cannot be read; "" when it can."""
    try:
        path.open("rb").close()
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return ""


Check = Callable[[Settings], Iterator[Contradiction]]

CHECKS: tuple[tuple[set[str], Check], ...] = (
    ({"quotas"}, of_quotas),
    ({"sources"}, of_sources),
    ({"destinations"}, of_destinations),
    ({"routes"}, of_routes),
    ({"sources", "destinations", "routes"}, of_references),
    ({"delivery", "quotas", "relay", "routes", "sources"}, of_accounts),
)
"""Each with the sections it reads."""
