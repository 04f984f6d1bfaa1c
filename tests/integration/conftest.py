"""Engines on the random checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.conftest import load_model
from tests.integration.batches import CONTEXT, make
from worker.engine.batching import BatchingEngine
from worker.engine.reference import ReferenceEngine


@pytest.fixture(scope="session")
def tokenizer(checkpoint: Path) -> Any:
    return AutoTokenizer.from_pretrained(checkpoint / "base")


@pytest.fixture(scope="session")
def reference(checkpoint: Path, tokenizer: Any) -> Iterator[ReferenceEngine]:
    engine = ReferenceEngine(load_model(checkpoint), tokenizer, context=CONTEXT)
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def engine(checkpoint: Path, tokenizer: Any) -> Iterator[BatchingEngine]:
    engine = make(checkpoint, tokenizer)
    yield engine
    assert not engine._scheduler.running
    assert not engine._scheduler.waiting
    engine.close()
