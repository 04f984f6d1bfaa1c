"""The KV cache: its tensors, and which sequence has which of its memory."""
