"""Attention of a step over the KV cache: over rows on a CPU, over pages on a GPU."""
