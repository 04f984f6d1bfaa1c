"""The compose file, the image and the documented settings match the program."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click
import pytest
import yaml  # type: ignore[import-untyped]  # PyYAML ships no types

from cli.main import main
from jobs import settings
from jobs.settings import PREFIX, Settings

ROOT = Path(__file__).parent.parent.parent
GIVEN = {"POSTGRES_PASSWORD": "secret"}

_VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?::(?P<kind>[-?])(?P<rest>[^}]*))?\}")


def substitute(tree: Any, environ: dict[str, str]) -> Any:
    """Replace ``${X}``, ``${X:-default}`` and ``${X:?message}`` as docker compose does."""

    def value(match: re.Match[str]) -> str:
        if configured := environ.get(match["name"]):
            return configured
        if match["kind"] == "?":
            raise KeyError(f"{match['name']}: {match['rest']}")
        return match["rest"] or ""

    if isinstance(tree, dict):
        return {key: substitute(branch, environ) for key, branch in tree.items()}
    if isinstance(tree, list):
        return [substitute(branch, environ) for branch in tree]
    return _VARIABLE.sub(value, tree) if isinstance(tree, str) else tree


def compose(**environ: str) -> dict[str, Any]:
    """Read docker-compose.yml; return its services."""
    tree = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    services: dict[str, Any] = substitute(tree, {**GIVEN, **environ})["services"]
    return services


PROGRAMS = ["migrate", "web", "worker"]


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_settings_of_a_service_are_accepted(name: str) -> None:
    service = compose()[name]
    loaded = settings.load(service["environment"])
    assert loaded.database == "postgresql+psycopg://helixq@postgres/helixq"
    assert loaded.redis == "redis://redis:6379/0"
    assert service["environment"]["PGPASSWORD"] == "secret"


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_command_of_a_service_exists(name: str) -> None:
    assert compose()[name]["command"] == ["helixq", name]
    assert name in main.list_commands(click.Context(main))


def test_only_the_web_and_grafana_are_published_and_on_loopback_only() -> None:
    services = compose(HELIXQ_PORT="9000")
    assert [name for name, service in services.items() if "ports" in service] == ["web", "grafana"]
    assert services["grafana"]["ports"] == ["127.0.0.1:3000:3000"]
    assert services["web"]["ports"] == ["127.0.0.1:9000:8000"]
    # The port in the container, which the web listens on and the healthcheck uses.
    assert settings.load(services["web"]["environment"]).port == 8000
    assert "127.0.0.1:8000/healthz" in services["web"]["healthcheck"]["test"][-1]


def test_the_worker_serves_the_cards_checkpoints() -> None:
    loaded = settings.load(compose()["worker"]["environment"])
    assert loaded.base_model == "mistralai/Mistral-7B-v0.1"
    assert loaded.adapters == {
        role: f"rhysjones/HelixNet-LMoE-{role.capitalize()}" for role in loaded.adapters
    }


def test_a_password_must_be_given() -> None:
    with pytest.raises(KeyError, match="POSTGRES_PASSWORD"):
        compose(POSTGRES_PASSWORD="")


def test_dependencies_of_services_exist() -> None:
    services = compose()
    for service in services.values():
        for name, dependency in service.get("depends_on", {}).items():
            if dependency["condition"] == "service_healthy":
                assert "healthcheck" in services[name]
            else:
                assert services[name]["restart"] == "no"


def test_the_settings_of_the_image_exist() -> None:
    names = re.findall(rf"{PREFIX}(\w+)=", (ROOT / "Dockerfile").read_text(encoding="utf-8"))
    assert names
    assert {name.lower() for name in names} <= set(Settings.model_fields)


def table_of_settings() -> dict[str, list[str]]:
    """Read the table in docs/settings.md: the field's name to the other cells of its row."""
    text = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    rows = re.findall(rf"^\| `{PREFIX}(\w+)` \|(.*)\|$", text, re.MULTILINE)
    return {name.lower(): [cell.strip() for cell in cells.split(" | ")] for name, cells in rows}


def test_the_table_names_every_setting_and_no_other() -> None:
    assert list(table_of_settings()) == list(Settings.model_fields)


def test_the_table_shows_the_defaults() -> None:
    for name, (_, default, _) in table_of_settings().items():
        value = Settings.model_fields[name].default
        if isinstance(value, bool):
            value = str(value).lower()
        if isinstance(value, str | int | float) and "/" not in str(value):
            assert default == f"`{value}`", name
        elif value is None:
            assert "not set" in default, name
