"""A start that cannot work ends with one sentence that says what to do."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

import migrations
from jobs.store import Store
from tests.conftest import model_settings
from tests.servers import RedisServer, free_port, helixq


@pytest.fixture
def environ(checkpoint: Path, redis_server: RedisServer, tmp_path: Path) -> dict[str, str]:
    """Settings that would work."""
    url = f"sqlite:///{tmp_path / 'jobs.sqlite3'}"
    store = Store(url)
    migrations.migrate(store.engine)
    store.close()
    return {
        **model_settings(checkpoint),
        "HELIXQ_DATABASE_URL": url,
        "HELIXQ_REDIS_URL": redis_server.url,
        "HELIXQ_DATA_DIR": str(tmp_path / "data"),
        "HELIXQ_PORT": str(free_port()),
    }


@pytest.mark.parametrize(
    ("command", "settings", "says"),
    [
        ("web", {"HELIXQ_PORT": "x"}, "HELIXQ_PORT=x is wrong"),
        ("web", {"HELIXQ_COLOUR": "red"}, "HELIXQ_COLOUR is not a setting"),
        ("web", {"HELIXQ_HOST": "0.0.0.0"}, "API keys do not exist yet"),  # noqa: S104 (refused)
        ("web", {"HELIXQ_REDIS_URL": "redis://127.0.0.1:1"}, "Redis cannot be reached"),
        (
            "web",
            {"HELIXQ_DATABASE_URL": "postgresql://x@127.0.0.1:1/x"},
            "the database cannot be used",
        ),
        (
            "migrate",
            {"HELIXQ_DATABASE_URL": "sqlite:////no/folder/x"},
            "the database cannot be used",
        ),
        ("worker", {"HELIXQ_BASE_MODEL": "/no/model"}, "HELIXQ_BASE_MODEL: there is no folder"),
        ("worker", {"HELIXQ_DATABASE_URL": "sqlite:///{tmp}/new.sqlite3"}, "run `helixq migrate`"),
        ("web", {"HELIXQ_DATABASE_URL": "sqlite:///{tmp}/new.sqlite3"}, "run `helixq migrate`"),
        ("web", {"HELIXQ_PORT": "{taken}"}, "is taken by another program"),
        ("up", {"HELIXQ_PORT": "{taken}"}, "is taken by another program"),
        ("up", {"HELIXQ_REDIS_URL": "redis://127.0.0.1:1"}, "Redis cannot be reached"),
    ],
)
def test_a_start_that_cannot_work_says_why(
    environ: dict[str, str], tmp_path: Path, command: str, settings: dict[str, str], says: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        names = {"tmp": str(tmp_path), "taken": str(taken.getsockname()[1])}
        given = {name: value.format(**names) for name, value in settings.items()}
        process = helixq(command, environ={**environ, **given})
        status = process.wait()
    assert status == 1
    lines = process.output.strip().splitlines()
    assert lines[-1].startswith("Error: ")
    assert says in lines[-1]
    assert "Traceback" not in process.output
