"""Encodes a request's prompt, and limits its output to what fits the context."""

from __future__ import annotations

import threading

from transformers import PreTrainedTokenizerBase

from worker.engine.interface import ContextExceededError, EngineError, Request


class Encoder:
    """Encodes prompts for an engine. Thread-safe."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_model_len: int) -> None:
        self._tokenizer = tokenizer
        self._max_model_len = max_model_len
        self._lock = threading.Lock()  # two threads must not configure a fast tokenizer at once

    def __call__(self, request: Request) -> tuple[list[int], int]:
        """Return the prompt's token ids, and the maximum number of new tokens.

        The maximum is the request's ``max_output_tokens``, or less where the context leaves less.

        Raises:
            ContextExceededError: there is no room for a single new token.
            EngineError: the prompt has no tokens.
        """
        with self._lock:
            token_ids: list[int] = self._tokenizer.encode(request.prompt)
        if not token_ids:
            raise EngineError(f"the {request.role}'s prompt is empty")
        room = self._max_model_len - len(token_ids)
        max_output_tokens = min(request.sampling.max_output_tokens, room)
        if max_output_tokens < 1:
            raise ContextExceededError(
                f"the {request.role}'s prompt has {len(token_ids)} tokens, which leaves no room in the "
                f"model's context of {self._max_model_len}"
            )
        return token_ids, max_output_tokens
