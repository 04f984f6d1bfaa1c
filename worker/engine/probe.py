"""Proves at the start that an engine computes each role's scores as PEFT does alone.

Adapters come in kinds that nobody has thought of, and models in kinds that were never tried with an
engine. So a few tokens are scored by PEFT, right after a role's adapter was loaded and before the next one
is, and by the engine, all roles in one step, once everything is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

#: Tokens that are scored: what follows the last two is compared, of a prompt and of a decoded token.
LENGTH = 12
#: The most that scores of the same program may be off, as a share of their spread over the vocabulary.
SAME = 1e-3
#: The most that those of another engine may be off: it rounds sums in another order. What that makes was
#: measured, and so was what faults make (docs/architecture.md).
TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.2}


class ProbeError(Exception):
    """An engine does not compute an adapter as PEFT does; the message says why ("its scores …")."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        #: The adapter's.
        self.name = name


def tokens(config: Any) -> list[int]:
    """Choose tokens from all over a model's vocabulary, always the same ones.

    Args:
        config: transformers' configuration of the model.
    """
    vocabulary = config.get_text_config().vocab_size
    return [(1 + i * 7919) % vocabulary for i in range(LENGTH)]


def try_out(model: Any, ids: list[int]) -> None:
    """Let a base write two tokens, without adapters: whatever it raises is not about one of these.

    Args:
        model: a causal language model of transformers.
        ids: the probe's tokens.
    """
    prompt = torch.tensor([ids], device=model.device)
    mask = torch.ones_like(prompt)
    model.generate(input_ids=prompt, attention_mask=mask, max_new_tokens=2, do_sample=False)


@torch.no_grad()
def score(model: PeftModel, name: str, ids: list[int]) -> Tensor:
    """Score tokens with one adapter.

    Returns:
        what may follow the last two, (2, vocabulary), float32 on the CPU.
    """
    model.set_adapter(name)
    prompt = torch.tensor([ids], device=model.device)
    logits: Tensor = model(input_ids=prompt, use_cache=False).logits[0, -2:]
    return logits.float().cpu()


def difference(found: Tensor, wanted: Tensor) -> float:
    """Return the largest difference of two rows of scores, as a share of the wanted one's spread.

    What is added to all scores of a row counts for nothing: no text depends on it.
    """
    found, wanted = (x - x.mean(dim=-1, keepdim=True) for x in (found, wanted))
    return float(((found - wanted).norm(dim=-1) / wanted.norm(dim=-1)).max())


def check(
    found: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    """Hold an engine's scores against PEFT's.

    Args:
        found: by the roles' names, as `score` returns them.
        wanted: PEFT's of each alone.
        dtype: what they were computed in.
        tolerance: the most that they may be off, as `difference` counts.

    Raises:
        ProbeError: they differ by more than rounding does, or are no numbers.
    """
    for name, scores in wanted.items():
        if not scores.isfinite().all():
            raise ProbeError(
                name,
                f"its scores are not numbers (NaN or infinite) in {_name(dtype)}; try another "
                "HELIXQ_DTYPE",
            )
        off = difference(found[name], scores)
        if not off <= tolerance:
            raise ProbeError(
                name,
                f"its scores differ from those of PEFT alone by {off:.2g} of their spread, "
                f"more than the {tolerance:g} that rounding explains in {_name(dtype)}; give another adapter or base",
            )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
