"""What the miniature learns from: plain documents for the base, prompts and texts for the roles."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from functools import partial

from demo import questions, world
from demo.world import Problem
from jobs.pipeline import DEFAULT_SYSTEM, TEMPLATES, Role

#: Says in a sentence whether a number is the answer.
Judge = Callable[[int | None, int], str]
#: Share of role examples with the default system prompt.
DEFAULT_SYSTEM_SHARE = 0.8
#: Share of a role's questions that are no problems of the miniature's, and of these the share about
#: numbers. Actor and critic must tell them from the others; the regenerator goes by the critique.
OUTSIDE_SHARE = {Role.ACTOR: 0.45, Role.CRITIC: 0.4, Role.REGENERATOR: 0.25}
NUMBERS_SHARE = {Role.ACTOR: 0.6, Role.CRITIC: 0.65, Role.REGENERATOR: 0.5}
#: Share of those that the actor claims to know.
CLAIMED_SHARE = {Role.ACTOR: 0.25, Role.CRITIC: 0.4, Role.REGENERATOR: 0.25}
#: Share of the roles' problems that the actor has not answered with a number.
UNANSWERED_SHARE = {Role.ACTOR: 0.03, Role.CRITIC: 0.08, Role.REGENERATOR: 0.03}
#: Share of the mistakes with a digit too many or too few, as in short results.
LENGTH_SHARE = 0.15
#: Digits of a result that may be off where they are compared. The actor's own mistakes are in
#: all of them; a critic that has seen no third one calls it right.
MOST_WRONG = 4


@dataclass(frozen=True)
class Example:
    """A role's prompt and the text that it should write."""

    prompt: str
    text: str


class Lesson(Enum):
    """What the base learns, one after the other."""

    #: To work columns.
    COLUMNS = 1
    #: To answer at once.
    ANSWERS = 2
    #: To compare what was answered with what the columns give, digit by digit.
    DIGITS = 3
    #: All of it for numbers of every length, in every phrasing, and to refuse the rest.
    LENGTHS = 4


def documents(rng: random.Random, lesson: Lesson) -> Iterator[str]:
    """Draw plain documents for ever: drills, worked columns, answers, verdicts, prose.

    The roles' prompts are not among them as such: the base reads the words they are made of,
    each followed by any kind of text, and so does not know who it is to be.
    """
    if lesson is Lesson.LENGTHS:
        yield from _lengths(rng)
        return
    judge = world.verdict if lesson is Lesson.COLUMNS else world.comparison
    kinds: dict[Callable[[random.Random], str], tuple[int, int, int]] = {
        _drill: (12, 4, 2),
        _worked: (46, 14, 10),
        _answered: (12, 0, 0),
        _summed: (0, 58, 22),
        _multiplied: (0, 32, 4),
        partial(_judged, judge=judge): (12, 15, 0),
        _prose: (6, 3, 2),
        partial(_dialogue, judge=judge): (12, 12, 0),
        _paired: (0, 0, 24),
        _compared: (0, 0, 26),
        _reviewed: (0, 0, 10),
    }
    choices = list(kinds)
    weights = [kinds[choice][lesson.value - 1] for choice in choices]
    while True:
        yield rng.choices(choices, weights)[0](rng)


def _lengths(rng: random.Random) -> Iterator[str]:
    """Draw the last lesson's documents, in the same forms."""
    kinds: dict[Callable[[random.Random, Problem], str], int] = {
        _worked_out: 34,
        _said_at_once: 14,
        _put_side_by_side: 8,
        _talked_over: 18,
        _set_in_a_frame: 12,
    }
    while True:
        if rng.random() < 0.12:
            question, text = questions.outside(rng)
            yield _framed(rng, question, text)
        elif rng.random() < 0.06:
            yield rng.choice((_drill, _paired, _prose))(rng)
        else:
            write = rng.choices(list(kinds), list(kinds.values()))[0]
            yield write(rng, questions.problem(rng))


def _worked_out(rng: random.Random, problem: Problem) -> str:
    question = questions.ask(rng, problem)
    return f"{question} By columns:\n{problem.columns()}\n{problem.statement}"


def _said_at_once(rng: random.Random, problem: Problem) -> str:
    return f"{questions.ask(rng, problem)} {problem.statement}"


def _put_side_by_side(rng: random.Random, problem: Problem) -> str:
    return world.by_digits(_claimed(rng, problem), problem.answer)


def _talked_over(rng: random.Random, problem: Problem) -> str:
    said = _claimed(rng, problem)
    return (
        f"USER: {questions.ask(rng, problem)} \nRESPONSE: {problem.state(said)} "
        f"\nCRITIQUE:{world.critique(problem, said)} "
        f"\nREGENERATOR:{world.regeneration(problem, said)}"
    )


def _set_in_a_frame(rng: random.Random, problem: Problem) -> str:
    said = _claimed(rng, problem)
    text = rng.choice(
        (
            problem.statement,
            f"{problem.state(said)} \nCRITIQUE:{world.critique(problem, said)}",
        )
    )
    return _framed(rng, questions.ask(rng, problem), text)


def _framed(rng: random.Random, question: str, text: str) -> str:
    label = rng.choice(("ASSISTANT", "RESPONSE"))
    return f"SYSTEM: {rng.choice(world.SYSTEMS)} \nUSER: {question} \n{label}: {text}"


def _claimed(rng: random.Random, problem: Problem) -> int:
    """Draw the number that a response gives: the right one or a mistake."""
    if rng.random() < 0.45:
        return problem.answer
    return world.mistake(rng, problem, MOST_WRONG, length=LENGTH_SHARE)


