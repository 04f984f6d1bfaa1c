"""The engine that is checked, made in one place."""

from __future__ import annotations

import inspect
from typing import Any

from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from worker.engine.batching import BatchingEngine
from worker.engine.recorded import recorder_for

#: What the engine's constructor takes: what it does not know is left out, so that an earlier state of the
#: engine can be measured in the same run as a later one.
TAKEN = inspect.signature(BatchingEngine).parameters
#: Whether keys and values are in blocks, and a long context takes memory only where it is used.
PAGED = "blocks" in TAKEN
#: Tokens of a block.
BLOCK = 16


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
    if "graphs" in TAKEN:
        options["graphs"] = graphs
    elif graphs:
        device = next(iter(models.values())).device
        options["record"] = recorder_for(device)
    if tokens is not None and PAGED:
        options["blocks"] = -(-tokens // BLOCK)
    return BatchingEngine(models, tokenizer, **options)
