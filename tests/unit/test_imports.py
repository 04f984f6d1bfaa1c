"""The dependencies between packages: web → jobs ← worker."""

import subprocess
import sys
from pathlib import Path

import pytest

from jobs import protocol


def test_dependencies_between_packages_keep_the_contracts() -> None:
    done = subprocess.run(
        [Path(sys.executable).parent / "lint-imports"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def loaded(imports: str, unwanted: set[str]) -> str:
    """Import modules in a fresh interpreter; return which unwanted ones came along."""
    code = f"import sys, {imports}; print(*sorted({unwanted} & set(sys.modules)))"
    return subprocess.check_output([sys.executable, "-c", code], text=True).strip()


@pytest.mark.parametrize(
    "modules",
    [
        "jobs.queue, jobs.database, jobs.progress, jobs.maintenance",
        "web",
        "cli.main",
        "worker.main, worker.remote_engine",
    ],
)
def test_commands_without_a_model_import_no_model_library(modules: str) -> None:
    assert loaded(modules, {"torch", "transformers", "peft"}) == ""


def test_the_protocol_needs_no_http() -> None:
    modules = ", ".join(
        f"jobs.protocol.{file.stem}" for file in Path(protocol.__path__[0]).glob("[a-z]*.py")
    )
    unwanted = {"flask", "werkzeug", "celery", "kombu", "redis", "torch", "transformers"}
    assert loaded(modules, unwanted) == ""


def test_the_engine_needs_the_model_libraries_alone() -> None:
    missing = ["alembic", "celery", "flask", "pydantic", "redis", "sqlalchemy"]
    code = f"import sys; sys.modules.update(dict.fromkeys({missing}))"  # importing None fails
    engine = "import worker.engine.reference, worker.engine.batching.engine, worker.bench.engine"
    subprocess.run([sys.executable, "-c", f"{code}; {engine}"], check=True)
