"""The official client against a real server; `make clients` runs all others, and older versions."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.clients import clients
from tests.clients.clients import CLIENTS, Outcome
from tests.clients.server import serving
from tests.clients.table import CHECKS

APIS = ("Responses", "Responses async", "chat completions")


@pytest.fixture(scope="module")
def outcomes(
    socket_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], Outcome]:
    """The outcomes of its script, by API and check."""
    openai = next(client for client in CLIENTS if client.name == "openai")
    folder = tmp_path_factory.mktemp("openai")
    with serving(socket_folder / "clients") as server:
        found = list(clients.run(openai, sys.executable, server, folder))
    return {(outcome.api, outcome.check): outcome for outcome in found}


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("api", APIS)
def test_openai(outcomes: dict[tuple[str, str], Outcome], api: str, check: str) -> None:
    assert outcomes[api, check].error is None


def test_nothing_else_went_wrong(outcomes: dict[tuple[str, str], Outcome]) -> None:
    assert set(outcomes) == {(api, check) for api in APIS for check in CHECKS}
