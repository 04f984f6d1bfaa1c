"""Low-rank adapters as files: made from two checkpoints, merged into one, looked into."""


class LoraError(Exception):
    """An adapter cannot be made, merged or read; the message is one sentence."""
