"""Where `helixq up` keeps its data."""

from __future__ import annotations

from pathlib import Path

from cli import up


def test_others_cannot_read_the_data_folder_that_is_made(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "data"
    with up._data_dir(folder):
        assert folder.stat().st_mode & 0o777 == 0o700
