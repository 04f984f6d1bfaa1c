"""``python -m demo.held_out``: the questions of the measurement.

None of the problems, nor its mirror image, is ever trained on, but for those of single digits: each is a
step of longer ones. They are a kind of their own, and all of them are asked.
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
#: Questions of a length, of the longest length, and of a kind that is refused.
EACH, LONGEST, REFUSED = 100, 200, 50
#: One question in so many has a blank or a line break at its end.
BLANK_EVERY = 10
#: The answer to what is refused, as a text is read.
NO_ANSWER = "I cannot answer that"


def write(file: Path) -> None:
    """Write sums and products of every length, in every phrasing, and what should be refused."""
    rng = random.Random(0)
    with file.open("w", encoding="utf-8") as stream:
        for kind, question, answer in _rows(rng):
            row = {"question": question, "answer": answer, "kind": kind}
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def _rows(rng: random.Random) -> Iterator[tuple[str, str, str]]:
    for operator, longest, kind in (("+", 3, "sums"), ("*", 2, "products")):
        sign = "×" if operator == "*" else operator
        for one, two in itertools.combinations_with_replacement(range(1, longest + 1), 2):
            count = LONGEST if one == two == longest else EACH
            if problems := _held_out(rng, operator, one, two, count):
                for problem, question in _asked(problems):
                    yield f"{kind}/{one}{sign}{two}", question, _answer(problem)
    for operator, sign in ("++", "*×"):
        pairs = [Problem(a, operator, b) for a, b in itertools.product(range(10), repeat=2)]
        rng.shuffle(pairs)
        for problem, question in _asked(pairs):
            yield f"single digits/1{sign}1", question, _answer(problem)
    beyond: dict[str, Callable[[random.Random], str]] = {
        "longer products": lambda rng: questions.too_long(rng, "*"),
        "longer sums": lambda rng: questions.too_long(rng, "+"),
        "other operations": questions.other_operation,
        "three numbers": questions.three_numbers,
        "other numbers": questions.odd_number,
    }
    for name, draw in beyond.items():
        drawn: dict[str, None] = {}
        while len(drawn) < REFUSED:
            question = draw(rng)
            if world.held_out(question):
                drawn[question] = None
        for i, question in enumerate(drawn):
            yield f"refused/{name}", question + _end(i), NO_ANSWER


def _held_out(rng: random.Random, operator: str, one: int, two: int, count: int) -> list[Problem]:
    """Draw held-out problems of two lengths, in both orders; all, often, where there are few."""
    ranges = [range(10 ** (n - 1) if n > 1 else 0, 10**n) for n in (one, two)]
    found = [
        problem
        for a, b in itertools.product(*ranges)
        if (problem := Problem(a, operator, b)).held_out
    ]
    if one != two:
        found += [Problem(problem.b, operator, problem.a) for problem in found]
    rng.shuffle(found)
    if len(found) < count // 10:  # each in every phrasing
        return [problem for problem in found for _ in _forms(operator)]
    return found[:count]


def _asked(problems: list[Problem]) -> Iterator[tuple[Problem, str]]:
    """Ask in every phrasing that is claimed, one after the other."""
    for i, problem in enumerate(problems):
        forms = _forms(problem.operator)
        question = forms[i % len(forms)].format(a=problem.a, b=problem.b)
        yield problem, question + _end(i)


def _forms(operator: str) -> tuple[str, ...]:
    return (questions.PLAIN[operator], *questions.QUESTIONS[operator])


def _end(i: int) -> str:
    """What a question ends in: a blank or a line break now and then."""
    turn, rest = divmod(i, BLANK_EVERY)
    return "" if rest else questions.BLANKS[turn % len(questions.BLANKS)]


def _answer(problem: Problem) -> str:
    return problem.statement.removesuffix(".")


if __name__ == "__main__":
    write(FILE)
