"""HelixNet as data: roles, prompts, sampling, and the order of a job's stages.

The prompts and the sampling are those of the HelixNet-LMoE model card's code,
to the character. This module needs the standard library alone, so that the
engine can use its types without the queue or the database.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """What an adapter of the base model was made to do."""

    ACTOR = "actor"
    CRITIC = "critic"
    REGENERATOR = "regenerator"


#: The system prompt of the card's code.
DEFAULT_SYSTEM = (
    "You are HelixNet. Elaborate on the topic using a Tree of Thoughts and backtrack when "
    "necessary to construct a clear, cohesive Chain of Thought reasoning. Always answer "
    "without hesitation."
)

#: The spaces before each newline, and the one after ``ASSISTANT:``, belong to the prompts.
TEMPLATES = {
    Role.ACTOR: "SYSTEM: {system} \nUSER: {question} \nASSISTANT: ",
    Role.CRITIC: "SYSTEM: {system} \nUSER: {question} \nRESPONSE: {answer} \nCRITIQUE:",
    Role.REGENERATOR: (
        "SYSTEM: {system} \nUSER: {question} \nRESPONSE: {answer} \n"
        "CRITIQUE: {critique} \nREGENERATOR:"
    ),
}

#: The word the card's interactive program prints before each role's text.
LABELS = {Role.ACTOR: "ACTOR", Role.CRITIC: "CRITIQUE", Role.REGENERATOR: "REGENERATION"}

#: The name of the pipeline as a model in the API.
MODEL = "helixnet"

MAX_ROUNDS = 5
MAX_PRIORITY = 9
DEFAULT_PRIORITY = 5
#: Seeds stay below 2**53 so that every JSON reader keeps them exactly.
MAX_SEED = 2**53 - 1


@dataclass(frozen=True)
class Sampling:
    """How one stage's tokens are drawn; the defaults are the card's."""

    #: 0 is greedy decoding.
    temperature: float = 0.75
    #: 0 keeps the whole vocabulary.
    top_k: int = 50
    top_p: float = 1.0
    #: The most new tokens of one stage.
    max_output_tokens: int = 1024
    seed: int = 0


@dataclass(frozen=True)
class Stage:
    """One link of a job's chain."""

    #: 0, 1, 2, … in the order the stages run.
    index: int
    role: Role
    #: 1 for the first critique and regeneration, and the answer they start from.
    round: int


def stages(rounds: int = 1) -> tuple[Stage, ...]:
    """Return a job's stages: the actor, then critic and regenerator once a round."""
    return (
        Stage(0, Role.ACTOR, 1),
        *(
            Stage(index, role, round_)
            for index, (round_, role) in enumerate(
                itertools.product(range(1, rounds + 1), (Role.CRITIC, Role.REGENERATOR)), start=1
            )
        ),
    )


def prompt(stage: Stage, system: str, question: str, outputs: Sequence[str]) -> str:
    """Build a stage's prompt from the texts of the stages before it, unchanged.

    A critic reads the last answer; a regenerator reads that answer and its critique.

    Args:
        stage: the stage that is about to run.
        system: the system prompt.
        question: the user's question.
        outputs: the outputs of stages ``0 … stage.index - 1``.
    """
    answer = critique = ""
    if stage.role is Role.CRITIC:
        answer = outputs[stage.index - 1]
    elif stage.role is Role.REGENERATOR:
        answer, critique = outputs[stage.index - 2], outputs[stage.index - 1]
    return TEMPLATES[stage.role].format(
        system=system, question=question, answer=answer, critique=critique
    )


def stage_seed(seed: int, stage_index: int) -> int:
    """Derive the seed of one stage from its job's: same job seed, same texts, on any worker."""
    digest = hashlib.blake2b(f"{seed}/{stage_index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) & MAX_SEED
