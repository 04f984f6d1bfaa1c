"""Checks at start-up that an engine computes each role's logits as PEFT does alone.

An engine may meet kinds of adapters and models that no test covers. So PEFT computes the logits of a few
tokens, right after a role's adapter is loaded and before the next one is, and the engine computes them for
all roles in one step, once everything is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

#: Number of probe tokens. The logits after the last two are compared, of a prefill and of a decode.
NUM_TOKENS = 12
#: Maximum relative difference of logits of the same program.
REFERENCE_TOLERANCE = 1e-3
#: Maximum relative difference of another engine's logits, whose sums are rounded in another order. What
#: rounding causes was measured, and so was what faults cause (docs/engine.md).
TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.2}


class ProbeError(Exception):
    """An engine does not compute an adapter as PEFT does. The message says why ("its logits …")."""

    def __init__(self, adapter_name: str, message: str) -> None:
        super().__init__(message)
        self.adapter_name = adapter_name


def probe_token_ids(config: Any) -> list[int]:
    """Return token ids from all over a model's vocabulary, always the same ones.

    Args:
        config: transformers' configuration of the model.
    """
    vocab_size = config.get_text_config().vocab_size
    return [(1 + i * 7919) % vocab_size for i in range(NUM_TOKENS)]


def dummy_run(model: Any, token_ids: list[int]) -> None:
    """Generate two tokens with a base without adapters: an error is then the base's.

    Args:
        model: a causal language model of transformers.
        token_ids: the prompt.
    """
    input_ids = torch.tensor([token_ids], device=model.device)
    mask = torch.ones_like(input_ids)
    model.generate(input_ids=input_ids, attention_mask=mask, max_new_tokens=2, do_sample=False)


@torch.no_grad()
def peft_logits(model: PeftModel, adapter_name: str, token_ids: list[int]) -> Tensor:
    """Compute logits with one adapter.

    Returns:
        the logits after the last two tokens, (2, vocabulary), float32 on the CPU.
    """
    model.set_adapter(adapter_name)
    input_ids = torch.tensor([token_ids], device=model.device)
    logits: Tensor = model(input_ids=input_ids, use_cache=False).logits[0, -2:]
    return logits.float().cpu()


def relative_difference(actual: Tensor, expected: Tensor) -> float:
    """Return the largest difference of rows of logits, as a share of the expected row's spread.

    A constant that is added to a row does not count: no text depends on it.
    """
    actual, expected = (x - x.mean(dim=-1, keepdim=True) for x in (actual, expected))
    return float(((actual - expected).norm(dim=-1) / expected.norm(dim=-1)).max())


def check(
    actual: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    """Compare an engine's logits with PEFT's.

    Args:
        actual: the engine's by role name, as `peft_logits` returns them.
        expected: PEFT's, of each role alone.
        dtype: in which they were computed.
        tolerance: maximum `relative_difference`.

    Raises:
        ProbeError: they differ by more than rounding explains, or are not finite.
    """
    for adapter_name, logits in expected.items():
        if not logits.isfinite().all():
            raise ProbeError(
                adapter_name,
                f"its logits are not finite (NaN or infinite) in {_name(dtype)}; try another "
                "HELIXQ_DTYPE",
            )
        difference = relative_difference(actual[adapter_name], logits)
        if not difference <= tolerance:
            raise ProbeError(
                adapter_name,
                f"its logits differ from those of PEFT alone by {difference:.2g} of their spread, more "
                f"than the {tolerance:g} that rounding explains in {_name(dtype)}; give another adapter "
                "or base",
            )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
