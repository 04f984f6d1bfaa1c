"""Questions as people put them: numbers of every length, every phrasing, and what is refused."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from demo import world
from demo.world import PRODUCT_QUESTIONS, SUM_QUESTIONS, Problem

#: How often a number has one digit, two and so on. Short problems are few and soon learnt.
LENGTHS = {"+": (2, 4, 4), "*": (3, 7)}
PLAIN = {"+": "What is {a} + {b}?", "*": "What is {a} * {b}?"}
QUESTIONS = {"+": SUM_QUESTIONS, "*": PRODUCT_QUESTIONS}
#: What else people write; it is learnt with the rest, but not claimed.
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
#: Shares of the questions that are put the plain way, and of those with more phrasings.
PLAIN_SHARE, MORE_SHARE = 0.3, 0.15
BLANKS = (" ", "  ", "\n", "\n\n", " \n", "\r\n", "\t")

#: Shares of questions about the model itself, of greetings, and of sums and products and other
#: arithmetic beyond it, among the questions that are no problems.
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
    """Draw a problem of any lengths that is not held out; ``even``: each length as often."""
    operator = operator or rng.choice("+*")
    weights = (1,) * len(LENGTHS[operator]) if even else LENGTHS[operator]
    while True:
        lengths = rng.choices(range(1, len(weights) + 1), weights, k=2)
        drawn = Problem(number(rng, lengths[0]), operator, number(rng, lengths[1]))
        if not drawn.held_out:
            return drawn


def number(rng: random.Random, digits: int) -> int:
    """Draw a number of so many digits, 0 among those of one; some have zeros and nines only."""
    if digits == 1:
        return rng.randint(0, 9)
    if rng.random() < 0.1:
        return int(rng.choice("123456789") + "".join(rng.choices("00159", k=digits - 1)))
    return rng.randint(10 ** (digits - 1), 10**digits - 1)


def ask(rng: random.Random, problem: Problem) -> str:
    """Put a problem as a question."""
    return put(rng, phrasing(rng, problem.operator).format(a=problem.a, b=problem.b))


def phrasing(rng: random.Random, operator: str) -> str:
    """Draw a way to ask for a sum or a product, with places for ``a`` and ``b``."""
    way = rng.random()
    if way < PLAIN_SHARE:
        return PLAIN[operator]
    return rng.choice((MORE_QUESTIONS if way > 1 - MORE_SHARE else QUESTIONS)[operator])


def put(rng: random.Random, question: str) -> str:
    """Write a question as it may come: without its mark, in small letters, with blanks around."""
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
    """Draw a question that is no problem of the miniature's, and its answer.

    Args:
        rng: where it is drawn from.
        numbers: share of those about numbers, at most 0.7.
        even: the kinds of those about numbers come more evenly.
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
    """Draw a question about numbers that the miniature refuses; none is held out."""
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
    """A product with a number of three digits or more, or a sum with one of four or more."""
    operator = operator or rng.choice("+**")
    first = len(LENGTHS[operator]) + 1
    digits = [first if rng.random() < 0.6 else rng.randint(first, 8), rng.randint(1, first + 1)]
    rng.shuffle(digits)
    a, b = (number(rng, n) for n in digits)
    return phrasing(rng, operator).format(a=a, b=b)


def other_operation(rng: random.Random) -> str:
    """A difference, a quotient and the like."""
    return rng.choice(OTHER_OPERATIONS).format(a=_any(rng), b=_any(rng))


def three_numbers(rng: random.Random) -> str:
    """A sum, a product or a mixture of three numbers."""
    return rng.choice(THREE_NUMBERS).format(a=_any(rng), b=_any(rng), c=_any(rng))


def odd_number(rng: random.Random) -> str:
    """A sum or product of something that is no whole number in plain figures."""
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
    """Numbers, and nothing that says what to do with them."""
    return rng.choice(UNFINISHED).format(a=_any(rng), b=_any(rng))


def claim(rng: random.Random, question: str) -> str:
    """Draw what a hasty actor may answer to a question that should be refused."""
    numbers = [int(text) for text in re.findall(r"\d+", question)][:2]
    if len(numbers) < 2:
        return problem(rng).statement
    hasty = Problem(numbers[0], rng.choice("+*"), numbers[1])
    return hasty.state(number(rng, rng.randint(1, 5)))


def slip(rng: random.Random, question: str) -> str:
    """Draw an answer to another question that looks like one that should be refused.

    It has two of the question's numbers, shortened to what the miniature can do.
    """
    numbers = re.findall(r"\d+", question)
    if len(numbers) < 2:
        return problem(rng).statement
    for _ in range(10):
        operator = "*" if re.search(r"[*x×]|times|product|ultipl", question) else "+"
        if rng.random() < 0.2:
            operator = "+" if operator == "*" else "*"
        one, two = rng.sample(numbers, 2)
        slipped = Problem(_shorter(rng, one, operator), operator, _shorter(rng, two, operator))
        if not slipped.held_out:
            return slipped.state(
                slipped.answer if rng.random() < 0.5 else world.mistake(rng, slipped, 4)
            )
    return problem(rng).statement


def _shorter(rng: random.Random, digits: str, operator: str) -> int:
    while len(digits) > len(LENGTHS[operator]):
        at = rng.randrange(len(digits))
        digits = digits[:at] + digits[at + 1 :]
    return int(digits)


def _any(rng: random.Random) -> int:
    return number(rng, rng.choices((1, 2, 3, 4), (3, 4, 3, 1))[0])
