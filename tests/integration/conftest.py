"""Engines with the random checkpoint, a publisher of progress, and a second database. For imports inside functions see `tests.conftest`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from jobs.database import Database
from tests.conftest import load_models, new_database

if TYPE_CHECKING:
    from jobs.progress import Progress
    from worker.engine.batching.engine import BatchingEngine
    from worker.engine.reference import ReferenceEngine
    from worker.progress_publisher import ProgressPublisher


@pytest.fixture(scope="session")
def tokenizer(checkpoint: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(checkpoint / "base")


@pytest.fixture(scope="session")
def reference(checkpoint: Path, tokenizer: Any) -> Iterator[ReferenceEngine]:
    from tests.integration.batches import CONTEXT
    from worker.engine.reference import ReferenceEngine

    engine = ReferenceEngine(load_models(checkpoint), tokenizer, max_model_len=CONTEXT)
    yield engine
    engine.close()


@pytest.fixture
def publisher(progress: Progress) -> Iterator[ProgressPublisher]:
    from worker.progress_publisher import ProgressPublisher

    publisher = ProgressPublisher(progress)
    yield publisher
    publisher.stop()


@pytest.fixture(scope="session", params=[False, True], ids=["rows", "paged"])
def paged(request: pytest.FixtureRequest) -> bool:
    """Whether the KV cache is paged and scheduling is async, as on CUDA."""
    return bool(request.param)


@pytest.fixture(scope="session")
def engine(checkpoint: Path, tokenizer: Any, paged: bool) -> Iterator[BatchingEngine]:
    from tests.integration.batches import make

    engine = make(checkpoint, tokenizer, paged=paged)
    yield engine
    assert not engine._loop.scheduler.running
    assert not engine._loop.scheduler.waiting
    engine.close()


@pytest.fixture(scope="session")
def sliding(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint with a sliding window that is shorter than its texts."""
    folder = tmp_path_factory.mktemp("sliding")
    shutil.copytree(checkpoint, folder, dirs_exist_ok=True)
    file = folder / "base" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "sliding_window": 16}))
    return folder


@pytest.fixture
def elsewhere(
    database_url: str, request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[Database]:
    """Another database of the same kind, without workers."""
    kind = database_url.partition(":")[0].partition("+")[0]
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    database = Database(new_database(kind, request, folder))
    yield database
    database.close()


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint that a test may damage."""
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))
