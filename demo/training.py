"""The training loop for base and fine-tunes: seeded, resumable from its last save, logged."""

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

#: The label of tokens that the loss ignores.
IGNORED = -100
#: Keys of the lessons in the seeds of their documents.
KEYS = {
    Lesson.COLUMNS: "base",
    Lesson.ANSWERS: "base/answers",
    Lesson.DIGITS: "base/digits",
    Lesson.LENGTHS: "base/lengths",
}
#: Weight decay of the decoder's matrices.
WEIGHT_DECAY = 0.05


@dataclass(frozen=True)
class Plan:
    """Number of steps and learning rates of a training."""

    steps: int
    #: Peak learning rate of AdamW for the decoder's matrices.
    rate: float
    #: Peak learning rate for embedding, head and norms; ``rate`` if None. An adapter cannot hold their
    #: changes.
    rest_rate: float | None = None
    #: Peak learning rate of Muon, which trains the matrices if this is not 0.
    muon_rate: float = 0.0
    warmup: int = 50
    #: Number of steps between two saves.
    save_every: int = 100


#: Returns the loss of a step's batch, a scalar tensor.
Loss = Callable[[MistralForCausalLM, int], torch.Tensor]


def train(model: MistralForCausalLM, loss: Loss, plan: Plan, folder: Path, title: str) -> None:
    """Train a model in place. Continue a run in ``folder`` that was interrupted.

    A step's batch depends only on the step's number, so an interrupted run gives the same weights as
    an uninterrupted one.

    Args:
        model: the model, float32, on the CPU.
        loss: computes the loss of a step's batch.
        plan: steps and learning rates.
        folder: for the state (``state.pt``) and the losses (``loss.json``).
        title: of the progress bar.
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
    matrix_ids = {id(p) for p in matrices}
    other_parameters = [p for p in model.parameters() if id(p) not in matrix_ids]
    rest_rate = plan.rate if plan.rest_rate is None else plan.rest_rate
    groups: list[dict[str, Any]] = [
        {"params": other_parameters, "weight_decay": 0.0, "lr": rest_rate}
    ]
    optimizers: list[torch.optim.Optimizer] = []
    if plan.muon_rate:
        optimizers.append(Muon(matrices, lr=plan.muon_rate, weight_decay=WEIGHT_DECAY))
    else:
        groups.append({"params": matrices, "weight_decay": WEIGHT_DECAY})
    adam = torch.optim.AdamW(groups, lr=plan.rate, betas=(0.9, 0.98), fused=True)
    return [adam, *optimizers]


def _schedule(step: int, plan: Plan) -> float:
    """Return the factor of the learning rate: linear warm-up, then cosine decay to 0.02."""
    if step < plan.warmup:
        return (step + 1) / plan.warmup
    progress = (step - plan.warmup) / max(1, plan.steps - plan.warmup)
    return 0.02 + 0.98 * (1 + math.cos(math.pi * progress)) / 2


def base_loss(
    lesson: Lesson,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    *,
    rows: int = 8,
    length: int = 256,
) -> Loss:
    """Return the loss of next-token prediction on plain documents, concatenated into rows."""

    def loss(model: MistralForCausalLM, step: int) -> torch.Tensor:
        documents = corpus.documents(random.Random(f"{seed}/{KEYS[lesson]}/{step}"), lesson)
        ids = torch.tensor(list(_packed(tokenizer, documents, rows, length)))
        loss_value: torch.Tensor = model(input_ids=ids, labels=ids, use_cache=False).loss
        return loss_value

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
    """Return the loss of a role's text after its prompt. The prompt itself has no loss.

    All examples of a batch have the same system prompt. The common prefix of their prompts is computed
    once for all: the gradient is the same, and half of the computation is saved. ``even`` is passed to
    `demo.corpus.example`, and has separate random numbers.
    """
    key = f"{role}/even" if even else role

    def loss(model: MistralForCausalLM, step: int) -> torch.Tensor:
        rng = random.Random(f"{seed}/{key}/{step}")
        system = corpus.system(rng)
        batch = [corpus.example(role, rng, system, even=even) for _ in range(examples)]
        prompts = [tokenizer.encode(e.prompt) for e in batch]
        texts = [
            [*tokenizer.encode(e.text, add_special_tokens=False), tokenizer.eos_token_id]
            for e in batch
        ]
        shared = _common_prefix_length(prompts)
        rows = [p[shared:] + t for p, t in zip(prompts, texts, strict=True)]
        length = max(map(len, rows))
        # Padding does not affect the tokens before it, so any token may be used.
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
        targets = labels[:, 1:]
        is_learned = targets != IGNORED
        return torch.nn.functional.cross_entropy(
            model.lm_head(hidden[is_learned]), targets[is_learned]
        )

    return loss


def _common_prefix_length(rows: list[list[int]]) -> int:
    """Return the length of the common prefix of all rows, leaving each row at least one token."""
    low, high = min(rows), max(rows)
    max_length = min(map(len, rows)) - 1
    for i in range(max_length):
        if low[i] != high[i]:
            return i
    return max_length
