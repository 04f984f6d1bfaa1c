"""HelixNet as data: roles, prompts, sampling parameters, and the order of a job's stages.

Prompts and sampling parameters are exactly those of the code in the HelixNet-LMoE model card. This
module imports the standard library only, so that the engine can use its types.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, Literal


class Role(StrEnum):
    """A role of the pipeline. Each has its own adapter."""

    ACTOR = "actor"
    CRITIC = "critic"
    REGENERATOR = "regenerator"


#: The model card's system prompt.
DEFAULT_SYSTEM = (
    "You are HelixNet. Elaborate on the topic using a Tree of Thoughts and backtrack when "
    "necessary to construct a clear, cohesive Chain of Thought reasoning. Always answer "
    "without hesitation."
)

#: The prompts. The spaces before each newline and after ``ASSISTANT:`` belong to them.
TEMPLATES = {
    Role.ACTOR: "SYSTEM: {system} \nUSER: {question} \nASSISTANT: ",
    Role.CRITIC: "SYSTEM: {system} \nUSER: {question} \nRESPONSE: {answer} \nCRITIQUE:",
    Role.REGENERATOR: (
        "SYSTEM: {system} \nUSER: {question} \nRESPONSE: {answer} \n"
        "CRITIQUE: {critique} \nREGENERATOR:"
    ),
}

#: How earlier turns of a conversation are written, each in the words of the actor's prompt. The model
#: card has none: they come between the system prompt and the question of all three prompts.
TURN_TEMPLATES = {"user": "USER: {text} \n", "assistant": "ASSISTANT: {text} \n"}

#: The labels of the roles' texts in the model card's interactive program, in `helixq ask` and `chat`.
LABELS = {Role.ACTOR: "ACTOR", Role.CRITIC: "CRITIQUE", Role.REGENERATOR: "REGENERATION"}

#: The pipeline's name as a model of the API.
MODEL = "helixnet"

MAX_ROUNDS = 5
MAX_PRIORITY = 9
DEFAULT_PRIORITY = 5
#: The maximum seed: all JSON parsers read integers up to it exactly.
MAX_SEED = 2**53 - 1


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters of a stage. The defaults are the model card's."""

    #: 0 for greedy decoding.
    temperature: float = 0.75
    #: 0 for the whole vocabulary.
    top_k: int = 50
    top_p: float = 1.0
    #: The maximum number of new tokens of a stage.
    max_output_tokens: int = 1024
    seed: int = 0
    #: The text ends before the first of these strings.
    stop: tuple[str, ...] = ()


#: The parameters that jobs and attempts have as columns, and their histories as fields, under the same names. An
#: attempt has no `stop`, since only the last stage ends there.
SAMPLING_PARAMETERS = tuple(field.name for field in fields(Sampling) if field.name != "stop")


def sampling_values(of: object) -> dict[str, Any]:
    """Return `SAMPLING_PARAMETERS` of a `Sampling`, a job or an attempt, by their names."""
    return {name: getattr(of, name) for name in SAMPLING_PARAMETERS}


@dataclass(frozen=True)
class Turn:
    """One message of the conversation before the question."""

    role: Literal["user", "assistant"]
    text: str


@dataclass(frozen=True)
class Stage:
    """One stage of a job."""

    #: 0, 1, 2, … in the order in which the stages run.
    index: int
    role: Role
    #: 1 for the answer, the first critique and the first regeneration.
    round: int


def label(role: Role, round_: int, rounds: int) -> str:
    """Return the label of a stage's text: the card's, with the number of the round where there are several."""
    return LABELS[role] if rounds == 1 or role is Role.ACTOR else f"{LABELS[role]} {round_}"


@functools.cache
def stages(rounds: int = 1) -> tuple[Stage, ...]:
    """Return a job's stages: the actor, then critic and regenerator in each round."""
    return (
        Stage(0, Role.ACTOR, 1),
        *(
            Stage(index, role, round_)
            for index, (round_, role) in enumerate(
                itertools.product(range(1, rounds + 1), (Role.CRITIC, Role.REGENERATOR)), start=1
            )
        ),
    )


@dataclass(frozen=True)
class NextStage:
    """The next stage of a job: what its message to the workers is made of."""

    job_id: str
    stage_index: int
    #: The job's.
    rounds: int
    #: The job's. It applies to the first stage; later stages go first.
    priority: int
    #: The model of the job's run; None if no stage of it was claimed yet.
    model: str | None = None


def prompt(
    stage: Stage,
    system: str,
    question: str,
    outputs: Sequence[str],
    turns: Sequence[Turn] = (),
) -> str:
    """Return a stage's prompt, which contains the outputs of earlier stages unchanged.

    A critic reads the last answer; a regenerator reads that answer and its critique.

    Args:
        stage: the stage.
        system: the system prompt.
        question: the user's question.
        outputs: the outputs of the stages ``0 … stage.index - 1``.
        turns: the turns before the question. Without any, the prompt is the model card's.
    """
    answer = critique = ""
    if stage.role is Role.CRITIC:
        answer = outputs[stage.index - 1]
    elif stage.role is Role.REGENERATOR:
        answer, critique = outputs[stage.index - 2], outputs[stage.index - 1]
    before, user, after = TEMPLATES[stage.role].partition("USER: ")
    earlier = "".join(TURN_TEMPLATES[turn.role].format(text=turn.text) for turn in turns)
    return (
        before.format(system=system)
        + earlier
        + (user + after).format(question=question, answer=answer, critique=critique)
    )


def stage_seed(seed: int, stage_index: int) -> int:
    """Return the seed of a stage, derived from its job's: the same job seed gives the same texts."""
    digest = hashlib.blake2b(f"{seed}/{stage_index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) & MAX_SEED
