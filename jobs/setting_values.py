"""Parsers and checks of the values of settings: from a variable's text to what it means."""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit

from jobs.pipeline import Role
from jobs.webhooks.targets import Network

MAX_SLOTS = 1024


def by_role(value: str) -> dict[Role, str]:
    """Parse ``actor=…,critic=…,regenerator=…``; return the reference of each role.

    Raises:
        ValueError: a role is unknown, missing or given twice.
    """
    roles = ", ".join(Role)
    adapters: dict[Role, str] = {}
    for part in value.split(","):
        name, equals, reference = (piece.strip() for piece in part.partition("="))
        if name not in set(Role):
            raise ValueError(f"{name!r} is not a role; the roles are {roles}")
        if not equals or not reference:
            raise ValueError(f"{name} needs a folder, a hub id or a model's name: {name}=…")
        if name in adapters:
            raise ValueError(f"{name} is given twice")
        adapters[Role(name)] = reference
    if missing := [role for role in Role if role not in adapters]:
        verb = "is" if len(missing) == 1 else "are"
        raise ValueError(f"{', '.join(missing)} {verb} missing; all of {roles} are needed")
    return adapters


def number_of_slots(value: object) -> object:
    """Check that a value is a number of slots or ``auto``; return it.

    Raises:
        ValueError: it is neither.
    """
    if value == "auto" or (str(value).isdecimal() and 1 <= int(str(value)) <= MAX_SLOTS):
        return value
    raise ValueError(f"it should be a whole number from 1 to {MAX_SLOTS}, or auto")


def device_name(value: str) -> str:
    """Check that a value names a device; return it.

    Raises:
        ValueError: it does not.
    """
    if re.fullmatch(r"auto|cpu|cuda(:\d{1,4})?", value, re.ASCII):
        return value
    raise ValueError("it should be auto, cpu, cuda, or cuda:N with the number of a GPU")


def networks(value: str) -> tuple[Network, ...]:
    """Parse networks such as ``10.0.0.0/8,fd00::/8``.

    Raises:
        ValueError: a part is no network.
    """
    return tuple(ipaddress.ip_network(part.strip()) for part in value.split(","))


class Witness(NamedTuple):
    """A witness of the transparency log."""

    #: Its verifier key.
    key: str
    #: Where it is asked: the address before ``/add-checkpoint``.
    url: str


def witnesses(value: str) -> tuple[Witness, ...]:
    """Parse witnesses such as ``witness.example/w1+3f2a…+BA… https://witness.example/w1, …``.

    Raises:
        ValueError: a part is no key and address.
    """
    # Imported here since few commands need it.
    from jobs.tlog.cosignature import Cosigner

    found = []
    for part in value.split(","):
        words = part.split()
        if len(words) != 2:
            raise ValueError(
                f"{part.strip()!r} should be a key and an address: NAME+ID+KEY https://…"
            )
        key, url = words
        Cosigner.parse(key)
        if not is_http(urlsplit(url)):
            raise ValueError(f"{url!r} should be an address that begins with https:// or http://")
        found.append(Witness(key, url))
    if len({witness.key for witness in found}) < len(found):
        raise ValueError("a witness is given twice")
    return tuple(found)


def engine_urls(value: str) -> tuple[str, ...]:
    """Parse the addresses of servers: ``http://gpu1:8000/v1,http://gpu2:8000/v1``.

    Raises:
        ValueError: a part is no such address, or is given twice.
    """
    urls: list[str] = []
    for part in value.split(","):
        url = part.strip().rstrip("/")
        parts = urlsplit(url)
        if not is_http(parts):
            raise ValueError("an address should look like http://host:8000/v1")
        if parts.username is not None or parts.password is not None:
            raise ValueError("an address has no user and no password; set HELIXQ_ENGINE_API_KEY")
        if not parts.path.endswith("/v1") or parts.query or parts.fragment:
            raise ValueError("an address ends in /v1, as in http://host:8000/v1")
        _ = parts.port  # It raises an error if it is none.
        if url in urls:
            raise ValueError("an address is given twice")
        urls.append(url)
    return tuple(urls)


def is_http(url: SplitResult) -> bool:
    """Return whether a URL is the address of an HTTP server."""
    return url.scheme in ("http", "https") and bool(url.hostname)
