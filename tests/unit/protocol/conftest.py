"""A token counter with a tokenizer of whole words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

import migrations
from jobs.protocol.tokens import TokenCounter
from jobs.store import Runtime, Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty store on SQLite."""
    store = Store(f"sqlite:///{tmp_path / 'jobs.sqlite3'}")
    migrations.migrate(store.engine)
    yield store
    store.close()


@pytest.fixture
def serve(store: Store) -> Callable[[int], None]:
    """Registers a worker whose context has this many tokens, and for which each word is a token."""
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()

    def serve(context: int) -> None:
        runtime = Runtime({"engine": "none"}, context, tokenizer.to_str())
        store.register(f"worker-{context}", "localhost", 1, runtime)

    return serve


@pytest.fixture
def counter(store: Store) -> TokenCounter:
    return TokenCounter(store)
