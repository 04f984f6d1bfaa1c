"""Makes the engine that is checked."""

from __future__ import annotations

from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from worker.engine.batching.cuda_graphs import cuda_graph_capture
from worker.engine.batching.engine import BatchingEngine
from worker.engine.batching.runner_setup import RunnerOptions
from worker.engine.kv.paged_cache import BLOCK_SIZE


def make(
    models: dict[str, PeftModel],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_model_len: int,
    max_num_seqs: int,
    max_num_batched_tokens: int | None = None,
    speculation: bool = True,
    graphs: bool = True,
    tokens: int | None = None,
) -> BatchingEngine:
    """Make a batching engine, which takes over the models. The caller closes it.

    Args:
        models: by role name; their bases share the tensors.
        tokenizer: the base's.
        max_model_len: maximum number of tokens of prompt and output together.
        max_num_seqs: maximum number of sequences that are decoded together.
        max_num_batched_tokens: maximum number of prompt tokens of a step; as suits the device if None.
        speculation: whether tokens are drafted.
        graphs: whether CUDA graphs are captured, on CUDA.
        tokens: capacity of the KV cache; as memory allows if None.
    """
    options = RunnerOptions(
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        # Block 0 is for padding.
        num_blocks=None if tokens is None else -(-tokens // BLOCK_SIZE) + 1,
        capture=cuda_graph_capture if graphs else None,
    )
    return BatchingEngine.from_models(models, tokenizer, options, speculation=speculation)
