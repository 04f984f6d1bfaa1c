"""The engine that is checked, made in one place."""

from __future__ import annotations

from typing import Any

from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from worker.engine.batching.engine import BatchingEngine
from worker.engine.kv.paged_cache import BLOCK_SIZE


def make(
    models: dict[str, PeftModel],
    tokenizer: PreTrainedTokenizerBase,
    *,
    context: int,
    slots: int,
    chunk: int | None = None,
    drafts: bool = True,
    graphs: bool = True,
    tokens: int | None = None,
) -> BatchingEngine:
    """Make a batching engine, which takes the models over; the caller closes it.

    Args:
        models: by the roles' names, around bases whose tensors are the same memory.
        tokenizer: the base's.
        context: tokens of prompt and output together.
        slots: sequences that are decoded at the same time.
        chunk: the most prompt tokens of a step; as it suits the device if None.
        drafts: whether tokens are guessed ahead.
        graphs: whether steps are recorded, where the device can do that.
        tokens: whose keys and values fit into the cache; as memory allows if None.
    """
    options: dict[str, Any] = {"context": context, "slots": slots, "drafts": drafts}
    if chunk is not None:
        options["chunk"] = chunk
    if not graphs:
        options["record"] = None
    if tokens is not None:
        options["blocks"] = -(-tokens // BLOCK_SIZE) + 1  # one is nobody's
    return BatchingEngine(models, tokenizer, **options)
