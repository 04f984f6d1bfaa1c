"""Realistic questions: numbers of every length, every phrasing, and questions to refuse."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from demo import world
from demo.world import PRODUCT_QUESTIONS, SUM_QUESTIONS, Problem

#: Weights of numbers with one digit, two digits and so on. Short problems are few and quickly learned.
LENGTHS = {"+": (2, 4, 4), "*": (3, 7)}
PLAIN = {"+": "What is {a} + {b}?", "*": "What is {a} * {b}?"}
QUESTIONS = {"+": SUM_QUESTIONS, "*": PRODUCT_QUESTIONS}
#: Further phrasings. They are trained on, but not part of the evaluation.
MORE_QUESTIONS = {
    "+": (
        "{a} + {b} =",
        "{a}+{b}=",
        "{a} plus {b}",
        "What's {a} + {b}?",
        "Please add {a} and {b}.",
    ),
    "*": (
        "{a} * {b} =",
        "{a}*{b}=",
        "{a} x {b}",
        "{a}x{b}",
        "{a} × {b}",
        "{a} times {b}",
        "What's {a} * {b}?",
        "Please multiply {a} by {b}.",
    ),
}
#: Shares of questions in the plain phrasing, and of those in further phrasings.
PLAIN_SHARE, MORE_SHARE = 0.3, 0.15
BLANKS = (" ", "  ", "\n", "\n\n", " \n", "\r\n", "\t")

#: Shares among the questions that are no problems: about the model itself, greetings, and arithmetic
#: that the model cannot do.
ABOUT_SHARE, GREETINGS_SHARE, BEYOND_SHARE = 0.2, 0.1, 0.5

OTHER_OPERATIONS = (
    "What is {a} - {b}?",
    "{a} - {b}",
    "{a}-{b}",
    "{a} - {b} = ?",
    "What is {a}-{b}?",
    "What is {a} minus {b}?",
    "How much is {a} - {b}?",
    "Calculate {a} - {b}.",
    "Subtract {a} from {b}.",
    "What is the difference of {a} and {b}?",
    "What is {a} / {b}?",
    "{a} / {b}",
    "{a}/{b}",
    "What is {a} : {b}?",
    "What is {a} divided by {b}?",
    "Divide {a} by {b}.",
    "How much is {a} / {b}?",
    "What is {a} % {b}?",
    "What is {a}% of {b}?",
    "What is {a} mod {b}?",
    "What is {a} ^ {b}?",
    "What is {a} ** {b}?",
    "{a}^{b}",
    "What is {a} to the power of {b}?",
    "What is the square root of {a}?",
    "What is {a} squared?",
    "What is half of {a}?",
    "Is {a} a prime number?",
    "Is {a} greater than {b}?",
    "Is {a} + {b} even?",
    "Count from {a} to {b}.",
)
THREE_NUMBERS = (
    "What is {a} + {b} + {c}?",
    "{a} + {b} + {c}",
    "{a}+{b}+{c}",
    "{a} + {b} + {c} = ?",
    "What is {a} plus {b} plus {c}?",
    "How much is {a} + {b} + {c}?",
    "Calculate {a} + {b} + {c}.",
    "Add {a}, {b} and {c}.",
    "Add {a} and {b} and {c}.",
    "What is the sum of {a}, {b} and {c}?",
    "What is {a} * {b} * {c}?",
    "{a} * {b} * {c}",
    "{a}*{b}*{c}",
    "What is {a} x {b} x {c}?",
    "What is {a} times {b} times {c}?",
    "What is the product of {a}, {b} and {c}?",
    "Multiply {a} by {b} by {c}.",
    "What is {a} * {b} + {c}?",
    "What is {a} + {b} * {c}?",
    "{a} * {b} + {c}",
    "{a} + {b} * {c}",
    "{a}*{b}+{c}",
    "What is ({a} + {b}) * {c}?",
    "({a} + {b}) * {c}",
    "What is {a} + {b} - {c}?",
    "{a} + {b} - {c}",
    "What is {a} - {b} + {c}?",
    "What is {a} * {b} - {c}?",
    "What is {a} * {b} / {c}?",
    "What is {a} plus {b} times {c}?",
    "Add {a} and {b}, then multiply by {c}.",
)
UNFINISHED = (
    "What is {a}?",
    "{a}",
    "{a} +",
    "{a} *",
    "+ {a}",
    "What is {a} +?",
    "What is {a} *?",
    "{a} {b}",
    "{a} and {b}",
    "{a}, {b}",
    "Add {a}.",
    "Multiply {a}.",
)
NUMBER_WORDS = (
    "one",
    "two",
    "three",
    "five",
    "seven",
    "eight",
    "ten",
    "twelve",
    "twenty",
    "x",
    "n",
)


def problem(rng: random.Random, *, operator: str | None = None, even: bool = False) -> Problem:
    """Draw a problem that is not held out. With ``even``, all lengths are equally likely."""
    operator = operator or rng.choice("+*")
    weights = (1,) * len(LENGTHS[operator]) if even else LENGTHS[operator]
    while True:
        lengths = rng.choices(range(1, len(weights) + 1), weights, k=2)
        candidate = Problem(number(rng, lengths[0]), operator, number(rng, lengths[1]))
        if not candidate.held_out:
            return candidate


def number(rng: random.Random, digits: int) -> int:
    """Draw a number with this many digits, including 0. Some numbers have many zeros and nines."""
    if digits == 1:
        return rng.randint(0, 9)
    if rng.random() < 0.1:
        return int(rng.choice("123456789") + "".join(rng.choices("00159", k=digits - 1)))
    return rng.randint(10 ** (digits - 1), 10**digits - 1)


def ask(rng: random.Random, problem: Problem) -> str:
    """Draw a question for a problem."""
    return put(rng, phrasing(rng, problem.operator).format(a=problem.a, b=problem.b))


def phrasing(rng: random.Random, operator: str) -> str:
    """Draw a phrasing of a sum or a product, with placeholders ``a`` and ``b``."""
    choice = rng.random()
    if choice < PLAIN_SHARE:
        return PLAIN[operator]
    return rng.choice((MORE_QUESTIONS if choice > 1 - MORE_SHARE else QUESTIONS)[operator])


def put(rng: random.Random, question: str) -> str:
    """Vary a question as users do: no question mark, lower case, surrounding whitespace."""
    if rng.random() < 0.12:
        question = question[:1].lower() + question[1:]
    if rng.random() < 0.12:
        question = question.rstrip("?.") if rng.random() < 0.7 else f"{question.rstrip('?.')}?"
    if rng.random() < 0.15:
        question += rng.choice(BLANKS)
    if rng.random() < 0.03:
        question = rng.choice(BLANKS) + question
    return question


def outside(
    rng: random.Random, numbers: float = BEYOND_SHARE, *, even: bool = False
) -> tuple[str, str]:
    """Draw a question that is not one of the miniature's problems, and its answer.

    Args:
        rng: the random generator.
        numbers: share of questions about numbers, at most 0.7.
        even: whether the kinds of questions about numbers are more evenly distributed.
    """
    kind = rng.random()
    if kind < ABOUT_SHARE:
        question, answer = rng.choice(world.ABOUT_QUESTIONS), world.ABOUT
    elif kind < ABOUT_SHARE + GREETINGS_SHARE:
        question, answer = rng.choice(world.GREETINGS), world.GREETING
    elif kind < ABOUT_SHARE + GREETINGS_SHARE + numbers:
        question, answer = beyond(rng, even=even), world.REFUSAL
    else:
        question, answer = world.talk(rng), world.REFUSAL
    return put(rng, question), answer


def beyond(rng: random.Random, *, even: bool = False) -> str:
    """Draw a question about numbers that the miniature refuses and that is not held out."""
    kinds: dict[Callable[[random.Random], str], int] = {
        too_long: 8,
        other_operation: 5,
        three_numbers: 5,
        odd_number: 8 if even else 2,
        unfinished: 1,
    }
    while True:
        question = rng.choices(list(kinds), list(kinds.values()))[0](rng)
        if not world.held_out(question):
            return question


def too_long(rng: random.Random, operator: str | None = None) -> str:
    """Draw a product with a number of three or more digits, or a sum with one of four or more."""
    operator = operator or rng.choice("+**")
    first = len(LENGTHS[operator]) + 1
    digits = [first if rng.random() < 0.6 else rng.randint(first, 8), rng.randint(1, first + 1)]
    rng.shuffle(digits)
    a, b = (number(rng, n) for n in digits)
    return phrasing(rng, operator).format(a=a, b=b)


def other_operation(rng: random.Random) -> str:
    """Draw a question about a difference, a quotient or another operation."""
    return rng.choice(OTHER_OPERATIONS).format(a=_any(rng), b=_any(rng))


def three_numbers(rng: random.Random) -> str:
    """Draw a question about three numbers."""
    return rng.choice(THREE_NUMBERS).format(a=_any(rng), b=_any(rng), c=_any(rng))


def odd_number(rng: random.Random) -> str:
    """Draw a sum or product with an operand that is not a plain non-negative integer."""
    odd = rng.choice(
        (
            f"0{_any(rng)}",
            f"00{_any(rng)}",
            f"-{_any(rng)}",
            f"{_any(rng)}.{_any(rng)}",
            f"{number(rng, rng.randint(1, 3))},{number(rng, 3)}",
            rng.choice(NUMBER_WORDS),
        )
    )
    operands = [odd, rng.choice(NUMBER_WORDS) if rng.random() < 0.1 else str(_any(rng))]
    rng.shuffle(operands)
    return phrasing(rng, rng.choice("+*")).format(a=operands[0], b=operands[1])


def unfinished(rng: random.Random) -> str:
    """Draw a question with numbers but no complete problem."""
    return rng.choice(UNFINISHED).format(a=_any(rng), b=_any(rng))


def claim(rng: random.Random, question: str) -> str:
    """Draw the answer of an actor that should have refused."""
    numbers = [int(text) for text in re.findall(r"\d+", question)][:2]
    if len(numbers) < 2:
        return problem(rng).statement
    hasty = Problem(numbers[0], rng.choice("+*"), numbers[1])
    return hasty.state(number(rng, rng.randint(1, 5)))


def slip(rng: random.Random, question: str) -> str:
    """Draw an answer to a similar problem instead of a refusal.

    It has two of the question's numbers, shortened to lengths that the miniature can do.
    """
    numbers = re.findall(r"\d+", question)
    if len(numbers) < 2:
        return problem(rng).statement
    for _ in range(10):
        operator = "*" if re.search(r"[*x×]|times|product|ultipl", question) else "+"
        if rng.random() < 0.2:
            operator = "+" if operator == "*" else "*"
        first, second = rng.sample(numbers, 2)
        similar = Problem(_shorter(rng, first, operator), operator, _shorter(rng, second, operator))
        if not similar.held_out:
            return similar.state(
                similar.answer if rng.random() < 0.5 else world.mistake(rng, similar, 4)
            )
    return problem(rng).statement


def _shorter(rng: random.Random, digits: str, operator: str) -> int:
    while len(digits) > len(LENGTHS[operator]):
        at = rng.randrange(len(digits))
        digits = digits[:at] + digits[at + 1 :]
    return int(digits)


def _any(rng: random.Random) -> int:
    return number(rng, rng.choices((1, 2, 3, 4), (3, 4, 3, 1))[0])
