"""A request's prompt as tokens, and how many new ones have room after it."""

from __future__ import annotations

import threading

from transformers import PreTrainedTokenizerBase

from worker.engine.interface import ContextExceededError, EngineError, Request


class Encoder:
    """Encodes prompts for an engine; any thread may call it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, context: int) -> None:
        self._tokenizer = tokenizer
        self._context = context
        self._lock = threading.Lock()  # fast tokenizers may not be set up by two threads

    def __call__(self, request: Request) -> tuple[list[int], int]:
        """Return the prompt's tokens, and the most new ones: the request's limit or what has room.

        Raises:
            ContextExceededError: there is no room for a single one.
            EngineError: there is no token to begin with.
        """
        with self._lock:
            ids: list[int] = self._tokenizer.encode(request.prompt)
        if not ids:
            raise EngineError(f"the {request.role}'s prompt is empty")
        limit = min(request.sampling.max_output_tokens, self._context - len(ids))
        if limit < 1:
            raise ContextExceededError(
                f"the {request.role}'s prompt has {len(ids)} tokens, which leaves no room in the "
                f"model's context of {self._context}"
            )
        return ids, limit
