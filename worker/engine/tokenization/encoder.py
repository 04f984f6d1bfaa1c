"""Encodes a request's prompt, and limits its output to what fits the context."""

from __future__ import annotations

import threading
from collections.abc import Callable

from transformers import PreTrainedTokenizerBase, TokenizersBackend

from worker.engine.interface import ContextExceededError, EngineError, Request


class Encoder:
    """Encodes prompts for an engine. Thread-safe."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_model_len: int) -> None:
        self._encode = _encode_function(tokenizer)
        self._max_model_len = max_model_len

    def __call__(self, request: Request) -> tuple[list[int], int]:
        """Return the prompt's token ids, and the maximum number of new tokens.

        The maximum is the request's ``max_output_tokens``, or less where the context leaves less.

        Raises:
            ContextExceededError: there is no room for a single new token.
            EngineError: the prompt has no tokens.
        """
        token_ids = self._encode(request.prompt)
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


def _encode_function(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], list[int]]:
    """Return a function that encodes a text as ``tokenizer.encode`` does. Threads may share it.

    transformers configures a fast tokenizer before each text, so texts would have to wait for each other, the
    short for the long. Here it is configured once. Python's lock is free while it works.
    """
    if isinstance(tokenizer, TokenizersBackend):
        backend = tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = tokenizer.split_special_tokens
        return lambda text: backend.encode_batch_fast([text])[0].ids

    lock = threading.Lock()

    def encode(text: str) -> list[int]:
        with lock:
            token_ids: list[int] = tokenizer.encode(text)
        return token_ids

    return encode
