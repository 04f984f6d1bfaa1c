"""Low-rank adapters as files: made from two checkpoints, merged into one, looked into."""

from jobs.errors import UserError


class LoraError(UserError):
    """An adapter cannot be made, merged or read; the message is one sentence."""
