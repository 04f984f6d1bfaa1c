"""Tasks: errors in a file of questions name the line."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker.evaluation import task
from worker.evaluation.task import Question, TaskError

GOOD = '{"question": "What is 2 + 2?", "answer": "4", "kind": "sums"}\n'


def write(folder: Path, text: str) -> Path:
    file = folder / "task.jsonl"
    file.write_text(text, encoding="utf-8")
    return file


def test_questions_are_read_in_their_order(tmp_path: Path) -> None:
    file = write(tmp_path, GOOD + "\n" + '{"question": "Où?", "answer": "Là."}\n')
    assert task.load(file).questions == (
        Question("What is 2 + 2?", "4", "sums"),
        Question("Où?", "Là."),
    )


def test_a_kind_with_a_slash_counts_in_both() -> None:
    kinds = {kind: Question("?", "4", kind).kinds for kind in ("", "sums", "sums/2+3")}
    assert kinds == {"": (), "sums": ("sums",), "sums/2+3": ("sums", "sums/2+3")}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "there are no questions in"),
        (GOOD + "{", "line 2 of"),
        (GOOD + "[1]", "is not an object"),
        ('{"question": "What?"}', "line 1 of .* needs a text in 'answer'"),
        ('{"question": " ", "answer": "4"}', "needs a text in 'question'"),
        ('{"question": "What?", "answer": 4}', "needs a text in 'answer'"),
        ('{"question": "What?", "answer": "4", "kind": 1}', "needs a text in 'kind'"),
        ('{"question": "What?", "answer": "4", "level": "1"}', "has a field 'level'"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(TaskError, match=sentence):
        task.load(write(tmp_path, text))


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="No such file"):
        task.load(tmp_path / "nothing.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(GOOD.replace("2", "é").encode("latin-1"))
    with pytest.raises(TaskError, match="not UTF-8"):
        task.load(tmp_path / "latin.jsonl")


def test_an_invalid_pattern_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="is not a regular expression"):
        task.load(write(tmp_path, GOOD), answer="(")


def test_answers_are_matched_exactly(tmp_path: Path) -> None:
    file = write(tmp_path, GOOD)
    question = Question("What is 2 + 2?", "4")
    loaded = task.load(file)
    assert loaded.is_right(question, " 4\n")
    assert not loaded.is_right(question, "It is 4")
    last = task.load(file, answer=r"\d+")
    assert last.is_right(question, "2 + 2 is 4, of course")
    assert not last.is_right(question, "4 is what 2 + 2 is: 44")
    assert not last.is_right(question, "I cannot say")
    group = task.load(file, answer=r"= (\d+)\.")
    assert group.is_right(question, "First 2 + 2 = 5. No: 2 + 2 = 4. Not 3.")
