"""The two forms of a HelixNet: one base with three adapters, or three full models."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from jobs.pipeline import Role, Sampling
from worker.checkpoints import loading
from worker.checkpoints.discovery import Checkpoints
from worker.checkpoints.errors import CheckpointError, first_line
from worker.engine.batching.sampler import SamplingMetadata, sample
from worker.engine.tokenization.stop_tokens import resolve_stop_tokens

#: Called with the number of texts generated since the last call.
Tick = Callable[[int], object]


class Form(Protocol):
    """Generates each role's texts."""

    #: Name in tables.
    name: str

    def weight_bytes(self) -> int:
        """Bytes of all weights that must be in memory to serve the three roles."""
        ...

    def write(
        self, role: Role, prompts: list[str], samplings: list[Sampling], batch: int, tick: Tick
    ) -> list[str]:
        """Write one text for each prompt, in their order.

        Args:
            role: whose model writes.
            prompts: the prompts.
            samplings: of each. They differ in their seeds only.
            batch: number of texts generated together. No text depends on it.
            tick: is told how far it is.

        Raises:
            CheckpointError: a prompt leaves no room in the context.
        """
        ...


class Adapters:
    """One base and three adapters, as the service runs them."""

    def __init__(self, checkpoints: Checkpoints, name: str = "base + 3 adapters") -> None:
        self.name = name
        self._checkpoints = checkpoints
        self._models = loading.load(checkpoints).models

    def weight_bytes(self) -> int:
        return _bytes(*self._models.values())

    def write(
        self, role: Role, prompts: list[str], samplings: list[Sampling], batch: int, tick: Tick
    ) -> list[str]:
        return _write(self._models[role.value], self._checkpoints, prompts, samplings, batch, tick)


class FullModels:
    """Three full models, loaded one at a time to save memory."""

    name = "3 full models"

    def __init__(self, checkpoints: Checkpoints, folders: dict[Role, Path]) -> None:
        """
        Args:
            checkpoints: the base that the models were made from, for its tokenizer and context.
            folders: the three checkpoints.
        """
        self._checkpoints = checkpoints
        self._folders = folders
        self._bytes: dict[Role, int] = {}

    def weight_bytes(self) -> int:
        """Bytes of the models. `write` must have been called for each role."""
        return sum(self._bytes[role] for role in Role)

    def write(
        self, role: Role, prompts: list[str], samplings: list[Sampling], batch: int, tick: Tick
    ) -> list[str]:
        try:
            model: Any = AutoModelForCausalLM.from_pretrained(
                self._folders[role], dtype=self._checkpoints.dtype, trust_remote_code=False
            )
            model.to(self._checkpoints.device)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise CheckpointError(
                f"The full {role} {self._folders[role]} cannot be loaded ({first_line(error)})"
            ) from error
        self._bytes[role] = _bytes(model)
        try:
            return _write(model.eval(), self._checkpoints, prompts, samplings, batch, tick)
        finally:
            del model
            gc.collect()


class _Sampler:
    """Leaves each row of a batch the one token that the batching engine would sample, for greedy decoding to take."""

    def __init__(self, samplings: list[Sampling], prompt_length: int) -> None:
        """
        Args:
            samplings: of the rows.
            prompt_length: tokens before the first sampled one, padding included.
        """
        self._samplings = samplings
        self._prompt_length = prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        positions = [input_ids.shape[1] - self._prompt_length] * len(self._samplings)
        metadata = SamplingMetadata.build(
            self._samplings, positions, scores.shape[1], scores.device
        )
        token_ids, _ = sample(scores, metadata)
        return torch.full_like(scores, -torch.inf).scatter_(1, token_ids[:, None], 0.0)


def _bytes(*models: torch.nn.Module) -> int:
    """Return the bytes of the weights. Shared tensors count once."""
    storages = (p.untyped_storage() for model in models for p in model.parameters())
    return sum({s.data_ptr(): s.nbytes() for s in storages}.values())


@torch.inference_mode()
def _write(
    model: Any,
    checkpoints: Checkpoints,
    prompts: list[str],
    samplings: list[Sampling],
    batch: int,
    tick: Tick,
) -> list[str]:
    """Generate in batches of prompts of similar length, padded on the left.

    The prompts of a batch have the same maximum number of new tokens, and a token's noise is that of the batching
    engine, so that a text does not depend on the prompts beside it.
    """
    tokenizer: PreTrainedTokenizerBase = checkpoints.tokenizer
    resolve_stop_tokens(model, tokenizer)  # as an engine does
    ids: list[list[int]] = [tokenizer.encode(prompt) for prompt in prompts]
    texts = [""] * len(prompts)
    longest = max(map(len, ids), default=0)
    if longest >= checkpoints.context:
        raise CheckpointError(
            f"a prompt has {longest} tokens, which leaves no room in the model's context of "
            f"{checkpoints.context}"
        )
    by_limit: dict[int, list[int]] = {}
    for i in sorted(range(len(ids)), key=lambda i: len(ids[i])):
        limit = min(samplings[i].max_output_tokens, checkpoints.context - len(ids[i]))
        by_limit.setdefault(limit, []).append(i)
    batches = [
        (limit, indices[start : start + batch])
        for limit, indices in by_limit.items()
        for start in range(0, len(indices), batch)
    ]
    for max_new_tokens, chosen in batches:
        max_length = max(len(ids[i]) for i in chosen)
        padding = [max_length - len(ids[i]) for i in chosen]
        end = tokenizer.eos_token_id
        written = model.generate(
            input_ids=torch.tensor(
                [[end] * n + ids[i] for n, i in zip(padding, chosen, strict=True)],
                device=model.device,
            ),
            attention_mask=torch.tensor(
                [[0] * n + [1] * (max_length - n) for n in padding], device=model.device
            ),
            max_new_tokens=max_new_tokens,
            pad_token_id=end,
            do_sample=False,
            temperature=None,
            top_k=None,
            top_p=None,
            logits_processor=[_Sampler([samplings[i] for i in chosen], max_length)],
        )
        for i, row in zip(chosen, written[:, max_length:].tolist(), strict=True):
            texts[i] = str(tokenizer.decode(row, skip_special_tokens=True))
        tick(len(chosen))
    return texts