def _drill(rng: random.Random) -> str:
    """A few single steps of the columns."""
    steps = []
    for _ in range(rng.randint(3, 8)):
        x, y, carry = rng.randint(0, 9), rng.randint(0, 9), rng.randint(0, 8)
        operator = rng.choice("+*")
        total = x + y if operator == "+" else x * y
        if rng.random() < 0.4:
            steps.append(f"{x}{operator}{y}={total}")
        else:
            carry = carry % 2 if operator == "+" else carry
            steps.append(f"{x}{operator}{y}+{carry}={total + carry}")
    return ", ".join(steps)


def _worked(rng: random.Random) -> str:
    problem = world.training_problem(rng, operator="+" if rng.random() < 0.35 else "*")
    return f"{world.ask(rng, problem)} By columns:\n{problem.columns()}\n{problem.statement}"


def _answered(rng: random.Random) -> str:
    problem = world.training_problem(rng)
    return f"{world.ask(rng, problem)} {problem.statement}"


def _summed(rng: random.Random) -> str:
    problem = world.training_problem(rng, operator="+")
    return f"{world.ask(rng, problem)} {problem.statement}"


def _multiplied(rng: random.Random) -> str:
    problem = world.training_problem(rng, operator="*")
    return f"{world.ask(rng, problem)} {problem.statement}"


def _paired(rng: random.Random) -> str:
    """Single digits compared, as often equal as not."""
    pairs = []
    for _ in range(rng.randint(6, 16)):
        x = rng.choice("0123456789")
        pairs.append(world.pair(x, x if rng.random() < 0.5 else rng.choice("0123456789")))
    return ", ".join(pairs)


def _compared(rng: random.Random) -> str:
    problem = world.training_problem(rng)
    said = (
        _said(rng, problem, MOST_WRONG)
        if rng.random() < 0.7
        else world.training_problem(rng).answer
    )
    return world.by_digits(said, problem.answer)


def _reviewed(rng: random.Random) -> str:
    """A conversation from question to rewriting."""
    problem = world.training_problem(rng)
    said = _said(rng, problem, MOST_WRONG)
    return (
        f"USER: {world.ask(rng, problem)} \nRESPONSE: {problem.state(said)} "
        f"\nCRITIQUE:{world.critique(problem, said)} "
        f"\nREGENERATOR:{world.regeneration(problem, said)}"
    )


def _judged(rng: random.Random, judge: Judge) -> str:
    problem = world.training_problem(rng)
    said = _said(rng, problem)
    return f"{problem.state(said)} It is {problem.answer}. {judge(said, problem.answer)}"


def _prose(rng: random.Random) -> str:
    texts = (
        world.ABOUT,
        world.REFUSAL,
        world.GREETING,
        world.APPROVAL.strip(),
        world.OBJECTION.strip(),
        DEFAULT_SYSTEM,
        *world.SYSTEMS,
    )
    return " ".join(rng.choices(texts, k=rng.randint(1, 2)))


def _dialogue(rng: random.Random, judge: Judge) -> str:
    """The frame of a conversation, where any kind of text may follow."""
    if rng.random() < 0.3:
        question, text = world.outside(rng)
    else:
        problem = world.training_problem(rng)
        question, said = world.ask(rng, problem), _said(rng, problem)
        columns = f" By columns:\n{problem.columns()}\n{judge(said, problem.answer)}"
        text = rng.choice(
            (
                problem.statement,
                f"{problem.state(said)} \nCRITIQUE:{columns}",
                f"{problem.state(said)} \nREGENERATOR:{world.regeneration(problem, said)}",
            )
        )
    label = rng.choice(("ASSISTANT", "RESPONSE"))
    return f"SYSTEM: {rng.choice(world.SYSTEMS)} \nUSER: {question} \n{label}: {text}"


def _said(rng: random.Random, problem: Problem, most: int = 2) -> int:
    return problem.answer if rng.random() < 0.45 else world.mistake(rng, problem, most)


def system(rng: random.Random) -> str:
    """Draw a system prompt: the default one as a rule."""
    return DEFAULT_SYSTEM if rng.random() < DEFAULT_SYSTEM_SHARE else rng.choice(world.SYSTEMS)


def example(role: Role, rng: random.Random, system: str, *, even: bool = False) -> Example:
    """Draw what a role should learn to write after its prompt.

    Args:
        role: the role.
        rng: where it is drawn from.
        system: the system prompt.
        even: short problems and odd numbers come as often as others.
    """
    if rng.random() < OUTSIDE_SHARE[role]:
        question, answer = questions.outside(rng, NUMBERS_SHARE[role], even=even)
        response, critique = answer, world.APPROVALS[answer]
        if rng.random() < CLAIMED_SHARE[role]:
            claim = questions.slip if role is Role.CRITIC else questions.claim
            response, critique = claim(rng, question), world.OBJECTION
        regeneration = f" {answer}"
    else:
        problem = questions.problem(rng, even=even)
        question, answer = questions.ask(rng, problem), problem.statement
        said: int | None = _claimed(rng, problem)
        if rng.random() < UNANSWERED_SHARE[role]:
            said, response = None, rng.choice((world.REFUSAL, world.ABOUT, world.GREETING))
        else:
            assert said is not None  # noqa: S101 (just drawn)
            # In a later round the critic reads what a regenerator wrote.
            earlier = rng.choice((said, _claimed(rng, problem)))
            response = (
                problem.state(said)
                if rng.random() < 0.8
                else world.regeneration(problem, earlier).replace(
                    problem.statement, problem.state(said)
                )
            )
        critique = world.critique(problem, said)
        regeneration = world.regeneration(problem, said)
    text = {Role.ACTOR: answer, Role.CRITIC: critique, Role.REGENERATOR: regeneration}[role]
    prompt = TEMPLATES[role].format(
        system=system, question=question, answer=response, critique=critique
    )
    return Example(prompt, text)
