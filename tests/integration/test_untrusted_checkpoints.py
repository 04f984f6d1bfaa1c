"""Loading: nothing in a checkpoint is executed, and nothing beyond its folder is read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from cli.main import main
from tests.integration.checkpoints import refusal, settings_for
from worker.checkpoints import hub, loading
from worker.checkpoints.discovery import find_checkpoints
from worker.checkpoints.errors import CheckpointError


def test_a_pickled_adapter_is_loaded_as_weights_only(copy: Path) -> None:
    file = copy / "actor" / "adapter_model.safetensors"
    torch.save(load_file(file), copy / "actor" / "adapter_model.bin")
    file.unlink()
    assert "actor" in loading.load(find_checkpoints(settings_for(copy))).models

    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (copy / "sprung",))  # type: ignore[return-value]  # a call to make

    torch.save({"x": Trap()}, copy / "actor" / "adapter_model.bin")
    assert "cannot be loaded" in refusal(settings_for(copy))
    assert not (copy / "sprung").exists()


def test_a_pickle_of_the_hub_is_not_loaded(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor downloaded. A command converts an adapter, and the worker finds it then."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--team--actor"
    folder = Path(shutil.copytree(checkpoint / "actor", repository / "snapshots" / ("a" * 40)))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    file = folder / "adapter_model.safetensors"
    torch.save(load_file(file), folder / "adapter_model.bin")
    file.unlink()
    fetched: list[str] = []
    fetch = huggingface_hub.snapshot_download

    def note(*arguments: Any, **options: Any) -> str:
        fetched.extend(options["allow_patterns"])
        return str(fetch(*arguments, **options))

    monkeypatch.setattr(hub, "snapshot_download", note)
    with pytest.raises(CheckpointError, match="`helixq lora convert team/actor`"):
        hub.resolve("team/actor", "HELIXQ_ADAPTERS (actor)")
    assert not any("bin" in pattern or pattern == "*" or "py" in pattern for pattern in fetched)
    # Those of the settings: of the hub, the one that is pickled. Folders may be on other machines only.
    shutil.copytree(
        checkpoint / "critic",
        repository.with_name("models--team--critic") / "snapshots" / ("c" * 40),
    )
    monkeypatch.setenv(
        "HELIXQ_ADAPTERS", f"actor=team/actor,critic=team/critic@{'c' * 40},regenerator=/nowhere"
    )
    for outcome in (f"wrote {file}", "has safetensors"):
        result = CliRunner().invoke(main, ["lora", "convert"])
        assert result.exit_code == 0, result.output
        assert result.output.splitlines() == [
            f"team/actor: {outcome}",
            f"team/critic@{'c' * 40}: has safetensors",
        ]
    assert hub.resolve("team/actor", "HELIXQ_ADAPTERS (actor)") == folder

    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "sprung",))  # type: ignore[return-value]  # a call to make

    file.unlink()
    torch.save({"x": Trap()}, folder / "adapter_model.bin")
    result = CliRunner().invoke(main, ["lora", "convert", "team/actor"])
    assert result.exit_code == 1, result.output
    assert not file.exists()
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("model_type", ["odd", "mistral"])
def test_code_in_a_checkpoint_does_not_run(copy: Path, model_type: str) -> None:
    trap = f"open({str(copy / 'sprung')!r}, 'w')"
    for name in ("config.json", "tokenizer_config.json"):
        file = copy / "base" / name
        mapped = {"AutoConfig": "odd.Config", "AutoModelForCausalLM": "odd.Model"}
        tokenizer = {"AutoTokenizer": ["odd.Tokenizer", "odd.Tokenizer"]}
        config = {**json.loads(file.read_text()), "auto_map": {**mapped, **tokenizer}}
        if name == "config.json":
            config["model_type"] = model_type
        file.write_text(json.dumps(config))
    (copy / "base" / "odd.py").write_text(trap)
    custom = copy / "base" / "custom_generate"
    custom.mkdir()
    (custom / "generate.py").write_text(trap)
    if model_type == "odd":
        assert "cannot be loaded" in refusal(settings_for(copy))
    else:
        assert loading.load(find_checkpoints(settings_for(copy))).models
    assert not (copy / "sprung").exists()


def test_a_module_that_an_adapter_names_is_not_imported(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(copy / "actor")
    (copy / "actor" / "odd.py").write_text(f"open({str(copy / 'sprung')!r}, 'w')")
    file = copy / "actor" / "adapter_config.json"
    config = json.loads(file.read_text())
    auto = {"parent_library": "odd", "base_model_class": "Model"}
    file.write_text(json.dumps({**config, "auto_mapping": auto, "megatron_core": "odd"}))
    assert loading.load(find_checkpoints(settings_for(copy))).models
    file.write_text(json.dumps({**config, "megatron_core": "odd", "megatron_config": {"a": 1}}))
    assert "names the module that PEFT would import" in refusal(settings_for(copy))
    assert not (copy / "sprung").exists()


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd", "a/b.safetensors"])
def test_files_beyond_the_folder_are_not_read(copy: Path, name: str) -> None:
    """The digest in the histories is of the files in the folder."""
    (copy / "base" / "model.safetensors").rename(copy / "other.safetensors")
    index = {"metadata": {}, "weight_map": {"model.norm.weight": name}}
    (copy / "base" / "model.safetensors.index.json").write_text(json.dumps(index))
    assert f"names the file {name!r}, which is not in the folder" in refusal(settings_for(copy))
    (copy / "base" / "model.safetensors.index.json").unlink()
    file = copy / "base" / "config.json"
    config = {**json.loads(file.read_text()), "transformers_weights": name}
    file.write_text(json.dumps(config))
    assert f"names the file {name!r}, which is not in the folder" in refusal(settings_for(copy))
