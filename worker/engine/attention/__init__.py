"""Attention over the KV cache: metadata of a step, and its computation."""
