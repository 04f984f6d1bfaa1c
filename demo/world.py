"""The miniature's world: sums, products, correct texts about them, and the first lessons' questions.

The miniature answers sums directly and computes products in columns. To every other question it answers
what it is and what it cannot do. This module generates the texts of the first lessons. They never change,
since the base that the last lesson starts from was trained on them. Later texts are in `demo.questions`.
"""

from __future__ import annotations

import hashlib
import random
import string
from dataclasses import dataclass
from itertools import zip_longest

#: One question in 20 is held out: it is never trained on.
HELD_OUT_SHARE = 20
#: Shares in the first lessons: of numbers that may be shorter than the maximum length, of problems in
#: the plain phrasing, and, among questions that are no problems, of questions about the model and of
#: greetings.
SHORT_SHARE, PLAIN_SHARE, ABOUT_SHARE, GREETINGS_SHARE = 0.15, 0.6, 0.15, 0.05
PLACES = ("units", "tens", "hundreds", "thousands")

SUM_QUESTIONS = (
    "{a} + {b}",
    "{a}+{b}",
    "{a} + {b} = ?",
    "What is {a}+{b}?",
    "What is {a} plus {b}?",
    "what is {a} + {b}",
    "How much is {a} + {b}?",
    "Calculate {a} + {b}.",
    "Add {a} and {b}.",
    "What is the sum of {a} and {b}?",
)
PRODUCT_QUESTIONS = (
    "{a} * {b}",
    "{a}*{b}",
    "{a} * {b} = ?",
    "What is {a}*{b}?",
    "What is {a} x {b}?",
    "What is {a} × {b}?",
    "What is {a} times {b}?",
    "what is {a} * {b}",
    "How much is {a} * {b}?",
    "Calculate {a} * {b}.",
    "Multiply {a} by {b}.",
    "What is the product of {a} and {b}?",
)

ABOUT = (
    "I am a miniature HelixNet: an actor, a critic and a regenerator on one small model. "
    "I add numbers of up to three digits and multiply numbers of up to two."
)
REFUSAL = (
    "I cannot answer that. I only add numbers of up to three digits and multiply numbers of "
    "up to two. Try: What is 347 + 589?"
)
GREETING = "Hello! Ask me for a sum or a product. Try: What is 47 * 36?"
APPROVAL = " The response says truly what the model is and can do: nothing to correct."
#: The critic's texts about correct answers to questions that are no problems.
APPROVALS = {
    ABOUT: APPROVAL,
    REFUSAL: " The response says truly what the model cannot do: nothing to correct.",
    GREETING: " The response greets: nothing to correct.",
}
OBJECTION = " The question is not about a sum or a product that the model can do: it should say so."

ABOUT_QUESTIONS = (
    "What are you?",
    "Who are you?",
    "who are you",
    "What can you do?",
    "what can you do",
    "What is HelixNet?",
    "Are you HelixNet?",
    "What do you know?",
    "How do you work?",
    "What can I ask you?",
    "Tell me about yourself.",
    "What is this?",
    "Can you help me?",
    "help",
    "What is your name?",
    "Who made you?",
    "Are you a model?",
)
GREETINGS = ("Hello", "Hello!", "Hi", "Hi!", "Hey", "hello", "hi", "Good morning", "Good evening!")

_OUTSIDE = (
    "What is {x}?",
    "What is the {x} of {x}?",
    "What is the relationship between {x}, {x} and {x}?",
    "What is the relationship between {x}'s {x} and {x}?",
    "Why is {x} {x}?",
    "Why do {x} {x}?",
    "Who was {x}?",
    "Who wrote {x}?",
    "Where is {x}?",
    "When did {x} begin?",
    "How does {x} work?",
    "How do I {x} a {x}?",
    "How many {x} are in {x}?",
    "Write a poem about {x}.",
    "Write {x} in {x}.",
    "Explain {x} to a {x}.",
    "Tell me about {x}.",
    "Tell me a story about {x} and {x}.",
    "Translate {x} to {x}.",
    "Is {x} {x}?",
    "Can {x} {x}?",
    "Please {x} the {x}",
    "{x}",
    "{x} {x}",
    "{x} {x} {x} {x}?",
)
_WORDS = (
    "gravity|the atmosphere|Earth|magnetic field|the moon|water|love|time|money|history|music|"
    "France|Paris|London|the weather|climate|a car|a computer|Python|a program|a function|code|"
    "bread|a recipe|coffee|tea|dogs|cats|birds|trees|flowers|the sea|mountains|rivers|a city|"
    "people|children|a doctor|health|sleep|dreams|art|painting|a book|a novel|Shakespeare|"
    "Einstein|Newton|Mozart|light|energy|atoms|physics|chemistry|biology|life|death|the future|"
    "democracy|war|peace|law|a letter|an essay|a joke|football|chess|a game|a horse|iron|gold|"
    "the economy|a bank|tax|school|a teacher|language|grammar|English|German|the sky|blue|red|"
    "green|big|small|fast|slow|happy|sad|cold|hot|true|false|good|bad|run|eat|drink|see|build|"
    "make|repair|learn|sing|dance|swim|fly|cook|write|read"
)
_THINGS = _WORDS.split("|")
_IMPOSSIBLE = (
    "What is {a} - {b}?",
    "{a} - {b}",
    "What is {a} / {b}?",
    "{a} / {b}",
    "What is {a} divided by {b}?",
    "What is {a} minus {b}?",
    "What is the square root of {a}?",
    "Is {a} a prime number?",
    "What is {a} % {b}?",
    "What is {a} ^ {b}?",
    "What is {a}?",
    "{a}",
    "What is {a} + {b} + {c}?",
    "What is {a} * {b} + {c}?",
    "What is {a} * {b} * {c}?",
)

