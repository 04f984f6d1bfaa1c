"""The shipped miniature answers: what `make run` shows to whoever tries it first."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.evaluating import DEMO_APPROVAL
from demo import held_out
from jobs.pipeline import Role
from jobs.settings import DEMO_CHECKPOINT
from tests.acceptance.conftest import Service, running
from tests.unit.test_world import value

#: Held-out questions of each kind that are asked, evenly from the whole file.
EACH = 12


@pytest.fixture(scope="module")
def demo(socket_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    database = f"sqlite:///{tmp_path_factory.mktemp('db') / 'jobs.sqlite3'}"
    with running(DEMO_CHECKPOINT, database, socket_folder / "demo") as found:
        yield found


def texts(service: Service, question: str) -> dict[str, str]:
    """Ask greedily; return the text of each role."""
    job_id = service.submit(question, temperature=0)
    assert service.wait(job_id)["status"] == "completed"
    history: Any = service.history(job_id)
    return {attempt["role"]: attempt["output"] for attempt in history["attempts"]}


def test_held_out_questions_are_answered_criticised_and_corrected(demo: Service) -> None:
    rows = [json.loads(line) for line in held_out.FILE.read_text().splitlines()]
    step = len(rows) // (2 * EACH)
    asked = rows[::step]
    wrong_before = right_after = true_columns = true_verdicts = 0
    for row in asked:
        found = texts(demo, row["question"])
        before, after = (
            f"= {row['answer']}." in found[role] for role in (Role.ACTOR, Role.REGENERATOR)
        )
        wrong_before += not before
        right_after += after
        steps = re.findall(r"([\d+*]+)=(\d+)", found[Role.CRITIC])
        assert len(steps) >= 3, "the columns are there to be checked"
        true_columns += all(value(expression) == int(result) for expression, result in steps)
        true_verdicts += before == bool(re.search(DEMO_APPROVAL, found[Role.CRITIC]))
    assert wrong_before >= len(asked) // 5, "the actor needs its critic"
    # Greedy texts of the shipped weights; some slack is for other machines' rounding.
    assert right_after >= len(asked) - 2
    assert true_columns >= len(asked) - 3
    assert true_verdicts >= len(asked) - 2


def test_a_short_question_is_answered(demo: Service) -> None:
    assert "7 + 8 = 15." in texts(demo, "7+8")[Role.REGENERATOR]


@pytest.mark.parametrize(
    ("question", "says"),
    [
        ("Who are you?", "a miniature HelixNet"),
        (
            "What is the relationship between Earth's atmosphere, magnetic field and gravity?",
            "I cannot answer that.",
        ),
        ("What is 12345 + 678901?", "I cannot answer that."),
    ],
)
def test_other_questions_get_a_sensible_sentence(demo: Service, question: str, says: str) -> None:
    found = texts(demo, question)
    assert says in found[Role.ACTOR]
    assert says in found[Role.REGENERATOR]


def test_the_weights_stay_small() -> None:
    files = [file for file in DEMO_CHECKPOINT.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 12e6
    assert {file.suffix for file in files} <= {".safetensors", ".json", ".md"}
