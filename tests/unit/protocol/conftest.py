"""A token counter with a tokenizer of whole words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from jobs.database import Database
from jobs.protocol.tokens import TokenCounter
from jobs.use_cases import workers
from jobs.use_cases.workers import Runtime
from tests.conftest import new_database


@pytest.fixture
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """An empty database on SQLite."""
    database = Database(new_database("sqlite", request, tmp_path))
    yield database
    database.close()


@pytest.fixture
def serve(database: Database) -> Callable[[int], None]:
    """Registers a worker whose context has this many tokens, and for which each word is a token."""
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()

    def serve(context: int) -> None:
        runtime = Runtime({"engine": "none"}, context, tokenizer.to_str())
        workers.register(database, f"worker-{context}", "localhost", 1, runtime)

    return serve


@pytest.fixture
def counter(database: Database) -> TokenCounter:
    return TokenCounter(database)
