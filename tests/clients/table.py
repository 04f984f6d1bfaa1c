"""The table of docs/clients.md, and the snippets of code beside it."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence

from tests.clients.clients import CLIENTS, HERE, Client, Outcome

DOCUMENT = HERE.parents[1] / "docs" / "clients.md"
#: In the order of the columns.
CHECKS = ("turns", "silence", "stop", "cancel", "errors")
_HEADER = ("client", "version", "API", "two turns", "silent stream", "stop", "cancel", "errors")
_TABLE = re.compile(r"^\| client .*?\n(?=\n)", re.MULTILINE | re.DOTALL)
_SNIPPET = re.compile(
    r"^(?://|#) docs: (?P<name>[\w-]+)\n(?P<code>.*?)^(?://|#) docs end$", re.MULTILINE | re.DOTALL
)


def render(clients: Sequence[Client], outcomes: Iterable[Outcome]) -> str:
    """Return the outcomes as a Markdown table with a row for each API of each client."""
    versions = {client.name: client.version for client in clients}
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for outcome in outcomes:
        row = cells.setdefault((outcome.client, outcome.api), {})
        row[outcome.check] = "**no**" if outcome.error else f"yes {_noted(outcome)}".strip()
    rows = [
        (client, versions[client], api, *(row.get(check, "") for check in CHECKS))
        for client in versions
        for api, row in sorted((api, row) for (name, api), row in cells.items() if name == client)
    ]
    return "".join(f"| {' | '.join(row)} |\n" for row in [_HEADER, ["---"] * len(_HEADER), *rows])


def _noted(outcome: Outcome) -> str:
    return f"({outcome.note})" if outcome.note else ""


def is_documented(table: str) -> bool:
    """Return whether the document has a table."""
    return table in DOCUMENT.read_text(encoding="utf-8")


def document(table: str) -> None:
    """Put a table into the document, in place of the one that it has."""
    text = DOCUMENT.read_text(encoding="utf-8")
    DOCUMENT.write_text(_TABLE.sub(lambda _: table, text, count=1), encoding="utf-8")


def snippets() -> Iterator[tuple[str, str]]:
    """Yield the parts of the scripts that the document should show, as (name, code)."""
    for path in sorted({client.path for client in CLIENTS}):
        for match in _SNIPPET.finditer(path.read_text(encoding="utf-8")):
            yield match["name"], textwrap.dedent(match["code"])
