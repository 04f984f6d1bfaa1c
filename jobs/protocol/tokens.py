"""Counting tokens without the model, by the tokenizer that the newest worker registered."""

from __future__ import annotations

import threading
import time
from typing import NamedTuple

from tokenizers import Tokenizer

from jobs.database import Database
from jobs.use_cases import workers


class TokenCount(NamedTuple):
    """Tokens of some texts, and the tokens that the model's context holds."""

    #: Of each text, special tokens included.
    tokens: list[int]
    context: int


class TokenCounter:
    """Counts tokens as the newest worker does. Threads may share it."""

    #: Seconds after which to look again which worker is the newest.
    REFRESH = 5.0

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._refreshed_at = -self.REFRESH
        self._digest = ""
        self._tokenizer: Tokenizer | None = None
        self._context = 0

    def count(self, texts: list[str]) -> TokenCount | None:
        """Count the tokens of each text.

        Returns:
            None if no worker has ever started: then the model is not known.
        """
        with self._lock:
            if time.monotonic() - self._refreshed_at >= self.REFRESH:
                self._refresh()
            tokenizer, context = self._tokenizer, self._context
        if tokenizer is None:
            return None
        encodings = tokenizer.encode_batch(texts)
        return TokenCount([len(encoding.ids) for encoding in encodings], context)

    def _refresh(self) -> None:
        serving = workers.get_serving(self._database)
        if serving is None:
            return
        if serving.tokenizer_digest != self._digest:
            body = workers.get_tokenizer(self._database, serving.tokenizer_digest)
            self._tokenizer, self._digest = Tokenizer.from_str(body), serving.tokenizer_digest
        if self._tokenizer is not None:
            self._tokenizer.encode_special_tokens = serving.split_special_tokens
        self._context, self._refreshed_at = serving.context, time.monotonic()
