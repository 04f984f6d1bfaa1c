"""Where webhooks may be sent: the form of URLs, and the addresses that may be connected to.

A URL is checked when it is registered, and an address each time before it is connected to, after its name
was resolved: the name may lead elsewhere by then.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection
from dataclasses import dataclass

from jobs.errors import UserError

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

MAX_URL = 2048
_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z_.-]{1,253})(?::(?P<port>\d{1,5}))?"
    r"(?P<target>[/?][!-\"$-;=?-\[\]_a-z~]*)?",
    re.IGNORECASE,
)
_DEFAULT_PORTS = {"http": 80, "https": 443}
#: Ports below it belong to other services, such as mail, and are refused.
_FIRST_FREE_PORT = 1024

#: Not public, by IANA's registries of special-purpose addresses, multicast included. `ipaddress` knows most
#: of them, but not the same in each version of Python.
_SPECIAL_IPV4 = [
    ipaddress.IPv4Network(text)
    for text in (
        "0.0.0.0/8",  # this network; Linux connects 0.0.0.0 to itself
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # shared between carriers (CGNAT)
        "127.0.0.0/8",  # loopback
        "169.254.0.0/16",  # link-local, with the metadata services of clouds
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # IETF protocol assignments
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",  # AS112
        "192.52.193.0/24",  # AMT
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private
        "192.175.48.0/24",  # AS112
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
    )
]
#: The public part of IPv6. All else is special: loopback, ``fc00::/7`` (private), ``fe80::/10``
#: (link-local), ``ff00::/8`` (multicast), ``64:ff9b::/96`` and ``64:ff9b:1::/48`` (NAT64), and so on.
_GLOBAL_IPV6 = ipaddress.IPv6Network("2000::/3")
_SPECIAL_IPV6 = [
    ipaddress.IPv6Network(text)
    for text in (
        "2001::/23",  # IETF protocol assignments, with Teredo, which contains IPv4 addresses
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4, which contains IPv4 addresses
        "2620:4f:8000::/48",  # AS112
        "3fff::/20",  # documentation
    )
]


class TargetError(UserError):
    """A URL that webhooks cannot be sent to. The message says why."""


@dataclass(frozen=True)
class Target:
    """The parts of a URL."""

    scheme: str
    #: A name, or an address without brackets.
    host: str
    port: int
    #: Path and query.
    target: str

    @property
    def is_encrypted(self) -> bool:
        return self.scheme == "https"


def parse(url: str) -> Target:
    """Return the parts of a URL.

    What is parsed here is what is connected to: no second parser reads the URL.

    Raises:
        TargetError: webhooks cannot be sent to it, whatever the settings.
    """
    if len(url) > MAX_URL:
        raise TargetError(f"the URL of a webhook has at most {MAX_URL} characters")
    if "@" in re.split(r"[/?#]", url.partition("://")[2])[0]:
        raise TargetError("the URL of a webhook cannot have a user name or a password")
    match = _URL.fullmatch(url)
    if match is None:
        raise TargetError(
            "the URL of a webhook should look like https://example.com/path: in ASCII, without white space "
            "and without a fragment"
        )
    scheme = match["scheme"].lower()
    port = int(match["port"] or _DEFAULT_PORTS[scheme])
    if port not in _DEFAULT_PORTS.values() and not _FIRST_FREE_PORT <= port <= 65_535:
        raise TargetError(
            f"port {port} cannot be the port of a webhook: use 443, 80, or one from {_FIRST_FREE_PORT} on"
        )
    host = match["host"]
    if host.startswith("["):
        host = host[1:-1]
        if parse_address(host) is None:
            raise TargetError(f"[{host}] is not an IPv6 address")
    elif any(not 1 <= len(label) <= 63 for label in host.removesuffix(".").split(".")):
        raise TargetError(f"{host} is not a host name")
    target = match["target"] or "/"
    return Target(scheme, host, port, target if target.startswith("/") else f"/{target}")


def check(url: str, allowed: Collection[Network]) -> None:
    """Check a URL that is to be registered, as far as that is possible without resolving its name.

    Args:
        url: the URL.
        allowed: networks with addresses that are allowed though they are not public.

    Raises:
        TargetError: webhooks cannot be sent to it.
    """
    target = parse(url)
    address = parse_address(target.host)
    if address is None and target.host.lower().rstrip(".") == "localhost":
        address = ipaddress.IPv4Address("127.0.0.1")
    if address is not None:
        reason = refusal(address, allowed, encrypted=target.is_encrypted)
        if reason:
            raise TargetError(f"webhooks cannot be sent to {target.host}: {reason}")
    elif not target.is_encrypted and not allowed:
        raise TargetError("the URL of a webhook should begin with https://")


def parse_address(text: str) -> Address | None:
    """Return the address that a text is; None if it is something else, such as a name."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def refusal(address: Address, allowed: Collection[Network], *, encrypted: bool) -> str | None:
    """Return why an address must not be connected to; None if it may be.

    Args:
        address: the address itself, not a name that leads to it.
        allowed: networks with addresses that are allowed though they are not public, and without TLS.
        encrypted: whether the connection uses TLS.
    """
    # The system connects to the IPv4 address that an IPv4-mapped one contains.
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if any(address in network for network in allowed if network.version == address.version):
        return None
    if not _is_public(address):
        return f"{address} is not a public address (HELIXQ_WEBHOOK_ALLOWED_NETWORKS can allow it)"
    if not encrypted:
        return f"{address} is a public address, which needs https"
    return None


def _is_public(address: Address) -> bool:
    if isinstance(address, ipaddress.IPv4Address):
        special: Collection[Network] = _SPECIAL_IPV4
        return not any(address in network for network in special)
    return address in _GLOBAL_IPV6 and not any(address in network for network in _SPECIAL_IPV6)
