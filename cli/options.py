"""Options that several commands have."""

from __future__ import annotations

import datetime as dt
import functools
import re
import shlex
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import click

from cli.client import Client
from jobs.enums import Status

if TYPE_CHECKING:
    from jobs.settings import Settings

#: Seconds of the units that a time may be given in.
UNITS = {"h": 3600, "d": 86400, "w": 604800}
RATINGS = click.Choice(["-1", "0", "1", "+1", "any", "none"])

F = TypeVar("F", bound=Callable[..., Any])


class TimeType(click.ParamType[str]):
    """A time, as the server takes it; or how long ago it was, such as ``7d``."""

    name = "time"

    def convert(
        self, value: str, _param: click.Parameter | None, _ctx: click.Context | None
    ) -> str:
        ago = re.fullmatch(r"(\d{1,5})([hdw])", value)
        if ago is None:
            return value
        moment = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=int(ago[1]) * UNITS[ago[2]])
        return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


TIME = TimeType()


def job_filters(command: F) -> F:
    """Add the options that say which jobs are meant. `filter_parameters` makes query parameters of them."""
    for option in reversed(
        (
            click.option(
                "--query",
                "-q",
                "q",
                metavar="TEXT",
                help='Full text: words, "phrases", prefix*, -not, one OR other.',
            ),
            click.option(
                "--status",
                type=click.Choice([s.value for s in Status]),
                multiple=True,
                help="Only this status; may be repeated.",
            ),
            click.option(
                "--owner",
                metavar="NAME",
                help="Only jobs of this owner; other owners' need the scope audit.",
            ),
            click.option("--key", metavar="ID", help="Submitted by this API key: its id, key_…."),
            click.option("--batch", metavar="ID", help="Lines of this batch: its id, batch_…."),
            click.option(
                "--rating",
                type=RATINGS,
                help="Only if this is the last rating of the regeneration; any: if there is one.",
            ),
            click.option(
                "--critique-rating",
                type=RATINGS,
                help="Only if this is the last rating of the critique; any: if there is one.",
            ),
            click.option("--reviewer", metavar="NAME", help="Reviewed by this person."),
            click.option("--tag", metavar="TAG", help="With a review that has this tag."),
            click.option(
                "--since",
                metavar="TIME",
                type=TIME,
                help="Created then or later: 2026-01-31, 2026-01-31T12:00Z, or 7d for 7 days ago (also h and w).",
            ),
            click.option("--until", metavar="TIME", type=TIME, help="Created before then."),
            click.option(
                "--adapter",
                metavar="NAME",
                help="With this adapter: its name, the end of its name, or its digest.",
            ),
            click.option("--model", metavar="DIGEST", help="Of this model: its digest, sha256:…"),
            click.option(
                "--worker",
                metavar="NAME",
                help="With a stage that this worker ran: its id or host.",
            ),
            click.option(
                "--metadata",
                metavar="KEY=VALUE",
                multiple=True,
                help="With this value in the metadata; may be repeated.",
            ),
            click.option(
                "--min-attempts",
                type=int,
                help="With a stage that took at least this many attempts.",
            ),
            click.option(
                "--min-changed",
                type=float,
                help="At least this share of words was changed, from 0 to 1: 0.5 is half.",
            ),
            click.option("--max-changed", type=float, help="At most this share."),
            click.option(
                "--min-duration", type=float, help="At least these seconds from acceptance to end."
            ),
            click.option("--max-duration", type=float, help="At most these seconds."),
        )
    ):
        command = option(command)
    return command


def filter_parameters(
    *, status: tuple[str, ...], metadata: tuple[str, ...], **filters: str | float | None
) -> dict[str, str]:
    """Return query parameters of the options of `job_filters`, and of others that have a value.

    Raises:
        BadParameter: a pair of metadata is none.
    """
    parameters = {name: _parameter(v) for name, v in filters.items() if v is not None}
    if status:
        parameters["status"] = ",".join(status)
    for item in metadata:
        key, separator, value = item.partition("=")
        if not separator:
            raise click.BadParameter(f"{item!r} is not KEY=VALUE.", param_hint="--metadata")
        parameters[f"metadata.{key}"] = value
    return parameters


def _parameter(value: str | float) -> str:
    """Return an option's value as a query parameter: numbers without an exponent."""
    return value if isinstance(value, str) else f"{value:.12f}".rstrip("0").rstrip(".")


def _with_scheme(_context: click.Context, _option: object, url: str | None) -> str | None:
    if not url:
        return None
    url = url if "://" in url else f"http://{url}"
    try:
        parts = urlsplit(url)
        named = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # The port is no number, or a bracket is missing.
        named = None
    if not named or re.search(r"[\s\x00-\x1f\x7f]", url):
        raise click.BadParameter(
            f"{url!r} is not the URL of a server, such as http://127.0.0.1:8000."
        )
    # With `/v1` it is the base URL of OpenAI's clients, to the same server.
    return re.sub("/v1/?$", "", url)


def server(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the option that names the server, and pass a client of it as the first argument. Other options come above."""

    @functools.wraps(command)
    def run(*, url: str | None, **options: Any) -> Any:
        context = click.get_current_context()
        settings: Settings = context.obj
        option = "" if url is None else f" --url {shlex.quote(url)}"
        client = Client(url or settings.url, settings.api_key, option=option)
        return command(context.with_resource(client), **options)

    return click.option(
        "--url",
        metavar="URL",
        callback=_with_scheme,
        help="The server's URL, or its host and port (default: from HELIXQ_HOST and HELIXQ_PORT).",
    )(run)


def read_question(question: str | None) -> str:
    """Return a question that was given, or read it from standard input, without the line breaks at its end.

    Raises:
        click.UsageError: there is none.
    """
    if question is None and sys.stdin.isatty():
        raise click.UsageError("Give a QUESTION, or pipe one.")
    if question in (None, "-"):
        try:
            question = sys.stdin.buffer.read().decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise click.UsageError("The question on standard input is not UTF-8.") from error
    if not question or not question.strip():
        raise click.UsageError("The question is empty.")
    # Bytes of an argument that are no text are surrogates.
    if re.search("[\ud800-\udfff]", question):
        raise click.UsageError("The question is not UTF-8.")
    return question
