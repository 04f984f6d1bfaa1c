"""Checkpoints that are downloaded from the hub."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jobs.pipeline import Role
from tests.hub import Hub
from tests.integration.checkpoints import refusal, settings_for
from worker.checkpoints.discovery import find_checkpoints

COMMIT = "c" * 40


@contextmanager
def serving(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Let the client of the hub use one that serves the folders ``root/team/name``."""
    hub = Hub(root, COMMIT)
    for constant, value in {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_OFFLINE": False,
    }.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{constant}", value)
    try:
        yield hub
    finally:
        hub.stop()


def test_only_the_files_of_a_checkpoint_are_downloaded_and_hashed(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Mistral-7B-v0.3 has its weights twice, and a trainer's output its checkpoints."""
    root = tmp_path / "hub"
    for name in ("base", *Role):
        shutil.copytree(checkpoint / name, root / "team" / name)
    names = {file.name for file in (checkpoint / "base").glob("*")}
    base, actor = root / "team" / "base", root / "team" / Role.ACTOR
    shutil.copy(base / "model.safetensors", base / "consolidated.safetensors")
    (base / "consolidated.safetensors.index.json").write_text("{}")
    for name in ("checkpoint-500", "onnx"):
        shutil.copytree(checkpoint / Role.ACTOR, actor / name)
    adapters = ",".join(f"{role}=team/{role}@v1.2" for role in Role)
    with serving(root, tmp_path / "cache", monkeypatch) as hub:
        settings = settings_for(checkpoint, HELIXQ_BASE_MODEL="team/base", HELIXQ_ADAPTERS=adapters)
        found = find_checkpoints(settings).describe("batching")
    assert names <= set(hub.downloaded)
    assert not [path for path in hub.downloaded if "/" in path or "consolidated" in path]
    # Folders that have these files beside the others are the same model.
    monkeypatch.undo()
    of_folders = settings_for(
        checkpoint,
        HELIXQ_BASE_MODEL=str(base),
        HELIXQ_ADAPTERS=",".join(f"{role}={root / 'team' / role}" for role in Role),
    )
    here = find_checkpoints(of_folders).describe("batching")
    assert found["base"] == {
        "name": "team/base",
        "revision": COMMIT,
        "digest": here["base"]["digest"],
    }
    assert found["adapters"][Role.ACTOR]["digest"] == here["adapters"][Role.ACTOR]["digest"]


def test_weights_that_are_not_hashed_are_not_loaded(copy: Path) -> None:
    base = copy / "base"
    (base / "model.safetensors").rename(base / "consolidated.safetensors")
    config = json.loads((base / "config.json").read_text())
    config["transformers_weights"] = "consolidated.safetensors"
    (base / "config.json").write_text(json.dumps(config))
    assert "names the file 'consolidated.safetensors', which is in Mistral's own format" in refusal(
        settings_for(copy)
    )


def _only_gguf(base: Path) -> None:
    (base / "model.safetensors").rename(base / "model.Q4_K_M.gguf")


def _in_a_folder(base: Path) -> None:
    (base / "checkpoint-500").mkdir()
    (base / "model.safetensors").rename(base / "checkpoint-500" / "model.safetensors")


def _pickled(base: Path) -> None:
    (base / "model.safetensors").rename(base / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_only_gguf, "team/base has a model in llama.cpp's format (GGUF)"),
        (_in_a_folder, "in folders within (checkpoint-500)"),
        (_pickled, "pickles of the hub are not loaded"),
    ],
)
def test_a_repository_without_safetensors(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], None],
    message: str,
) -> None:
    """As many have the same model once more for llama.cpp, without a config.json too."""
    base = tmp_path / "hub" / "team" / "base"
    shutil.copytree(checkpoint / "base", base)
    change(base)
    if change is _only_gguf:
        (base / "config.json").unlink()
    with serving(tmp_path / "hub", tmp_path / "cache", monkeypatch):
        sentence = refusal(settings_for(checkpoint, HELIXQ_BASE_MODEL="team/base"))
    assert "HELIXQ_BASE_MODEL: team/base has" in sentence
    assert message in sentence
    assert ("helixq lora convert" in sentence) == (change is _pickled)
