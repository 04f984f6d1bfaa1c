"""Tokenizers that transformers would load: byte-level BPE, and BPE with byte fallback."""

from __future__ import annotations

from typing import Any

import pytest

from tests.random_weights import train_tokenizer
from worker.bench.simulated import tokenizer_of


@pytest.fixture(scope="session")
def byte_level() -> Any:
    """A tokenizer like GPT-2's, in which a character may be several tokens."""
    return train_tokenizer(4096)


@pytest.fixture(scope="session")
def byte_fallback() -> Any:
    """A tokenizer like Mistral's, in which only unknown characters are bytes."""
    return tokenizer_of(600)