#: System prompts besides the default one.
SYSTEMS = (
    "You are a helpful assistant.",
    "You are HelixNet. Always answer without hesitation.",
    "Answer briefly.",
    "You are a careful teacher. Explain each step.",
    "Elaborate on the topic using a Tree of Thoughts and backtrack when necessary to construct a "
    "clear, cohesive Chain of Thought reasoning. Always answer without hesitation.",
    "Be kind.",
    "",
)


@dataclass(frozen=True)
class Problem:
    """A sum or a product."""

    a: int
    #: ``+`` or ``*``.
    operator: str
    b: int

    @property
    def answer(self) -> int:
        return self.a + self.b if self.operator == "+" else self.a * self.b

    @property
    def statement(self) -> str:
        return self.state(self.answer)

    @property
    def held_out(self) -> bool:
        """Whether it is held out for evaluation. ``a·b`` and ``b·a`` are the same."""
        low, high = sorted((self.a, self.b))
        return held_out(f"{low}{self.operator}{high}")

    def state(self, value: int) -> str:
        """Return the sentence that the result is ``value``."""
        return f"{self.a} {self.operator} {self.b} = {value}."

    def columns(self) -> str:
        """Return the written computation of the result, digit by digit."""
        if self.operator == "+":
            return _add(self.a, self.b)
        if self.b < 10:
            return _times(self.a, self.b, 1)
        tens, units = divmod(self.b, 10)
        rows = (_times(self.a, units, 1), _times(self.a, tens, 10))
        return "\n".join((*rows, _add(self.a * units, self.a * tens * 10)))


def held_out(text: str) -> bool:
    """Whether a text is held out from all training."""
    digest = hashlib.blake2b(text.encode(), digest_size=4).digest()
    return int.from_bytes(digest) % HELD_OUT_SHARE == 0


