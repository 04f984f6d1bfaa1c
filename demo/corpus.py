"""The training data: plain documents for the base, prompts and texts for the roles."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from functools import partial

from demo import questions, world
from demo.world import Problem
from jobs.pipeline import DEFAULT_SYSTEM, TEMPLATES, Role

#: Returns a sentence that says whether a number is the answer.
Judge = Callable[[int | None, int], str]
#: Share of role examples with the default system prompt.
DEFAULT_SYSTEM_SHARE = 0.8
#: Share of a role's questions that are not the miniature's problems, and among these the share about
#: numbers. Actor and critic must recognize them; the regenerator follows the critique.
OUTSIDE_SHARE = {Role.ACTOR: 0.45, Role.CRITIC: 0.4, Role.REGENERATOR: 0.25}
NUMBERS_SHARE = {Role.ACTOR: 0.6, Role.CRITIC: 0.65, Role.REGENERATOR: 0.5}
#: Share of these questions that the actor answers instead of refusing.
CLAIMED_SHARE = {Role.ACTOR: 0.25, Role.CRITIC: 0.4, Role.REGENERATOR: 0.25}
#: Share of a role's problems that the actor answers without a number.
UNANSWERED_SHARE = {Role.ACTOR: 0.03, Role.CRITIC: 0.08, Role.REGENERATOR: 0.03}
#: Share of mistakes with a digit too many or too few, as in short results.
LENGTH_SHARE = 0.15
#: The maximum number of wrong digits in comparisons. The actor makes mistakes in any of four digits, and
#: a critic that was never trained on a wrong third digit accepts it.
MAX_WRONG = 4


@dataclass(frozen=True)
class Example:
    """A role's prompt and the text that it should generate."""

    prompt: str
    text: str


class Lesson(Enum):
    """The base's lessons, in their order."""

    #: Computing in columns.
    COLUMNS = 1
    #: Answering directly.
    ANSWERS = 2
    #: Comparing an answer with the result of the columns, digit by digit.
    DIGITS = 3
    #: All of it for numbers of every length and in every phrasing, and refusing other questions.
    LENGTHS = 4


def documents(rng: random.Random, lesson: Lesson) -> Iterator[str]:
    """Draw plain documents without end: drills, columns, answers, verdicts, prose.

    They do not contain the roles' prompts. The base sees the words of the prompts, each followed by any
    kind of text, and so learns no role.
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
    claimed = _claimed(rng, problem)
    return (
        f"USER: {questions.ask(rng, problem)} \nRESPONSE: {problem.state(claimed)} "
        f"\nCRITIQUE:{world.critique(problem, claimed)} "
        f"\nREGENERATOR:{world.regeneration(problem, claimed)}"
    )


def _set_in_a_frame(rng: random.Random, problem: Problem) -> str:
    claimed = _claimed(rng, problem)
    text = rng.choice(
        (
            problem.statement,
            f"{problem.state(claimed)} \nCRITIQUE:{world.critique(problem, claimed)}",
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
    return world.mistake(rng, problem, MAX_WRONG, length=LENGTH_SHARE)


def _drill(rng: random.Random) -> str:
    """Draw some single steps of column computations."""
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
    """Draw comparisons of single digits, half of them equal."""
    pairs = []
    for _ in range(rng.randint(6, 16)):
        x = rng.choice("0123456789")
        pairs.append(world.pair(x, x if rng.random() < 0.5 else rng.choice("0123456789")))
    return ", ".join(pairs)


def _compared(rng: random.Random) -> str:
    problem = world.training_problem(rng)
    claimed = (
        _answer_or_mistake(rng, problem, MAX_WRONG)
        if rng.random() < 0.7
        else world.training_problem(rng).answer
    )
    return world.by_digits(claimed, problem.answer)


def _reviewed(rng: random.Random) -> str:
    """Draw a conversation from the question to the regeneration."""
    problem = world.training_problem(rng)
    claimed = _answer_or_mistake(rng, problem, MAX_WRONG)
    return (
        f"USER: {world.ask(rng, problem)} \nRESPONSE: {problem.state(claimed)} "
        f"\nCRITIQUE:{world.critique(problem, claimed)} "
        f"\nREGENERATOR:{world.regeneration(problem, claimed)}"
    )


def _judged(rng: random.Random, judge: Judge) -> str:
    problem = world.training_problem(rng)
    claimed = _answer_or_mistake(rng, problem)
    return f"{problem.state(claimed)} It is {problem.answer}. {judge(claimed, problem.answer)}"


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
    """Draw the beginning of a conversation, followed by any kind of text."""
    if rng.random() < 0.3:
        question, text = world.outside(rng)
    else:
        problem = world.training_problem(rng)
        question, claimed = world.ask(rng, problem), _answer_or_mistake(rng, problem)
        columns = f" By columns:\n{problem.columns()}\n{judge(claimed, problem.answer)}"
        text = rng.choice(
            (
                problem.statement,
                f"{problem.state(claimed)} \nCRITIQUE:{columns}",
                f"{problem.state(claimed)} \nREGENERATOR:{world.regeneration(problem, claimed)}",
            )
        )
    label = rng.choice(("ASSISTANT", "RESPONSE"))
    return f"SYSTEM: {rng.choice(world.SYSTEMS)} \nUSER: {question} \n{label}: {text}"


def _answer_or_mistake(rng: random.Random, problem: Problem, max_wrong: int = 2) -> int:
    return problem.answer if rng.random() < 0.45 else world.mistake(rng, problem, max_wrong)


def system(rng: random.Random) -> str:
    """Draw a system prompt, usually the default one."""
    return DEFAULT_SYSTEM if rng.random() < DEFAULT_SYSTEM_SHARE else rng.choice(world.SYSTEMS)


def example(role: Role, rng: random.Random, system: str, *, even: bool = False) -> Example:
    """Draw a prompt of a role and the text that it should generate.

    Args:
        role: the role.
        rng: the random generator.
        system: the system prompt.
        even: whether short problems and unusual numbers are as frequent as others.
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
        number = _claimed(rng, problem)
        claimed: int | None = number
        if rng.random() < UNANSWERED_SHARE[role]:
            claimed, response = None, rng.choice((world.REFUSAL, world.ABOUT, world.GREETING))
        else:
            # In later rounds, the critic reads a regeneration.
            earlier_claim = rng.choice((number, _claimed(rng, problem)))
            response = (
                problem.state(number)
                if rng.random() < 0.8
                else world.regeneration(problem, earlier_claim).replace(
                    problem.statement, problem.state(number)
                )
            )
        critique = world.critique(problem, claimed)
        regeneration = world.regeneration(problem, claimed)
    text = {Role.ACTOR: answer, Role.CRITIC: critique, Role.REGENERATOR: regeneration}[role]
    prompt = TEMPLATES[role].format(
        system=system, question=question, answer=response, critique=critique
    )
    return Example(prompt, text)
