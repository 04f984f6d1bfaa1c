"""The two forms of a HelixNet: one base with three adapters, or three full models."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from jobs.pipeline import Role, Sampling
from worker.checkpoints import loading
from worker.checkpoints.discovery import Checkpoints
from worker.checkpoints.errors import CheckpointError
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
        self, role: Role, prompts: list[str], sampling: Sampling, batch: int, tick: Tick
    ) -> list[str]:
        """Write one text for each prompt, in their order.

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
        self, role: Role, prompts: list[str], sampling: Sampling, batch: int, tick: Tick
    ) -> list[str]:
        return _write(self._models[role.value], self._checkpoints, prompts, sampling, batch, tick)


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
        self, role: Role, prompts: list[str], sampling: Sampling, batch: int, tick: Tick
    ) -> list[str]:
        try:
            model: Any = AutoModelForCausalLM.from_pretrained(
                self._folders[role], dtype=self._checkpoints.dtype, trust_remote_code=False
            )
            model.to(self._checkpoints.device)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            reason = str(error).strip().splitlines()[0]
            raise CheckpointError(
                f"The full {role} {self._folders[role]} cannot be loaded ({reason})"
            ) from error
        self._bytes[role] = _bytes(model)
        try:
            return _write(model.eval(), self._checkpoints, prompts, sampling, batch, tick)
        finally:
            del model
            gc.collect()


def _bytes(*models: torch.nn.Module) -> int:
    """Return the bytes of the weights. Shared tensors count once."""
    storages = (p.untyped_storage() for model in models for p in model.parameters())
    return sum({s.data_ptr(): s.nbytes() for s in storages}.values())


@torch.inference_mode()
def _write(
    model: Any,
    checkpoints: Checkpoints,
    prompts: list[str],
    sampling: Sampling,
    batch: int,
    tick: Tick,
) -> list[str]:
    """Generate in batches of prompts of similar length, padded on the left.

    The prompts of a batch have the same maximum number of new tokens, so that a text does not depend on
    the prompts beside it.
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
        limit = min(sampling.max_output_tokens, checkpoints.context - len(ids[i]))
        by_limit.setdefault(limit, []).append(i)
    sampling_options: dict[str, Any] = {"do_sample": False, "temperature": None}
    sampling_options |= {"top_k": None, "top_p": None}
    if sampling.temperature > 0:
        sampling_options = {
            "do_sample": True,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
        }
    torch.manual_seed(sampling.seed)
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
            **sampling_options,
        )
        for i, row in zip(chosen, written[:, max_length:].tolist(), strict=True):
            texts[i] = str(tokenizer.decode(row, skip_special_tokens=True))
        tick(len(chosen))
    return texts
