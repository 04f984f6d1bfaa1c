"""The miniature's world: its texts are true, and no held-out question is in the training data."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from demo import corpus, held_out, questions, training, world
from demo.corpus import Lesson
from demo.world import Problem
from jobs.pipeline import DEFAULT_SYSTEM, Role

problems = st.one_of(
    st.builds(Problem, st.integers(0, 999), st.just("+"), st.integers(0, 999)),
    st.builds(Problem, st.integers(0, 99), st.just("*"), st.integers(0, 99)),
)


def value(expression: str) -> int:
    """Work out sums of products of numbers."""
    total = 0
    for term in expression.split("+"):
        product = 1
        for factor in term.split("*"):
            product *= int(factor)
        total += product
    return total


@given(problems)
def test_every_step_of_the_columns_is_true(problem: Problem) -> None:
    columns = problem.columns()
    steps = re.findall(r"([\d+*]+)=(\d+)", columns)
    assert len(steps) >= 2
    for expression, result in steps:
        assert value(expression) == int(result)
    assert columns.endswith(f"={problem.answer}")


@given(problems, st.integers(0, 20_000))
def test_a_verdict_states_whether_the_answer_is_right(problem: Problem, response: int) -> None:
    for judge in (world.verdict, world.comparison):
        check(judge(response, problem.answer), problem, response)


@given(problems, st.integers(0, 20_000))
def test_a_critique_compares_every_digit(problem: Problem, response: int) -> None:
    last = world.critique(problem, response).splitlines()[-1]
    pairs = re.findall(r"(\d|-) (\d|-) (right|wrong)", last)
    claimed, correct = ("".join(pair[i] for pair in pairs).strip("-") for i in (0, 1))
    assert (claimed, correct) == (str(response), str(problem.answer))
    assert all((x == y) == (judged == "right") for x, y, judged in pairs)
    assert ("it is right:" in last) == (response == problem.answer)
    assert last.endswith(f" {problem.answer}.")


def check(verdict: str, problem: Problem, response: int) -> None:
    assert f"The response says {response}" in verdict
    assert (": right." in verdict) == (response == problem.answer)
    assert str(problem.answer) in verdict
    if place := re.search(r"in the (\w+)", verdict):
        power = 10 ** world.PLACES.index(place[1])
        assert response // power % 10 != problem.answer // power % 10
        assert response // power // 10 == problem.answer // power // 10


@given(problems, st.integers(0, 1000))
def test_a_mistake_is_never_the_right_answer(problem: Problem, seed: int) -> None:
    assert world.mistake(random.Random(seed), problem) != problem.answer


def test_mistakes_are_in_as_many_digits_as_asked_for() -> None:
    rng, problem = random.Random(2), Problem(99, "*", 90)
    for most in (2, 4):
        mistakes = [str(world.mistake(rng, problem, most)) for _ in range(400)]
        wrong = [sum(map(str.__ne__, text, "8910")) for text in mistakes if len(text) == 4]
        assert set(wrong) == set(range(1, most + 1))


def test_no_problem_in_the_training_data_is_held_out() -> None:
    rng = random.Random(1)
    questions = []
    for lesson in (Lesson.COLUMNS, Lesson.LENGTHS):
        texts = itertools.islice(corpus.documents(rng, lesson), 6000)
        questions += [text.partition(" By columns")[0] for text in texts if "By columns" in text]
    for role in Role:
        prompts = [corpus.example(role, rng, DEFAULT_SYSTEM).prompt for _ in range(1000)]
        questions += [prompt.partition("USER: ")[2].partition(" \n")[0] for prompt in prompts]
    problems = [problem for question in questions if (problem := parse(question))]
    assert len(problems) > 6000
    assert not any(problem.held_out for problem in problems)
    kinds = {(len(str(p.a)), p.operator, len(str(p.b))) for p in problems}
    sizes = {"+": range(1, 4), "*": range(1, 3)}
    assert kinds == {(i, sign, j) for sign, n in sizes.items() for i in n for j in n}
    assert any(0 in (problem.a, problem.b) for problem in problems)


def test_no_refused_question_in_the_training_data_is_held_out() -> None:
    rng = random.Random(3)
    drawn = [questions.beyond(rng) for _ in range(4000)]
    assert not any(world.held_out(question) for question in drawn)


@given(st.integers(0, 10**6))
def test_refused_questions_are_not_problems_of_the_miniature(seed: int) -> None:
    question, answer = questions.outside(random.Random(seed))
    assert parse(question) is None
    assert answer in world.APPROVALS


@given(st.integers(0, 10**6))
def test_a_question_is_about_its_problem(seed: int) -> None:
    rng = random.Random(seed)
    problem = questions.problem(rng)
    assert parse(questions.ask(rng, problem)) == problem


def parse(question: str) -> Problem | None:
    """Read a question that the miniature can answer."""
    for operator, digits in (("+", "{0,2}"), ("*", "?")):
        number = rf"(0|[1-9]\d{digits})"
        forms = (
            questions.PLAIN[operator],
            *questions.QUESTIONS[operator],
            *questions.MORE_QUESTIONS[operator],
        )
        for form in forms:
            pattern = re.escape(bare(form)).replace(r"\{a\}", number).replace(r"\{b\}", number)
            if match := re.fullmatch(pattern, bare(question)):
                return Problem(int(match[1]), operator, int(match[2]))
    return None


def bare(question: str) -> str:
    """Remove what does not change the problem: outer blanks, the mark at the end, capitals."""
    return question.strip().rstrip("?.").strip().lower()


#: Digests of the first documents of the earlier lessons, from which demo/checkpoint's base was trained.
OLD_DOCUMENTS = {
    Lesson.COLUMNS: "dfafb3a14ce02915ff5b778c00b2b03e66242bec3ae525125ec179a03c35341b",
    Lesson.ANSWERS: "3709728e07809fe5af8fa1371a460d20c9c4dc84f1543c1ede8983fa63ef178c",
    Lesson.DIGITS: "eed96f22357c00786da86d7e63a4b7fb80af3a5dbfdb350f41910530437c3737",
}


@pytest.mark.parametrize("lesson", OLD_DOCUMENTS)
def test_the_first_lessons_are_unchanged(lesson: Lesson) -> None:
    """Otherwise the recipe no longer makes the base that the last lesson starts from."""
    digest = hashlib.sha256()
    for step in range(40):
        rng = random.Random(f"0/{training.KEYS[lesson]}/{step}")
        for document in itertools.islice(corpus.documents(rng, lesson), 50):
            digest.update(document.encode() + b"\0")
    assert digest.hexdigest() == OLD_DOCUMENTS[lesson]


def test_the_committed_questions_are_the_held_out_ones(tmp_path: Path) -> None:
    held_out.write(tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_text() == held_out.FILE.read_text()
    rows = [json.loads(line) for line in held_out.FILE.read_text().splitlines()]
    assert len({(row["kind"], row["question"]) for row in rows}) == len(rows)
    ways: dict[str, set[tuple[str, int, int]]] = {}
    for row in rows:
        kind, fine = row["kind"].split("/")
        problem = parse(row["question"])
        if kind == "refused":
            assert problem is None
            assert row["answer"] in world.REFUSAL
            continue
        assert problem is not None
        assert row["answer"] == problem.statement.removesuffix(".")
        assert problem.held_out or kind == "single digits"
        lengths = len(str(problem.a)), len(str(problem.b))
        assert sorted(lengths) == [int(fine[0]), int(fine[2])]
        form = re.sub(r"\d+", "1", row["question"].strip())
        ways.setdefault(row["kind"], set()).add((form, *lengths))
    for fine, phrasings in ways.items():
        n = len(questions.QUESTIONS["*" if "×" in fine else "+"]) + 1
        assert len({form for form, *_ in phrasings}) == n, "all phrasings occur"
        orders = {(first, second) for _, first, second in phrasings}
        assert len(orders) == (1 if fine[-3] == fine[-1] else 2)
    ends = {row["question"][len(row["question"].rstrip()) :] for row in rows}
    assert ends == {"", *questions.BLANKS}
