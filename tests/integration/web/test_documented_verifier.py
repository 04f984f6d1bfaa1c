"""The verifier of the documentation, which shares no code with HelixQ, accepts exports and refuses what was changed."""

from __future__ import annotations

import copy
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.database import Database
from jobs.use_cases import log_signing, proving
from tests.integration.sealed import seal
from tests.integration.web.client import Client
from tests.integration.web.sealed_jobs import ended, erase, review

PROGRAM = Path(__file__).parents[3] / "docs" / "verify.py"
#: Fields of a line whose names begin so are no part of the record, and nothing follows from them.
UNPROVED = ("/origin", "/review_origin_proofs", "/erasure_origin_proofs")

Lines = list[dict[str, Any]]


@pytest.fixture
def lines(web: Client, database: Database) -> Lines:
    """An export: a job with a review, and one that was retold in several scripts and erased in part."""
    first = ended(web, input="What is 4 * 7?", metadata={"": "x", "é": "ü"}, temperature=1e-7)
    review(web, first, critique=1, regeneration=-1, note="注意", tags=["a", "b"])
    seal(database)
    log_signing.rotate_key(database)
    second = ended(web, input="كم هو 12 + 30؟ 😀\u2028", seed=2**53 - 1, stop=["\n"])
    review(web, second, regeneration=1, corrected_answer="42.")
    seal(database)
    assert erase(web, second, ["/question", "/reviews/0/corrected_answer"]).status_code == 200
    seal(database)
    return [json.loads(line) for line in web.get("/api/jobs/export").text.splitlines()]


def check(lines: Lines, database: Database, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the program on lines, without what this checkout has on Python's path."""
    file, keys = folder / "jobs.jsonl", folder / "keys.txt"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    verifiers = map(str, proving.list_keys(database))
    keys.write_text("\n".join(verifiers), encoding="utf-8")
    return subprocess.run(
        [sys.executable, "-I", PROGRAM, file, keys], capture_output=True, text=True, check=False
    )


def changed(line: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a history with each of its values changed in turn, and the JSON pointer of that."""

    def leaves(value: Any, path: tuple[str | int, ...]) -> Iterator[tuple[str | int, ...]]:
        items: Any = enumerate(value) if isinstance(value, list) else ()
        for name, each in value.items() if isinstance(value, dict) else items:
            yield from leaves(each, (*path, name))
        if not isinstance(value, dict | list):
            yield path

    for path in leaves(line, ()):
        copied = copy.deepcopy(line)
        parent: Any = copied
        for name in path[:-1]:
            parent = parent[name]
        old = parent[path[-1]]
        parent[path[-1]] = (not old) if isinstance(old, bool) else other(old)
        yield "/" + "/".join(map(str, path)), copied


def other(old: str | float | None) -> str | float:
    if isinstance(old, str):
        return f"{old[:-1]}{'x' if old[-1:] != 'x' else 'y'}"
    return "x" if old is None else old + 1


def test_an_export_is_verified_without_helixq(
    lines: Lines, database: Database, tmp_path: Path
) -> None:
    done = check(lines, database, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"line {number} is as it was recorded: '{line['id']}'"
        for number, line in enumerate(lines, 1)
    ]
    lines[1]["attempts"][0]["output"] += " "
    done = check(lines, database, tmp_path)
    assert (done.returncode, done.stderr) == (1, "line 2: the history was changed\n")
    del lines[1]["attempts"]
    assert "line 2 is no history of an export" in check(lines, database, tmp_path).stderr
    assert len(proving.list_keys(database)) == 2


def test_each_change_of_a_value_is_refused(lines: Lines, database: Database) -> None:
    spec = importlib.util.spec_from_file_location("verify", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    verifier = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(verifier)
    keys = verifier.read_keys("\n".join(map(str, proving.list_keys(database))))
    accepted = []
    for line in lines:
        verifier.verify(line, keys)
        for pointer, history in changed(line):
            try:
                verifier.verify(history, keys)
            except (verifier.ChangedError, verifier.InvalidSignature):
                continue
            except (AttributeError, KeyError, TypeError, ValueError, IndexError):
                continue
            accepted.append(pointer)
    unnoticed = [pointer for pointer in accepted if not pointer.startswith(UNPROVED)]
    assert unnoticed == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("jobs.jsonl",), "usage: python verify.py jobs.jsonl keys.txt"),
        (("--help",), "usage: python verify.py jobs.jsonl keys.txt"),
        (("none.jsonl", "none.txt"), "a file cannot be read: [Errno 2]"),
    ],
)
def test_wrong_arguments_are_one_sentence(
    tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    ran = subprocess.run(
        [sys.executable, "-I", PROGRAM, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert (ran.returncode, ran.stdout) == (1, "")
    [line] = ran.stderr.splitlines()
    assert line.startswith(said)
