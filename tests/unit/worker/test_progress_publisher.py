"""Text is published while it is generated, and once only; changes follow the text before them."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any, cast

import pytest

from jobs.progress import Progress, TextDeltas
from worker.engine.interface import Generation
from worker.progress_publisher import ProgressPublisher

Updates = Sequence[tuple[str, TextDeltas | None]]


class FakeProgress:
    """A fake Redis that collects what is published."""

    def __init__(self) -> None:
        self.updates: list[tuple[str, TextDeltas | None]] = []
        self.errors: list[Exception] = []
        self._published = threading.Condition()

    def publish(self, updates: Updates, _ended: object = ()) -> None:
        with self._published:
            if self.errors:
                raise self.errors.pop()
            self.updates += updates
            self._published.notify_all()

    def wait_for(self, job_id: str, count: int) -> None:
        """Wait until a job has a number of updates."""
        with self._published:
            assert self._published.wait_for(lambda: len(self.of(job_id)) >= count, 60)

    def of(self, job_id: str) -> list[TextDeltas | None]:
        return [update for updated, update in self.updates if updated == job_id]

    def text(self, job_id: str) -> str:
        return "".join("".join(update.deltas) for update in self.of(job_id) if update)


class FakeGeneration:
    """A fake generation."""

    def __init__(self, *deltas: str) -> None:
        self.deltas = list(deltas)
        self.finished = False

    def deltas_from(self, start: int) -> list[str]:
        return self.deltas[start:]


@pytest.fixture
def progress() -> FakeProgress:
    return FakeProgress()


@pytest.fixture
def publisher(progress: FakeProgress) -> Iterator[ProgressPublisher]:
    publisher = ProgressPublisher(cast("Progress", progress))
    yield publisher
    publisher.stop()


def generation(*deltas: str) -> Any:
    return cast("Generation", FakeGeneration(*deltas))


def test_text_is_published_once_while_it_is_generated(
    progress: FakeProgress, publisher: ProgressPublisher
) -> None:
    running = generation("one ", "two ")
    publisher.publish_text("job", "7", running)
    progress.wait_for("job", 1)
    running.deltas.append("three")
    progress.wait_for("job", 2)
    assert progress.of("job") == [
        TextDeltas("7", 0, ["one ", "two "]),
        TextDeltas("7", 2, ["three"]),
    ]


def test_a_text_is_published_as_soon_as_it_has_begun(
    progress: FakeProgress, publisher: ProgressPublisher
) -> None:
    running = generation()
    publisher.publish_text("job", "7", running)
    progress.wait_for("job", 1)
    running.deltas.append("one")
    progress.wait_for("job", 2)
    assert progress.of("job") == [TextDeltas("7", 0, []), TextDeltas("7", 0, ["one"])]


def test_updates_are_published_after_the_text_before_them(
    progress: FakeProgress, publisher: ProgressPublisher
) -> None:
    ended = generation("text")
    ended.finished = True
    publisher.publish_text("job", "1", ended)
    publisher.publish_change("job")
    progress.wait_for("job", 2)
    assert progress.of("job") == [TextDeltas("1", 0, ["text"]), None]


def test_a_finished_generation_is_not_read_again(
    progress: FakeProgress, publisher: ProgressPublisher
) -> None:
    ended = generation("text")
    ended.finished = True
    publisher.publish_text("job", "1", ended)
    progress.wait_for("job", 1)
    ended.deltas.append("more")
    publisher.publish_text("other", "2", generation("text"))
    progress.wait_for("other", 1)
    assert progress.text("job") == "text"


def test_an_error_does_not_end_the_thread(
    progress: FakeProgress, publisher: ProgressPublisher, caplog: pytest.LogCaptureFixture
) -> None:
    progress.errors.append(ValueError("wrong"))
    running = generation("lost ")
    publisher.publish_text("job", "1", running)
    while progress.errors:
        publisher.publish_change("other")
    running.deltas.append("text")
    progress.wait_for("job", 1)
    assert progress.text("job").endswith("text")
    assert "progress was not published" in caplog.text


def test_stopping_publishes_pending_text(progress: FakeProgress) -> None:
    publisher = ProgressPublisher(cast("Progress", progress))
    publisher.publish_text("job", "1", generation("text"))
    publisher.publish_change("job")
    publisher.stop()
    assert progress.of("job") == [TextDeltas("1", 0, ["text"]), None]
