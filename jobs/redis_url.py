"""Redis URLs: validation, and a form that redis-py and Kombu read alike.

``redis+sentinel://user:password@host,host/name/number`` names a primary that Redis Sentinel knows. redis-py has no
URLs for that; this is the form of `limits`, Prefect and others.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlencode, urlsplit

#: Schemes for Sentinel, without and with TLS.
_SENTINEL, _SENTINEL_TLS = "redis+sentinel", "rediss+sentinel"
SENTINEL_SCHEMES = (_SENTINEL, _SENTINEL_TLS)
TLS_SCHEMES = ("rediss", _SENTINEL_TLS)
SCHEMES = ("redis", "rediss", "unix", *SENTINEL_SCHEMES)
DEFAULT_PORT, DEFAULT_SENTINEL_PORT = 6379, 26379
#: Options that only a URL with TLS may have: all of `_TLS`.
_CERT_REQS, _CHECK_HOSTNAME = "ssl_cert_reqs", "ssl_check_hostname"
#: Those of `_TLS` that name files or a folder.
_TLS_FILES = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile")
_TLS = {*_TLS_FILES, "ssl_password", _CERT_REQS, _CHECK_HOSTNAME}
#: Options that only a URL with Sentinel may have: its own user and password.
_SENTINEL_OPTIONS = {"sentinel_username", "sentinel_password"}


@dataclass(frozen=True)
class SentinelUrl:
    """The parts of a URL with Sentinel."""

    #: Hosts and ports of the sentinels.
    hosts: list[tuple[str, int]]
    #: The name under which they watch the primary.
    name: str
    number: int
    #: Of the Redis servers.
    username: str | None
    password: str | None
    #: Of the sentinels.
    sentinel_username: str | None
    sentinel_password: str | None
    #: redis-py's options for TLS, which sentinels and Redis servers share; None without it.
    tls: dict[str, Any] | None


def checked(value: str) -> str:
    """Validate a Redis URL; return it with all its parts spelled out.

    Raises:
        ValueError: it is not a Redis URL, or an option does not exist or has a wrong value.
    """
    scheme, separator, _ = value.partition("://")
    if not separator or scheme not in SCHEMES:
        first, last = ", ".join(f"{each}://" for each in SCHEMES[:-1]), f"{SCHEMES[-1]}://"
        raise ValueError(f"it should start with {first} or {last}")
    if "#" in value:
        raise ValueError("a # in it must be written %23")
    url, places = _split(value)
    options = _options(url)
    if scheme == "unix":
        place, number = _socket(url), options.pop("db", "0")
    else:
        place, path = _servers(url, places)
        if path.strip("/") and "db" in options:
            raise ValueError("the database's number is given twice")
        number = options.pop("db", "") or path.removeprefix("/") or "0"
    if not number.isdecimal():
        raise ValueError(f"{number!r} is not the number of a database")
    _check_tls(options)
    if scheme == "unix":
        options["db"] = number
    else:
        place += f"/{number}"
    query = f"?{urlencode(options, quote_via=quote)}" if options else ""
    return f"{scheme}://{_user(url)}{place}{query}"


def _options(url: SplitResult) -> dict[str, str]:
    """Return the options of a URL, each of which exists for its scheme."""
    pairs = parse_qsl(url.query, keep_blank_values=True)
    for option, _ in pairs:
        _check_option(option, url.scheme)
    options = dict(pairs)
    if len(options) < len(pairs):
        raise ValueError("an option is given twice")
    return options


def _socket(url: SplitResult) -> str:
    """Return the path of the URL of a socket, quoted."""
    path = unquote(url.path)
    if url.hostname or not path.strip("/"):
        raise ValueError(
            "a socket's URL has three slashes and then the path: unix:///run/redis.sock"
        )
    return quote(path)


def _servers(url: SplitResult, places: list[tuple[str, int]]) -> tuple[str, str]:
    """Return the hosts of a URL, with the name of the sentinels' primary if they are sentinels, and the rest of its path."""
    hosts = ",".join(_spelled(host, port) for host, port in places)
    if url.scheme not in SENTINEL_SCHEMES:
        if len(places) > 1:
            raise ValueError(
                "only sentinels may be several hosts: redis+sentinel://host1,host2,host3/mymaster"
            )
        return hosts, unquote(url.path)
    name, path = map(unquote, url.path.removeprefix("/").partition("/")[::2])
    if not name:
        raise ValueError(
            "after the sentinels it should have the name of their primary: "
            "redis+sentinel://host1,host2,host3/mymaster"
        )
    return f"{hosts}/{quote(name, safe='')}", path


