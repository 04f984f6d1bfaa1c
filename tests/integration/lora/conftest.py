"""Fixtures for tests of the adapter tools: a base, a fine-tune, a pickled adapter."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.integration.lora.fine_tunes import (
    fine_tune,
)


@pytest.fixture
def base(checkpoint: Path) -> Path:
    return checkpoint / "base"


@pytest.fixture
def tuned(base: Path, tmp_path: Path) -> Path:
    return fine_tune(base, tmp_path / "tuned")


@pytest.fixture
def pickled(checkpoint: Path, tmp_path: Path) -> Path:
    """An adapter as HelixNet-LMoE's were uploaded: bf16, pickled, with alpha twice the rank."""
    adapter = Path(shutil.copytree(checkpoint / "actor", tmp_path / "pickled"))
    file = adapter / "adapter_model.safetensors"
    torch.save({n: t.bfloat16() for n, t in load_file(file).items()}, adapter / "adapter_model.bin")
    file.unlink()
    return adapter
