"""Settings for checkpoints that tests change, and the errors that refuse them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs import settings
from jobs.settings import Settings
from tests.conftest import model_settings
from worker.checkpoints import loading
from worker.checkpoints.discovery import find_checkpoints
from worker.checkpoints.errors import CheckpointError


def settings_for(folder: Path, **changes: str) -> Settings:
    """Return the settings that name a checkpoint, and others."""
    return settings.load(
        {
            **model_settings(folder),
            "HELIXQ_DATA_DIR": str(folder / "data"),
            **changes,
        }
    )


def refusal(configured: Settings) -> str:
    """Return the error with which a checkpoint is refused."""
    with pytest.raises(CheckpointError) as excinfo:
        loading.load(find_checkpoints(configured))
    sentence = str(excinfo.value)
    assert "\n" not in sentence
    return sentence


def configure(file: str = "config.json", **changes: object) -> Callable[[Path], object]:
    """Return what changes fields of a JSON file in a folder."""

    def change(folder: Path) -> None:
        path = folder / file
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change
