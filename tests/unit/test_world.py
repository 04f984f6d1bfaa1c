"""The miniature's world: its texts are true, and the held-out questions stay out of it."""

from __future__ import annotations

import itertools
import json
import random
import re
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from demo import corpus, held_out, world
from demo.corpus import Lesson
from demo.world import Problem
from jobs.pipeline import DEFAULT_SYSTEM, Role

problems = st.one_of(
    st.builds(Problem, st.integers(1, 999), st.just("+"), st.integers(1, 999)),
    st.builds(Problem, st.integers(1, 99), st.just("*"), st.integers(1, 99)),
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
def test_a_verdict_is_true(problem: Problem, said: int) -> None:
    for judge in (world.verdict, world.comparison):
        check(judge(said, problem.answer), problem, said)


@given(problems, st.integers(0, 20_000))
def test_a_critique_compares_every_digit(problem: Problem, said: int) -> None:
    last = world.critique(problem, said).splitlines()[-1]
    pairs = re.findall(r"(\d|-) (\d|-) (right|wrong)", last)
    one, two = ("".join(pair[i] for pair in pairs).strip("-") for i in (0, 1))
    assert (one, two) == (str(said), str(problem.answer))
    assert all((x == y) == (judged == "right") for x, y, judged in pairs)
    assert ("it is right:" in last) == (said == problem.answer)
    assert last.endswith(f" {problem.answer}.")


def check(verdict: str, problem: Problem, said: int) -> None:
    assert f"The response says {said}" in verdict
    assert (": right." in verdict) == (said == problem.answer)
    assert str(problem.answer) in verdict
    if place := re.search(r"in the (\w+)", verdict):
        power = 10 ** world.PLACES.index(place[1])
        assert said // power % 10 != problem.answer // power % 10
        assert said // power // 10 == problem.answer // power // 10


@given(problems, st.integers(0, 1000))
def test_a_mistake_is_never_right(problem: Problem, seed: int) -> None:
    assert world.mistake(random.Random(seed), problem) != problem.answer


def test_mistakes_are_in_as_many_digits_as_asked_for() -> None:
    rng, problem = random.Random(2), Problem(99, "*", 90)
    for most in (2, 4):
        said = [str(world.mistake(rng, problem, most)) for _ in range(400)]
        wrong = [sum(map(str.__ne__, text, "8910")) for text in said if len(text) == 4]
        assert set(wrong) == set(range(1, most + 1))


def test_held_out_questions_are_never_trained_on() -> None:
    rng = random.Random(1)
    documents = itertools.islice(corpus.documents(rng, Lesson.COLUMNS), 6000)
    asked = [text.partition(" By columns")[0] for text in documents if "By columns" in text]
    for role in Role:
        prompts = [corpus.example(role, rng, DEFAULT_SYSTEM).prompt for _ in range(1000)]
        asked += [prompt.splitlines()[1].removeprefix("USER: ").strip() for prompt in prompts]
    drawn = [problem for question in asked if (problem := parse(question))]
    assert len(drawn) > 4000
    assert not any(problem.held_out for problem in drawn)
    assert {problem.operator for problem in drawn} == {"+", "*"}


def parse(question: str) -> Problem | None:
    """Read a question that the miniature can answer."""
    forms = {"+": world.SUM_QUESTIONS, "*": world.PRODUCT_QUESTIONS}
    for operator, texts in forms.items():
        for text in (f"What is {{a}} {operator} {{b}}?", *texts):
            number = r"(\d{1,3})" if operator == "+" else r"(\d{1,2})"
            pattern = re.escape(text).replace(r"\{a\}", number).replace(r"\{b\}", number)
            if found := re.fullmatch(pattern, question):
                return Problem(int(found[1]), operator, int(found[2]))
    return None


def test_the_committed_questions_are_the_held_out_ones(tmp_path: Path) -> None:
    held_out.write(tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_text() == held_out.FILE.read_text()
    rows = [json.loads(line) for line in held_out.FILE.read_text().splitlines()]
    assert len({row["question"] for row in rows}) == len(rows) == 2 * held_out.EACH
    for row in rows:
        a, sign, b = re.findall(r"\d+|[+*]", row["question"])
        problem = Problem(int(a), sign, int(b))
        assert problem.held_out
        assert row["answer"] == str(problem.answer)
