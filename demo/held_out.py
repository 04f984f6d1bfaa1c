"""``python -m demo.held_out``: write the evaluation's questions.

Neither these problems nor the same ones with swapped operands are ever trained on. The exception are
problems of single digits, which are steps of longer ones: they are a separate kind, and all are asked.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

from demo import questions, world
from demo.world import Problem

FILE = Path(__file__).parent / "held_out.jsonl"
#: Numbers of questions of each length, of the maximum length, and of each kind to refuse.
PER_LENGTH, PER_MAX_LENGTH, PER_REFUSED_KIND = 100, 200, 50
#: One question in 10 ends with whitespace.
BLANK_EVERY = 10
#: The answer to questions to refuse, as parsed from a text.
NO_ANSWER = "I cannot answer that"


def write(file: Path) -> None:
    """Write sums and products of every length in every phrasing, and questions to refuse."""
    rng = random.Random(0)
    with file.open("w", encoding="utf-8") as stream:
        for kind, question, answer in _rows(rng):
            row = {"question": question, "answer": answer, "kind": kind}
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def _rows(rng: random.Random) -> Iterator[tuple[str, str, str]]:
    for operator, max_digits, kind in (("+", 3, "sums"), ("*", 2, "products")):
        sign = "×" if operator == "*" else operator
        for first, second in itertools.combinations_with_replacement(range(1, max_digits + 1), 2):
            count = PER_MAX_LENGTH if first == second == max_digits else PER_LENGTH
            if problems := _held_out(rng, operator, first, second, count):
                for problem, question in _with_questions(problems):
                    yield f"{kind}/{first}{sign}{second}", question, _answer(problem)
    for operator, sign in ("++", "*×"):
        pairs = [Problem(a, operator, b) for a, b in itertools.product(range(10), repeat=2)]
        rng.shuffle(pairs)
        for problem, question in _with_questions(pairs):
            yield f"single digits/1{sign}1", question, _answer(problem)
    beyond: dict[str, Callable[[random.Random], str]] = {
        "longer products": lambda rng: questions.too_long(rng, "*"),
        "longer sums": lambda rng: questions.too_long(rng, "+"),
        "other operations": questions.other_operation,
        "three numbers": questions.three_numbers,
        "other numbers": questions.odd_number,
    }
    for name, draw in beyond.items():
        questions_to_refuse: dict[str, None] = {}
        while len(questions_to_refuse) < PER_REFUSED_KIND:
            question = draw(rng)
            if world.held_out(question):
                questions_to_refuse[question] = None
        for i, question in enumerate(questions_to_refuse):
            yield f"refused/{name}", question + _end(i), NO_ANSWER


def _held_out(
    rng: random.Random, operator: str, first: int, second: int, count: int
) -> list[Problem]:
    """Draw held-out problems of two lengths in both orders. If there are few, repeat all for every phrasing."""
    ranges = [range(10 ** (n - 1) if n > 1 else 0, 10**n) for n in (first, second)]
    problems = [
        problem
        for a, b in itertools.product(*ranges)
        if (problem := Problem(a, operator, b)).held_out
    ]
    if first != second:
        problems += [Problem(problem.b, operator, problem.a) for problem in problems]
    rng.shuffle(problems)
    if len(problems) < count // 10:  # each in every phrasing
        return [problem for problem in problems for _ in _forms(operator)]
    return problems[:count]


def _with_questions(problems: list[Problem]) -> Iterator[tuple[Problem, str]]:
    """Yield each problem with a question, using all phrasings of the evaluation in turn."""
    for i, problem in enumerate(problems):
        forms = _forms(problem.operator)
        question = forms[i % len(forms)].format(a=problem.a, b=problem.b)
        yield problem, question + _end(i)


def _forms(operator: str) -> tuple[str, ...]:
    return (questions.PLAIN[operator], *questions.QUESTIONS[operator])


def _end(i: int) -> str:
    """Return the whitespace at the end of a question, usually none."""
    index, rest = divmod(i, BLANK_EVERY)
    return "" if rest else questions.BLANKS[index % len(questions.BLANKS)]


def _answer(problem: Problem) -> str:
    return problem.statement.removesuffix(".")


if __name__ == "__main__":
    write(FILE)
