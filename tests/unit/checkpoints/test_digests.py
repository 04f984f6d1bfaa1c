"""Digests identify contents, are cached between runs, and do not depend on the cache."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import CancelledError
from pathlib import Path

import pytest

from tests.servers import PATIENCE
from worker.checkpoints.digests import Digests, digest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a checkpoint's files."""
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "model.safetensors").write_bytes(bytes(range(256)) * 10_000)
    (checkpoint / "config.json").write_text("{}")
    (checkpoint / "README.md").write_text("counts for nothing")
    return checkpoint


def digest_through_cache(cache: Path, checkpoint: Path) -> str:
    """Return the digest that a worker computes when it starts."""
    with Digests(cache) as digests:
        return digests.begin(checkpoint).result()


def test_a_digest_covers_names_and_contents(folder: Path) -> None:
    """Stored jobs refer to their model by its digest, so it must not change."""
    lines = [
        f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n"
        for name in ("config.json", "model.safetensors")
    ]
    assert digest(folder) == hashlib.sha256("".join(lines).encode()).hexdigest()


@pytest.mark.parametrize(
    "content", ["", "{", '"text"', "[1]", "\udcff", '{"%s": 3}', '{"%s": "beef"}', '{"%s": null}']
)
def test_a_damaged_digest_cache_is_rebuilt(folder: Path, tmp_path: Path, content: str) -> None:
    cache = tmp_path / "digests.json"
    right = digest_through_cache(cache, folder)
    names = list(json.loads(cache.read_text()))
    damaged = content.replace("%s", names[0])
    cache.write_bytes(damaged.encode(errors="surrogateescape"))
    assert digest_through_cache(cache, folder) == right
    assert set(json.loads(cache.read_text())) == set(names)


def test_unchanged_files_are_not_hashed_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "digests.json"
    first = digest_through_cache(cache, folder)
    read: list[str] = []
    sha256 = Digests._sha256

    def noted(self: Digests, file: Path) -> str:
        read.append(file.name)
        return sha256(self, file)

    monkeypatch.setattr(Digests, "_sha256", noted)
    assert digest_through_cache(cache, folder) == first
    assert read == []
    (folder / "config.json").write_text('{"other": true}')
    assert digest_through_cache(cache, folder) != first
    assert read == ["config.json"]


def test_digests_work_without_a_writable_cache(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    assert digest_through_cache(tmp_path / "file" / "digests.json", folder) == digest(folder)
    assert "the digests are not cached" in caplog.text


def test_two_workers_share_a_digest_cache(folder: Path, tmp_path: Path) -> None:
    second_folder = tmp_path / "other"
    second_folder.mkdir()
    (second_folder / "config.json").write_text("[]")
    cache = tmp_path / "digests.json"
    with Digests(cache) as first, Digests(cache) as second:
        first.begin(folder).result()
        second.begin(second_folder).result()
    places = [key.partition("|")[0] for key in json.loads(cache.read_text())]
    assert {Path(place).parent for place in places} == {folder, second_folder}
    assert [file.name for file in tmp_path.glob("digests*")] == ["digests.json"]


def test_digests_of_files_that_change_meanwhile_are_not_cached(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha256 = Digests._sha256

    def written_to(self: Digests, file: Path) -> str:
        hashed = sha256(self, file)
        file.write_text(f"{file.stat().st_size} bytes were here")
        return hashed

    cache = tmp_path / "digests.json"
    with Digests(cache) as digests:
        monkeypatch.setattr(Digests, "_sha256", written_to)
        early = digests.begin(folder)
        mixed = early.result()
        assert early.changed()
        assert not cache.exists()
        monkeypatch.setattr(Digests, "_sha256", sha256)
        assert digests.begin(folder).result() == digest(folder) != mixed


def test_waiting_for_an_abandoned_digest_raises(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def endless(self: Digests, _: Path) -> str:
        assert self._stopping.wait(PATIENCE)
        raise CancelledError

    monkeypatch.setattr(Digests, "_sha256", endless)
    with Digests() as digests:
        future = digests.begin(folder)
    with pytest.raises(CancelledError):
        future.result()
