"""Answer a task's questions with a form, and count right answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jobs import pipeline
from jobs.pipeline import MAX_SEED, Role, Sampling, stage_seed
from worker.evaluation.forms import Form, Tick
from worker.evaluation.statistics import Paired, Share, compare, share
from worker.evaluation.task import Question, Task


@dataclass(frozen=True)
class Transcript:
    """One question and the three texts about it."""

    question: Question
    answer: str
    critique: str
    regeneration: str
    #: Whether the answer, and the regeneration, are right.
    before: bool
    after: bool
    #: Whether the critique takes the answer to be right; None where verdicts are not read.
    approved: bool | None

    def describe(self) -> dict[str, Any]:
        return {
            "question": self.question.question,
            "expected": self.question.answer,
            "kind": self.question.kind,
            "actor": self.answer,
            "critic": self.critique,
            "regenerator": self.regeneration,
            "actor_right": self.before,
            "critic_approved": self.approved,
            "regenerator_right": self.after,
        }


@dataclass(frozen=True)
class Counts:
    """Counts of right answers and verdicts over transcripts."""

    actor: Share
    regenerator: Share
    #: From actor to regenerator.
    change: Paired
    #: How often the critic's verdict is right; None if verdicts are not read.
    verdict: Share | None

    def describe(self) -> dict[str, Any]:
        return {
            "actor": self.actor.describe(),
            "critic": self.verdict.describe() if self.verdict else None,
            "regenerator": self.regenerator.describe(),
            "change": self.change.describe(),
        }


@dataclass(frozen=True)
class Measurement:
    """The texts and counts of one form on a task."""

    name: str
    transcripts: tuple[Transcript, ...]
    weight_bytes: int

    @property
    def counts(self) -> dict[str, Counts]:
        """The counts of each kind, coarse and fine, and of ``all``, which comes first."""
        kinds = {"all": list(self.transcripts)}
        for transcript in self.transcripts:
            for kind in transcript.question.kinds:
                kinds.setdefault(kind, []).append(transcript)
        return {kind: _count(transcripts) for kind, transcripts in kinds.items()}

    def describe(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "weight_bytes": self.weight_bytes,
            "counts": {kind: counts.describe() for kind, counts in self.counts.items()},
        }


def measure(
    form: Form,
    task: Task,
    *,
    system: str,
    sampling: Sampling,
    batch: int,
    tick: Callable[[Role], Tick],
) -> Measurement:
    """Answer all questions of a task with a form as the service would, and grade its texts.

    Args:
        form: the form that generates.
        task: the questions.
        system: the system prompt.
        sampling: how tokens are drawn. Its seed is that of the first question, and each later one has the next: with
            the same noise for all of them, their results would not be independent.
        batch: number of prompts generated together.
        tick: for each role, returns the callback for its generated texts.
    """
    texts: list[list[str]] = [[] for _ in task.questions]
    for stage in pipeline.stages():
        prompts = [
            pipeline.prompt(stage, system, question.question, outputs)
            for question, outputs in zip(task.questions, texts, strict=True)
        ]
        samplings = [
            replace(sampling, seed=stage_seed((sampling.seed + i) & MAX_SEED, stage.index))
            for i in range(len(prompts))
        ]
        generated = form.write(stage.role, prompts, samplings, batch, tick(stage.role))
        for outputs, text in zip(texts, generated, strict=True):
            outputs.append(text)
    return Measurement(
        name=form.name,
        transcripts=tuple(
            Transcript(
                question,
                answer,
                critique,
                regeneration,
                before=task.is_right(question, answer),
                after=task.is_right(question, regeneration),
                approved=bool(task.approval.search(critique)) if task.approval else None,
            )
            for question, (answer, critique, regeneration) in zip(
                task.questions, texts, strict=True
            )
        ),
        weight_bytes=form.weight_bytes(),
    )


def difference(first: Measurement, second: Measurement) -> Paired:
    """Compare two forms' regenerators on the same questions."""
    return compare([t.after for t in first.transcripts], [t.after for t in second.transcripts])


def _count(transcripts: Sequence[Transcript]) -> Counts:
    before = [t.before for t in transcripts]
    after = [t.after for t in transcripts]
    verdicts = [t.approved == t.before for t in transcripts if t.approved is not None]
    return Counts(
        actor=share(before),
        regenerator=share(after),
        change=compare(before, after),
        verdict=share(verdicts) if verdicts else None,
    )
