"""Database URLs: validation, and SQLAlchemy's form of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlalchemy as sa

#: An option of PostgreSQL URLs that is not libpq's: the number of executions after which a statement is
#: prepared in the server, or ``none``.
PREPARE_THRESHOLD = "prepare_threshold"

#: Options of libpq that HelixQ does not work with.
_UNSUPPORTED = {"replication"}
#: Options that must be whole numbers. libpq checks them only after it has reached a server.
_INTEGERS = {
    "connect_timeout",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_count",
    "tcp_user_timeout",
}


def checked(value: str) -> str:
    """Validate a database URL; return it in SQLAlchemy's form.

    Raises:
        ValueError: it is not a database URL, or an option does not exist or has a wrong value.
    """
    try:
        url = sa.make_url(_with_one_host(value.replace("postgres://", "postgresql://", 1)))
    except (sa.exc.ArgumentError, ValueError) as error:
        raise ValueError("it is not a database URL such as postgresql://user@host/name") from error
    if url.get_backend_name() == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
        _check_postgresql(url)
    elif url.get_backend_name() == "sqlite":
        url = url.set(drivername="sqlite")
        _check_sqlite(url)
    else:
        raise ValueError("only sqlite:///… and postgresql://… are supported")
    return url.render_as_string(hide_password=False)


def of_file(file: Path) -> str:
    """Return the URL of a SQLite file."""
    return sa.URL.create("sqlite", database=str(file)).render_as_string()


def _with_one_host(value: str) -> str:
    """Move several hosts, and sockets, to options of the URL, where SQLAlchemy accepts them.

    libpq, and so psql, also accepts ``postgresql://a:5432,b:5432/name`` and
    ``postgresql://%2Frun%2Fpostgresql/name``.
    """
    scheme, separator, rest = value.partition("://")
    end = min(position for mark in "/?" if (position := f"{rest}/?".find(mark)) >= 0)
    authority, rest = rest[:end], rest[end:]
    user, at, places = authority.rpartition("@")
    if not scheme.startswith("postgresql") or not ("," in places or "%2F" in places.upper()):
        return value
    hosts, ports = [], []
    for place in places.split(","):
        host, _, port = place.rpartition(":") if _has_port(place) else (place, "", "")
        hosts.append(host.removeprefix("[").removesuffix("]"))
        ports.append(port)
    path, _, query = rest.partition("?")
    where = f"host={','.join(hosts)}" + (f"&port={','.join(ports)}" if any(ports) else "")
    return f"{scheme}{separator}{user}{at}{path}?{where}" + (f"&{query}" if query else "")


def has_several_hosts(url: sa.URL) -> bool:
    """Return whether a PostgreSQL URL that `checked` returned names several hosts."""
    hosts = url.query.get("host", ())
    return len(hosts) > 1 if isinstance(hosts, tuple) else "," in hosts


def _has_port(place: str) -> bool:
    return place.rpartition("]")[2].count(":") == 1


def _check_postgresql(url: sa.URL) -> None:
    # Imported here because it takes a while, and SQLite does not need it.
    from psycopg import pq
    from psycopg.conninfo import make_conninfo

    supported = {option.keyword.decode() for option in pq.Conninfo.get_defaults()} - _UNSUPPORTED
    for option, value in url.query.items():
        if option not in supported | {PREPARE_THRESHOLD}:
            raise ValueError(
                f"{option} is not an option it takes; those of libpq and {PREPARE_THRESHOLD} are"
            )
        if option in _INTEGERS and not (isinstance(value, str) and value.lstrip("-").isdecimal()):
            raise ValueError(f"{option} should be one whole number")
        if not isinstance(value, str) and option != "host":
            raise ValueError(f"{option} is given twice")
    encoding = str(url.query.get("client_encoding", "utf8")).lower().replace("-", "")
    if encoding not in ("utf8", "unicode", "auto"):
        raise ValueError("client_encoding can only be UTF8: HelixQ speaks nothing else")
    prepare_threshold(url)
    dialect: Any = url.get_dialect()()
    try:
        _, options = dialect.create_connect_args(url)
    except (sa.exc.ArgumentError, ValueError) as error:
        raise ValueError(f"its hosts and ports cannot be read: {error}") from error
    # libpq checks the values before it fails to find a server in the folder "/".
    hosts = ",".join("/" for _ in str(options.get("host", "")).split(","))
    options |= {"host": hosts, "dbname": options.get("dbname", "")}
    options.pop("hostaddr", None)
    options.pop(PREPARE_THRESHOLD, None)
    try:
        attempt = pq.PGconn.connect_start(make_conninfo(**options).encode())
    except Exception as error:
        raise ValueError(str(error)) from error
    message = attempt.error_message.decode(errors="replace").strip()
    attempt.finish()
    if message and not message.startswith("connection to server"):
        raise ValueError(message.splitlines()[0])


def prepare_threshold(url: sa.URL) -> int | None:
    """Return the number of executions after which a statement is prepared, or None for never (the default).

    Raises:
        ValueError: the option is neither ``none`` nor a whole number from 0 on.
    """
    value = url.query.get(PREPARE_THRESHOLD, "none")
    if not isinstance(value, str) or not (value.isdecimal() or value.lower() == "none"):
        raise ValueError(f"{PREPARE_THRESHOLD} should be none, or one whole number from 0 on")
    return int(value) if value.isdecimal() else None


def _check_sqlite(url: sa.URL) -> None:
    if url.host or url.username:
        raise ValueError("a SQLite URL has three slashes and then the file: sqlite:///folder/file")
    if url.database in (None, "", ":memory:"):
        raise ValueError("an in-memory SQLite cannot be shared by web and worker; name a file")
    for option, value in url.query.items():
        if option != "timeout":
            raise ValueError(f"{option} is not an option it takes; for SQLite, timeout is")
        try:
            right = float(str(value)) >= 0
        except ValueError:
            right = False
        if not right:
            raise ValueError("timeout should be a number of seconds")