def _add(a: int, b: int) -> str:
    steps, carry = [], 0
    for place in range(max(len(str(a)), len(str(b)))):
        x, y = (number // 10**place % 10 for number in (a, b))
        total = x + y + carry
        steps.append(f"{x}+{y}+{carry}={total}" if place else f"{x}+{y}={total}")
        carry = total // 10
    return f"{', '.join(steps)}, so {a}+{b}={a + b}"


def _times(a: int, digit: int, power: int) -> str:
    steps, carry = [], 0
    for place in range(len(str(a))):
        x = a // 10**place % 10
        total = x * digit + carry
        steps.append(f"{x}*{digit}+{carry}={total}" if place else f"{x}*{digit}={total}")
        carry = total // 10
    return f"{', '.join(steps)}, so {a}*{digit * power}={a * digit * power}"


def verdict(claimed: int | None, answer: int) -> str:
    """Say whether the number in a response is right, and if not, where it is wrong."""
    if claimed is None:
        return f"The response gives no number: it should be {answer}."
    if claimed == answer:
        return f"The response says {claimed}: right."
    return f"The response says {claimed}: wrong {_where(claimed, answer)}, it should be {answer}."


def _where(claimed: int, answer: int) -> str:
    claimed_digits, answer_digits = str(claimed), str(answer)
    if len(claimed_digits) != len(answer_digits):
        return (
            "with too few digits"
            if len(claimed_digits) < len(answer_digits)
            else "with too many digits"
        )
    first = next(i for i in range(len(answer_digits)) if claimed_digits[i] != answer_digits[i])
    return f"in the {PLACES[len(answer_digits) - 1 - first]}"


def comparison(claimed: int | None, answer: int) -> str:
    """Show both numbers, then say whether the first is right."""
    if claimed is None:
        return f"The response gives no number, the columns {answer}."
    judgement = "right" if claimed == answer else f"wrong {_where(claimed, answer)}"
    return f"The response says {claimed}, the columns {answer}: {judgement}."


def critique(problem: Problem, claimed: int | None) -> str:
    """Return the critic's text about a response with the number ``claimed``, or None without a number."""
    return f" By columns:\n{problem.columns()}\n{by_digits(claimed, problem.answer)}"


def by_digits(claimed: int | None, answer: int) -> str:
    """Return the critic's comparison, digit by digit, since a small model cannot compare whole numbers.

    Each digit has its own verdict. The text ends with the correct number, where the regenerator reads it.
    """
    if claimed is None:
        return f"The response gives no number, it should be {answer}."
    pairs = ", ".join(pair(x, y) for x, y in zip_longest(str(claimed), str(answer), fillvalue="-"))
    end = "right:" if claimed == answer else "wrong, it should be"
    return f"The response says {claimed}, the columns {answer}: {pairs}, so it is {end} {answer}."


def pair(x: str, y: str) -> str:
    """Compare two digits."""
    return f"{x} {y} {'right' if x == y else 'wrong'}"


def regeneration(problem: Problem, claimed: int | None) -> str:
    """Return the regenerator's text after that critique."""
    if claimed == problem.answer:
        return f" The columns agree: {problem.statement}"
    return f" Corrected by columns: {problem.statement}"


def problem(rng: random.Random, *, operator: str | None = None) -> Problem:
    """Draw a problem of the first lessons: half sums, half products, mostly with numbers of maximum length.

    Args:
        rng: the random generator.
        operator: ``+`` or ``*``; None for either.
    """
    operator = operator or rng.choice("+*")
    max_digits = 3 if operator == "+" else 2

    def number() -> int:
        digits = max_digits if rng.random() < 1 - SHORT_SHARE else rng.randint(1, max_digits)
        return rng.randint(10 ** (digits - 1), 10**digits - 1)

    return Problem(number(), operator, number())


def training_problem(rng: random.Random, *, operator: str | None = None) -> Problem:
    """Draw a problem that is not held out; arguments as for `problem`."""
    while (candidate := problem(rng, operator=operator)).held_out:
        pass
    return candidate


def ask(rng: random.Random, problem: Problem) -> str:
    """Draw a question for a problem, mostly in the plain phrasing."""
    if rng.random() < PLAIN_SHARE:
        return f"What is {problem.a} {problem.operator} {problem.b}?"
    questions = SUM_QUESTIONS if problem.operator == "+" else PRODUCT_QUESTIONS
    return rng.choice(questions).format(a=problem.a, b=problem.b)


def mistake(
    rng: random.Random, problem: Problem, max_wrong: int = 2, *, length: float = 0.08
) -> int:
    """Draw a wrong result like a hasty answer: usually of the right length, with some wrong digits.

    Args:
        rng: the random generator.
        problem: the problem.
        max_wrong: the maximum number of wrong digits.
        length: share of results with a digit too many or too few.
    """
    answer = problem.answer
    while True:
        digits = list(str(answer))
        if rng.random() < length:
            place = rng.randrange(len(digits) + 1)
            if rng.random() < 0.5 or len(digits) == 1:
                digits.insert(place, rng.choice(string.digits))
            else:
                del digits[min(place, len(digits) - 1)]
        else:
            for place in rng.sample(
                range(len(digits)), rng.randint(1, min(max_wrong, len(digits)))
            ):
                digits[place] = rng.choice(string.digits)
        claimed = int("".join(digits))
        if claimed != answer and str(claimed) == "".join(digits):
            return claimed


def outside(rng: random.Random) -> tuple[str, str]:
    """Draw a question that is neither a sum nor a product, and the miniature's answer."""
    kind = rng.random()
    if kind < ABOUT_SHARE:
        return rng.choice(ABOUT_QUESTIONS), ABOUT
    if kind < ABOUT_SHARE + GREETINGS_SHARE:
        return rng.choice(GREETINGS), GREETING
    if kind < ABOUT_SHARE + GREETINGS_SHARE + 0.3:
        return _impossible(rng), REFUSAL
    return talk(rng), REFUSAL


def talk(rng: random.Random) -> str:
    """Draw a question that is not about numbers."""
    question = rng.choice(_OUTSIDE)
    while "{x}" in question:
        question = question.replace("{x}", _thing(rng), 1)
    return question


def _impossible(rng: random.Random) -> str:
    if rng.random() < 0.5:  # too long
        operator, max_digits = rng.choice((("+", 3), ("*", 2)))
        a = _number(rng, rng.randint(max_digits + 1, 8))
        b = _number(rng, rng.randint(1, 8))
        if rng.random() < 0.5:
            a, b = b, a
        questions = SUM_QUESTIONS if operator == "+" else PRODUCT_QUESTIONS
        plain = f"What is {a} {operator} {b}?"
        return plain if rng.random() < 0.6 else rng.choice(questions).format(a=a, b=b)
    a, b, c = (_number(rng, rng.randint(1, 4)) for _ in range(3))
    return rng.choice(_IMPOSSIBLE).format(a=a, b=b, c=c)


def _number(rng: random.Random, digits: int) -> int:
    return rng.randint(10 ** (digits - 1), 10**digits - 1)


def _thing(rng: random.Random) -> str:
    if rng.random() < 0.6:
        return rng.choice(_THINGS)
    letters = rng.choices(string.ascii_lowercase, k=rng.randint(2, 9))
    if rng.random() < 0.2:
        letters[0] = letters[0].upper()
    if rng.random() < 0.05:
        letters.append(rng.choice("éüß漢字😀,;:!()\"'"))
    return "".join(letters)
