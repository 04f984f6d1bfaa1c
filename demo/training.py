"""One training loop for base and fine-tunes: seeded, resumable after every save, logged."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import MistralForCausalLM, PreTrainedTokenizerFast

from demo import corpus
from demo.corpus import Lesson
from demo.muon import Muon
from jobs.pipeline import Role

#: A label that the loss passes over.
IGNORED = -100
#: Parts of the seeds of the lessons' documents.
KEYS = {
    Lesson.COLUMNS: "base",
    Lesson.ANSWERS: "base/answers",
    Lesson.DIGITS: "base/digits",
    Lesson.LENGTHS: "base/lengths",
}
#: Of the decoder's matrices.
WEIGHT_DECAY = 0.05


@dataclass(frozen=True)
class Plan:
    """How long and how fast to train."""

    steps: int
    #: Highest learning rate of AdamW for the decoder's matrices.
    rate: float
    #: The same for embedding, head and norms; ``rate`` if None. What a fine-tune changes there is
    #: lost to an adapter.
    rest_rate: float | None = None
    #: Highest learning rate of Muon, which then trains the matrices instead.
    muon_rate: float = 0.0
    warmup: int = 50
    #: Optimiser steps between two saves.
    save_every: int = 100


#: Gives the loss of a step's batch, a scalar tensor.
Loss = Callable[[MistralForCausalLM, int], torch.Tensor]


def train(model: MistralForCausalLM, loss: Loss, plan: Plan, folder: Path, title: str) -> None:
    """Train a model in place; go on where an earlier run in ``folder`` was interrupted.

    A step's batch depends on the step's number alone, so that a run that was interrupted gives
    the weights of one that was not.

    Args:
        model: the model, float32, on the CPU.
        loss: computes the loss of a step's batch.
        plan: steps and learning rates.
        folder: where the state (``state.pt``) and the curve (``loss.json``) are kept.
        title: what the progress bar says.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state_file, curve_file = folder / "state.pt", folder / "loss.json"
    optimizers = _optimizers(model, plan)
    curve: list[float] = []
    start = 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        start = state["step"]
        curve = json.loads(curve_file.read_text())[:start]
    peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    if start:
        peaks = state["peaks"]
    model.train()
    progress = tqdm(range(start, plan.steps), title, plan.steps, initial=start, unit="step")
    for step in progress:
        factor = _schedule(step, plan)
        for optimizer, rates in zip(optimizers, peaks, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
        value = loss(model, step)
        value.backward()  # type: ignore[no-untyped-call]  # torch has no types there
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        curve.append(round(float(value.detach()), 5))
        progress.set_postfix(loss=f"{curve[-1]:.3f}", refresh=False)
        if (step + 1) % plan.save_every == 0 or step + 1 == plan.steps:
            curve_file.write_text(json.dumps(curve))
            new = state_file.with_suffix(".new")
            torch.save(
                {
                    "model": model.state_dict(),
                    "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                    "peaks": peaks,
                    "step": step + 1,
                },
                new,
            )
            new.replace(state_file)
    model.train(False)


def _optimizers(model: MistralForCausalLM, plan: Plan) -> list[torch.optim.Optimizer]:
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    rest = plan.rate if plan.rest_rate is None else plan.rest_rate
    groups: list[dict[str, Any]] = [{"params": others, "weight_decay": 0.0, "lr": rest}]
    optimizers: list[torch.optim.Optimizer] = []
    if plan.muon_rate:
        optimizers.append(Muon(matrices, lr=plan.muon_rate, weight_decay=WEIGHT_DECAY))
    else:
        groups.append({"params": matrices, "weight_decay": WEIGHT_DECAY})
    adam = torch.optim.AdamW(groups, lr=plan.rate, betas=(0.9, 0.98), fused=True)
    return [adam, *optimizers]


def _schedule(step: int, plan: Plan) -> float:
    """Linear warm-up, then a cosine down to a fiftieth."""
    if step < plan.warmup:
        return (step + 1) / plan.warmup
    done = (step - plan.warmup) / max(1, plan.steps - plan.warmup)
    return 0.02 + 0.98 * (1 + math.cos(math.pi * done)) / 2


def base_loss(
    lesson: Lesson,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    *,
    rows: int = 8,
    length: int = 256,
) -> Loss:
    """Learn to go on with plain documents: rows of documents one after another."""

    def loss(model: MistralForCausalLM, step: int) -> torch.Tensor:
        documents = corpus.documents(random.Random(f"{seed}/{KEYS[lesson]}/{step}"), lesson)
        ids = torch.tensor(list(_packed(tokenizer, documents, rows, length)))
        found: torch.Tensor = model(input_ids=ids, labels=ids, use_cache=False).loss
        return found

    return loss


def _packed(
    tokenizer: PreTrainedTokenizerFast, documents: Iterator[str], rows: int, length: int
) -> Iterator[list[int]]:
    for _ in range(rows):
        row: list[int] = []
        while len(row) < length:
            row += tokenizer.encode(next(documents))
            row.append(tokenizer.eos_token_id)
        yield row[:length]


def role_loss(
    role: Role,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    *,
    examples: int = 32,
    even: bool = False,
) -> Loss:
    """Learn to write a role's text after its prompt; the prompt itself is not learnt.

    All examples of a batch have the same system prompt. What their prompts begin with is
    computed once, for all of them: the gradient is the same, and half of the work is saved.
    ``even`` is that of `demo.corpus.example`, with draws of its own.
    """
    key = f"{role}/even" if even else role

    def loss(model: MistralForCausalLM, step: int) -> torch.Tensor:
        rng = random.Random(f"{seed}/{key}/{step}")
        system = corpus.system(rng)
        drawn = [corpus.example(role, rng, system, even=even) for _ in range(examples)]
        prompts = [tokenizer.encode(e.prompt) for e in drawn]
        texts = [
            [*tokenizer.encode(e.text, add_special_tokens=False), tokenizer.eos_token_id]
            for e in drawn
        ]
        shared = _common(prompts)
        rows = [p[shared:] + t for p, t in zip(prompts, texts, strict=True)]
        length = max(map(len, rows))
        # What follows a row's end changes nothing before it: any token will do there.
        ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
        labels = torch.tensor(
            [
                [IGNORED] * (len(p) - shared) + t + [IGNORED] * (length - len(row))
                for p, t, row in zip(prompts, texts, rows, strict=True)
            ]
        )
        prefix = model.model(input_ids=torch.tensor([prompts[0][:shared]]), use_cache=True)
        cache = prefix.past_key_values
        for layer in cache.layers:
            layer.keys = layer.keys.expand(examples, -1, -1, -1)
            layer.values = layer.values.expand(examples, -1, -1, -1)
        hidden = model.model(input_ids=ids, past_key_values=cache).last_hidden_state[:, :-1]
        wanted = labels[:, 1:]
        learnt = wanted != IGNORED
        return torch.nn.functional.cross_entropy(model.lm_head(hidden[learnt]), wanted[learnt])

    return loss


def _common(rows: list[list[int]]) -> int:
    """Return how many tokens all rows begin with; each keeps at least one of its own."""
    first, last = min(rows), max(rows)
    shortest = min(map(len, rows)) - 1
    for i in range(shortest):
        if first[i] != last[i]:
            return i
    return shortest