def _split(value: str) -> tuple[SplitResult, list[tuple[str, int]]]:
    """Return the parts of a URL, and its hosts with their ports. The parts have the first host alone.

    Raises:
        ValueError: a host or port cannot be read.
    """
    scheme, _, rest = value.partition("://")
    end = re.search(r"[/?]|$", rest)
    assert end is not None  # noqa: S101 ("$" always matches)
    user, at, hosts = rest[: end.start()].rpartition("@")
    default_port = DEFAULT_SENTINEL_PORT if scheme in SENTINEL_SCHEMES else DEFAULT_PORT
    places = []
    for host in hosts.split(","):
        try:
            place = urlsplit(f"//{host}")
            places.append((place.hostname or "localhost", place.port or default_port))
        except ValueError as error:  # Its message may contain a part of the password.
            raise ValueError(
                "its port is not a number from 0 to 65535; in a password, what is special must be percent-encoded"
            ) from error
    first = hosts.partition(",")[0]
    return urlsplit(f"{scheme}://{user}{at}{first}{rest[end.start() :]}"), places


def _spelled(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _user(url: SplitResult) -> str:
    """Return the user and password of a URL, quoted, up to the ``@``."""
    user = "" if url.username is None else quote(unquote(url.username), safe="")
    if url.password is not None:
        user += f":{quote(unquote(url.password), safe='')}"
    return f"{user}@" if user else ""


def _check_option(option: str, scheme: str) -> None:
    if option == "db":
        return
    sentinel = option in _SENTINEL_OPTIONS
    if option not in _TLS and not sentinel:
        names = ", ".join(["db", *sorted(_SENTINEL_OPTIONS | _TLS)[:-1]])
        raise ValueError(
            f"{option} is not an option it takes; {names} and {max(_SENTINEL_OPTIONS | _TLS)} are"
        )
    if sentinel and scheme not in SENTINEL_SCHEMES:
        raise ValueError(f"{option} needs Sentinel: redis+sentinel://…")
    if option in _TLS and scheme not in TLS_SCHEMES:
        raise ValueError(f"{option} needs TLS: rediss://… or rediss+sentinel://…")


def _check_tls(options: dict[str, str]) -> None:
    for option, values in (
        (_CERT_REQS, ("none", "optional", "required")),
        (_CHECK_HOSTNAME, ("true", "false")),
    ):
        if options.get(option, values[0]) not in values:
            raise ValueError(f"{option} should be one of {', '.join(values)}")


def tls_files(redis_url: str) -> dict[str, str]:
    """Return the files and the folder that the options of a URL name, by option."""
    options = dict(parse_qsl(_split(redis_url)[0].query))
    return {option: options[option] for option in _TLS_FILES if option in options}


def sentinel_url(redis_url: str) -> SentinelUrl | None:
    """Return the parts of a URL that `checked` returned; None if it has no Sentinel."""
    url, hosts = _split(redis_url)
    if url.scheme not in SENTINEL_SCHEMES:
        return None
    options = dict(parse_qsl(url.query))
    name, number = url.path.removeprefix("/").split("/")
    return SentinelUrl(
        hosts=hosts,
        name=unquote(name),
        number=int(number),
        username=unquote(url.username) if url.username else None,
        password=None if url.password is None else unquote(url.password),
        sentinel_username=options.get("sentinel_username"),
        sentinel_password=options.get("sentinel_password"),
        tls=_tls(options) if url.scheme == _SENTINEL_TLS else None,
    )


def _tls(options: dict[str, str]) -> dict[str, Any]:
    """Return redis-py's options for TLS."""
    tls: dict[str, Any] = {_CERT_REQS: "required"}
    tls |= {option: value for option, value in options.items() if option in _TLS}
    if _CHECK_HOSTNAME in tls:
        tls[_CHECK_HOSTNAME] = tls[_CHECK_HOSTNAME] == "true"
    return tls


def broker_options(redis_url: str) -> dict[str, Any]:
    """Return Celery's settings for a URL that `checked` returned.

    Kombu writes the URLs of Unix sockets differently, and verifies no certificate by default. For Sentinel, see
    `jobs.broker_channels.SentinelChannel`.
    """
    url, places = _split(redis_url)
    options = dict(parse_qsl(url.query))
    if url.scheme == "unix":
        return {
            "broker_url": f"socket://{url.netloc}{url.path}?virtual_host={options.get('db', 0)}",
            "broker_transport": "jobs.broker_channels:UnixTransport",
        }
    settings: dict[str, Any] = {"broker_transport": "jobs.broker_channels:Transport"}
    scheme, path = "redis", url.path
    if url.scheme in SENTINEL_SCHEMES:
        settings["broker_transport"] = "jobs.broker_channels:SentinelTransport"
        scheme, path = "sentinel", f"/{url.path.rpartition('/')[2]}"
    settings["broker_url"] = f"{scheme}://{_user(url)}{_spelled(*places[0])}{path}"
    if url.scheme in TLS_SCHEMES:
        settings["broker_use_ssl"] = _tls(options)
    return settings
