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

#: Called with the number of texts that are there since the last call.
Tick = Callable[[int], object]


class Form(Protocol):
    """Something that can write each role's texts."""

    #: As tables name it.
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

    def __init__(self, found: Checkpoints, name: str = "base + 3 adapters") -> None:
        self.name = name
        self._found = found
        self._models = loading.load(found).models

    def weight_bytes(self) -> int:
        return _bytes(*self._models.values())

    def write(
        self, role: Role, prompts: list[str], sampling: Sampling, batch: int, tick: Tick
    ) -> list[str]:
        return _write(self._models[role.value], self._found, prompts, sampling, batch, tick)


class FullModels:
    """Three full models, loaded one at a time: only their texts are wanted at once."""

    name = "3 full models"

    def __init__(self, found: Checkpoints, folders: dict[Role, Path]) -> None:
        """Args:
        found: the base that the models were made from: its tokenizer and context.
        folders: the three checkpoints.
        """
        self._found = found
        self._folders = folders
        self._bytes: dict[Role, int] = {}

    def weight_bytes(self) -> int:
        """Bytes of the models; each must have written something before."""
        return sum(self._bytes[role] for role in Role)

    def write(
        self, role: Role, prompts: list[str], sampling: Sampling, batch: int, tick: Tick
    ) -> list[str]:
        try:
            model: Any = AutoModelForCausalLM.from_pretrained(
                self._folders[role], dtype=self._found.dtype, trust_remote_code=False
            )
            model.to(self._found.device)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            reason = str(error).strip().splitlines()[0]
            raise CheckpointError(
                f"The full {role} {self._folders[role]} cannot be loaded ({reason})"
            ) from error
        self._bytes[role] = _bytes(model)
        try:
            return _write(model.eval(), self._found, prompts, sampling, batch, tick)
        finally:
            del model
            gc.collect()


def _bytes(*models: torch.nn.Module) -> int:
    """Count what the weights take; what models share counts once."""
    storages = (p.untyped_storage() for model in models for p in model.parameters())
    return sum({s.data_ptr(): s.nbytes() for s in storages}.values())


@torch.inference_mode()
def _write(
    model: Any,
    found: Checkpoints,
    prompts: list[str],
    sampling: Sampling,
    batch: int,
    tick: Tick,
) -> list[str]:
    """Generate in batches of prompts of about one length, padded on the left."""
    tokenizer: PreTrainedTokenizerBase = found.tokenizer
    resolve_stop_tokens(model, tokenizer)  # as an engine does
    ids: list[list[int]] = [tokenizer.encode(prompt) for prompt in prompts]
    texts = [""] * len(prompts)
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    drawing: dict[str, Any] = {"do_sample": False, "temperature": None}
    drawing |= {"top_k": None, "top_p": None}
    if sampling.temperature > 0:
        drawing = {
            "do_sample": True,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
        }
    torch.manual_seed(sampling.seed)
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        longest = max(len(ids[i]) for i in chosen)
        room = min(sampling.max_output_tokens, found.context - longest)
        if room < 1:
            raise CheckpointError(
                f"a prompt has {longest} tokens, which leaves no room in the model's context of "
                f"{found.context}"
            )
        padding = [longest - len(ids[i]) for i in chosen]
        end = tokenizer.eos_token_id
        written = model.generate(
            input_ids=torch.tensor(
                [[end] * n + ids[i] for n, i in zip(padding, chosen, strict=True)],
                device=model.device,
            ),
            attention_mask=torch.tensor(
                [[0] * n + [1] * (longest - n) for n in padding], device=model.device
            ),
            max_new_tokens=room,
            pad_token_id=end,
            **drawing,
        )
        for i, row in zip(chosen, written[:, longest:].tolist(), strict=True):
            texts[i] = str(tokenizer.decode(row, skip_special_tokens=True))
        tick(len(chosen))
    return texts
