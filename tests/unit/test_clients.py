"""docs/clients.md shows the code that `make clients` runs, and the versions that it installs."""

from __future__ import annotations

import pytest

from tests.clients import table
from tests.clients.clients import CLIENTS, Client


@pytest.mark.parametrize(
    ("name", "code"), list(table.snippets()), ids=[name for name, _ in table.snippets()]
)
def test_snippets_are_those_of_the_scripts(name: str, code: str) -> None:
    assert f"\n{code}```\n" in table.DOCUMENT.read_text(encoding="utf-8"), name


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_versions_are_the_pinned_ones(client: Client) -> None:
    row = f"| {client.name} | {client.version} |"
    assert row in table.DOCUMENT.read_text(encoding="utf-8")


def test_every_cell_works() -> None:
    assert "**no**" not in table.DOCUMENT.read_text(encoding="utf-8")


def test_every_other_program_has_one_row() -> None:
    document = table.DOCUMENT.read_text(encoding="utf-8")
    section = document.split("\n## Others that were tried\n")[1].split("\n### ")[0]
    names = [line.split(" | ")[0] for line in section.splitlines() if line.startswith("| ")]
    assert sorted(names) == sorted(set(names))
