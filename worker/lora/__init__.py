"""LoRA adapters as files: extract, merge, inspect."""

from jobs.errors import UserError


class LoraError(UserError):
    """An adapter cannot be extracted, merged or read. The message is one sentence."""
