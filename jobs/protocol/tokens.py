"""Counting tokens without a model, by the tokenizers that the workers registered."""

from __future__ import annotations

import threading
import time
from typing import NamedTuple

from tokenizers import Tokenizer

from jobs.database import Database
from jobs.use_cases import workers
from jobs.use_cases.workers import Serving

#: Characters of texts that are counted at once. To let other threads run meanwhile, and to share the work with
#: them, takes longer.
SHORT = 1 << 14


class TokenCount(NamedTuple):
    """Tokens of some texts, and the tokens that the model's context holds."""

    #: Of each text, special tokens included.
    tokens: list[int]
    context: int


def count_tokens(tokenizer: Tokenizer, texts: list[str]) -> list[int]:
    """Return the number of tokens of each text, special tokens included."""
    if sum(map(len, texts)) <= SHORT:
        return [len(tokenizer.encode(text).ids) for text in texts]
    return [len(encoding.ids) for encoding in tokenizer.encode_batch_fast(texts)]


class TokenCounter:
    """Counts tokens as the workers do. Threads may share it."""

    #: Seconds after which to look again which workers there are.
    REFRESH = 5.0

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._refreshed_at = -self.REFRESH
        self._tokenizers: dict[Serving, Tokenizer] = {}

    def count(self, texts: list[str]) -> TokenCount | None:
        """Count the tokens of each text.

        Where workers differ, as during an upgrade, any of them may take the job: the count is of the one
        whose context has the least room beside the longest text.

        Returns:
            None if no worker has ever started, or none has a tokenizer: then only the engine can count.
        """
        with self._lock:
            if time.monotonic() - self._refreshed_at >= self.REFRESH:
                self._refresh()
            tokenizers = self._tokenizers
        counts = [
            TokenCount(count_tokens(tokenizer, texts), serving.context)
            for serving, tokenizer in tokenizers.items()
        ]
        return min(counts, key=lambda c: c.context - max(c.tokens, default=0), default=None)

    def _refresh(self) -> None:
        served = workers.list_serving(self._database)
        self._tokenizers = {
            serving: self._tokenizers.get(serving) or self._load(serving)
            for serving in served
            if serving.has_tokenizer
        }
        if served:
            self._refreshed_at = time.monotonic()

    def _load(self, serving: Serving) -> Tokenizer:
        tokenizer = Tokenizer.from_str(
            workers.get_tokenizer(self._database, serving.tokenizer_digest)
        )
        tokenizer.encode_special_tokens = serving.split_special_tokens
        return tokenizer
