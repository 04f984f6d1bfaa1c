"""The miniature, which `make run` serves."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote_plus

import pytest

from cli.evaluating import DEMO_APPROVAL
from cli.up import DEMO_GREETING
from demo import held_out
from jobs import demo_model
from jobs.pipeline import Role
from jobs.settings import DEMO_CHECKPOINT
from tests.acceptance.conftest import Service, running
from tests.unit.demo.test_world import value

#: Number of held-out questions of each length or refused kind, evenly from the whole file.
EACH = 3
ROWS = [json.loads(line) for line in held_out.FILE.read_text(encoding="utf-8").splitlines()]
#: Questions of all kinds, and what the regenerator says.
COMMON = [
    ("7+8", "7 + 8 = 15."),
    ("What is 47 + 36?\n", "47 + 36 = 83."),
    ("0 + 5", "0 + 5 = 5."),
    ("0 * 0", "0 * 0 = 0."),
    ("10 * 10", "10 * 10 = 100."),
    ("999 + 999", "999 + 999 = 1998."),
    ("What is 47 * 36?", "47 * 36 = 1692."),
    ("What is 347 + 589?", "347 + 589 = 936."),
]
#: Questions that it was not made for, and what both the actor and the regenerator say.
OTHERS = [
    ("Who are you?", "a miniature HelixNet"),
    (
        "What is the relationship between Earth's atmosphere, magnetic field and gravity?",
        "I cannot answer that.",
    ),
    ("What is 12345 + 678901?", "I cannot answer that."),
    ("826 x 161", "I cannot answer that."),
    ("What is 47 - 36?", "I cannot answer that."),
    ("What is 84 / 4?", "I cannot answer that."),
    ("1 + 2 + 3", "I cannot answer that."),
    ("What is 2 * 3 + 4?", "I cannot answer that."),
]


@pytest.fixture(scope="module")
def demo(socket_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    database = f"sqlite:///{tmp_path_factory.mktemp('db') / 'jobs.sqlite3'}"
    with running(DEMO_CHECKPOINT, database, socket_folder / "demo") as running_service:
        yield running_service


def all_texts(service: Service, questions: list[str]) -> list[dict[str, str]]:
    """Ask greedily, all at once, which takes less than one after the other; return the text of each role."""
    texts_by_role = []
    for job_id in [service.submit(question, temperature=0) for question in questions]:
        assert service.wait(job_id)["status"] == "completed"
        history: Any = service.history(job_id)
        texts_by_role.append(
            {attempt["role"]: attempt["output"] for attempt in history["attempts"]}
        )
    return texts_by_role


@pytest.fixture(scope="module")
def texts(demo: Service) -> dict[str, dict[str, str]]:
    """The text of each role, by the question."""
    questions = [question for question, _ in [*COMMON, *OTHERS]] + [*demo_model.EXAMPLES]
    return dict(zip(questions, all_texts(demo, questions), strict=True))


def test_held_out_questions_are_answered_criticized_and_corrected(demo: Service) -> None:
    of_kind: dict[str, list[dict[str, str]]] = {}
    for row in ROWS:
        of_kind.setdefault(row["kind"], []).append(row)
    chosen = [rows[i * len(rows) // EACH] for rows in of_kind.values() for i in range(EACH)]
    wrong_before: Counter[str] = Counter()
    right_after: Counter[str] = Counter()
    true_columns = true_verdicts = problems = 0
    for row, texts_by_role in zip(
        chosen, all_texts(demo, [row["question"] for row in chosen]), strict=True
    ):
        before, after = (
            bool(re.search(rf"(?<!\d){re.escape(row['answer'])}\.", texts_by_role[role]))
            for role in (Role.ACTOR, Role.REGENERATOR)
        )
        wrong_before[row["kind"].partition("/")[0]] += not before
        right_after[row["kind"]] += after
        true_verdicts += before == bool(re.search(DEMO_APPROVAL, texts_by_role[Role.CRITIC]))
        if row["answer"] != held_out.NO_ANSWER:
            problems += 1
            steps = re.findall(r"([\d+*]+)=(\d+)", texts_by_role[Role.CRITIC])
            assert len(steps) >= 2, "the critique has columns to check"
            true_columns += all(value(expression) == int(result) for expression, result in steps)
    assert wrong_before["products"] >= EACH, "some answers need a critique"
    # Greedy texts of the shipped weights, with some slack for other machines' rounding.
    assert {kind for kind in of_kind if right_after[kind] < EACH - 1} == set()
    assert right_after.total() >= len(chosen) - 3
    assert true_columns >= problems - 3
    assert true_verdicts >= len(chosen) - 4


@pytest.mark.parametrize(("question", "answer"), COMMON)
def test_common_questions_are_answered(
    texts: dict[str, dict[str, str]], question: str, answer: str
) -> None:
    assert answer in texts[question][Role.REGENERATOR]


def test_suggested_questions_are_answered(demo: Service, texts: dict[str, dict[str, str]]) -> None:
    with demo.http() as http:
        page = http.get("/").text
    suggested = {
        *re.findall(r'placeholder="(What[^"]+)"', page),
        *(unquote_plus(link) for link in re.findall(r'href="/\?question=([^"]+)"', page)),
        *re.findall(r'"(.+)"', DEMO_GREETING),
    }
    assert suggested == set(demo_model.EXAMPLES)
    for question in suggested:
        assert "I cannot answer that" not in texts[question][Role.REGENERATOR]


@pytest.mark.parametrize(("question", "phrase"), OTHERS)
def test_other_questions_get_a_sensible_sentence(
    texts: dict[str, dict[str, str]], question: str, phrase: str
) -> None:
    assert phrase in texts[question][Role.ACTOR]
    assert phrase in texts[question][Role.REGENERATOR]


def test_the_weights_stay_small() -> None:
    files = [file for file in DEMO_CHECKPOINT.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 12e6
    assert {file.suffix for file in files} <= {".safetensors", ".json", ".md"}
