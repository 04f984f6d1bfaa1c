"""Redis URLs: validation, and a form that redis-py and Kombu read alike."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

SCHEMES = ("redis", "rediss", "unix")
DEFAULT_PORT = 6379
#: Options that only a URL with TLS may have.
_CERT_REQS, _CHECK_HOSTNAME = "ssl_cert_reqs", "ssl_check_hostname"
_TLS = {
    "ssl_ca_certs",
    "ssl_ca_path",
    "ssl_certfile",
    "ssl_keyfile",
    "ssl_password",
    _CERT_REQS,
    _CHECK_HOSTNAME,
}


def checked(value: str) -> str:
    """Validate a Redis URL; return it with all its parts spelled out.

    Raises:
        ValueError: it is not a Redis URL, or an option does not exist or has a wrong value.
    """
    url = urlsplit(value)
    if url.scheme not in SCHEMES or "://" not in value:
        raise ValueError("it should start with redis://, rediss:// or unix://")
    if url.fragment:
        raise ValueError("a # in it must be written %23")
    try:
        port = url.port
    except ValueError as error:  # Its message may contain a part of the password.
        raise ValueError(
            "its port is no number from 0 to 65535; in a password, what is special must be percent-encoded"
        ) from error
    options = parse_qsl(url.query, keep_blank_values=True)
    for option, _ in options:
        _check_option(option, url.scheme)
    options_by_name = dict(options)
    if len(options_by_name) < len(options):
        raise ValueError("an option is given twice")
    path = unquote(url.path)
    if url.scheme == "unix":
        if url.hostname or not path.strip("/"):
            raise ValueError(
                "a socket's URL has three slashes and then the path: unix:///run/redis.sock"
            )
        place, number = quote(path), options_by_name.pop("db", "0")
    else:
        if path.strip("/") and "db" in options_by_name:
            raise ValueError("the database's number is given twice")
        host = url.hostname or "localhost"
        place = f"[{host}]" if ":" in host else host
        place += f":{port or DEFAULT_PORT}"
        number = options_by_name.pop("db", "") or path.removeprefix("/") or "0"
    if not number.isdecimal():
        raise ValueError(f"{number!r} is not the number of a database")
    _check_tls(options_by_name)
    if url.scheme == "unix":
        options_by_name = {"db": number}
    else:
        place += f"/{number}"
    user = "" if url.username is None else quote(unquote(url.username), safe="")
    if url.password is not None:
        user += f":{quote(unquote(url.password), safe='')}"
    query = f"?{urlencode(options_by_name, quote_via=quote)}" if options_by_name else ""
    return f"{url.scheme}://{user}{'@' if user else ''}{place}{query}"


def _check_option(option: str, scheme: str) -> None:
    if option == "db":
        return
    if option not in _TLS:
        raise ValueError(
            f"{option} is not an option it takes; db and {', '.join(sorted(_TLS))} are"
        )
    if scheme != "rediss":
        raise ValueError(f"{option} needs TLS: rediss://…")


def _check_tls(options: dict[str, str]) -> None:
    for option, values in (
        (_CERT_REQS, ("none", "optional", "required")),
        (_CHECK_HOSTNAME, ("true", "false")),
    ):
        if options.get(option, values[0]) not in values:
            raise ValueError(f"{option} should be one of {', '.join(values)}")


def broker_options(redis_url: str) -> dict[str, Any]:
    """Return Celery's settings for a URL that `checked` returned.

    Kombu writes the URLs of Unix sockets differently, and verifies no certificate by default.
    """
    url = urlsplit(redis_url)
    options = dict(parse_qsl(url.query))
    if url.scheme == "unix":
        return {
            "broker_url": f"redis+socket://{url.netloc}{url.path}?virtual_host={options.get('db', 0)}"
        }
    address = url._replace(scheme="redis", query="").geturl()
    if url.scheme == "redis":
        return {"broker_url": address}
    tls: dict[str, Any] = {_CERT_REQS: "required", **options}
    if _CHECK_HOSTNAME in tls:
        tls[_CHECK_HOSTNAME] = tls[_CHECK_HOSTNAME] == "true"
    return {"broker_url": address, "broker_use_ssl": tls}
