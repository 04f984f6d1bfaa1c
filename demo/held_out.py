"""``python -m demo.held_out``: the questions of the measurement.

None of them, nor its mirror image, is ever trained on.
"""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

from demo.world import Problem

FILE = Path(__file__).parent / "held_out.jsonl"
#: Questions of each kind.
EACH = 400


def write(file: Path) -> None:
    """Write ``EACH`` sums of three-digit numbers and as many products of two-digit numbers."""
    rng = random.Random(0)
    products = [
        problem
        for a, b in itertools.product(range(10, 100), repeat=2)
        if (problem := Problem(a, "*", b)).held_out
    ]
    sums: set[Problem] = set()
    while len(sums) < EACH:
        problem = Problem(rng.randint(100, 999), "+", rng.randint(100, 999))
        if problem.held_out:
            sums.add(problem)
    drawn = {"sums": sorted(sums, key=str), "products": rng.sample(products, EACH)}
    with file.open("w", encoding="utf-8") as stream:
        for kind, problems in drawn.items():
            for problem in problems:
                row = {
                    "question": f"What is {problem.a} {problem.operator} {problem.b}?",
                    "answer": str(problem.answer),
                    "kind": kind,
                }
                stream.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    write(FILE)
