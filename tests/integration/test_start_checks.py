"""What a worker checks before it serves a model: the device, and that the engine computes what PEFT computes."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from jobs.pipeline import Role
from tests.adapters import change_config
from tests.conftest import find
from tests.integration.test_adapter_kinds import beside
from worker import local_engine
from worker.checkpoints import loading
from worker.checkpoints.errors import CheckpointError
from worker.engine import role_models
from worker.engine.attention.paged_batch import PagedBatch
from worker.engine.batching.engine import BatchingEngine
from worker.engine.batching.runner_setup import RunnerOptions
from worker.engine.cuda import requirements
from worker.engine.cuda.requirements import DeviceError
from worker.engine.lora.grouped_linear import GroupedLoRALinear
from worker.engine.lora.linear import LoRALinear
from worker.engine.lora.mapping import LoRAMapping
from worker.engine.lora.merged_linear import MergedLoRALinear
from worker.engine.lora.stacked_linear import StackedLoRALinear


@pytest.mark.parametrize("form", [GroupedLoRALinear, MergedLoRALinear, StackedLoRALinear])
def test_an_engine_that_computes_an_adapter_wrongly_does_not_start(
    form: LoRALinear, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.engine.batching.runner_setup.choose_lora_linear", lambda _: form)
    checkpoints = find(checkpoint)
    local_engine.load_engine(checkpoints, 2, []).close()
    # A fake fault: in the layers, the regenerator's tokens get the critic's adapter.
    point = LoRAMapping.set
    monkeypatch.setattr(
        LoRAMapping,
        "set",
        lambda self, rows, device: point(self, [min(row, 1) for row in rows], device),
    )
    with pytest.raises(CheckpointError) as excinfo:
        local_engine.load_engine(checkpoints, 2, [])
    sentence = str(excinfo.value)
    name = checkpoints.adapters[Role.REGENERATOR].name
    assert sentence.startswith(
        f"The regenerator adapter {name} cannot be served by the batching engine"
    )
    assert "its logits differ from those of PEFT alone" in sentence


def test_a_paged_engine_that_mixes_adapters_up_does_not_start(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_engine, "RunnerOptions", partial(RunnerOptions, paged=True))
    checkpoints = find(checkpoint)
    local_engine.load_engine(checkpoints, 2, []).close()

    def mistaken(**fields: Any) -> PagedBatch:
        """A fake fault, as in the test above."""
        return PagedBatch(**{**fields, "adapter_ids": fields["adapter_ids"].clamp(max=1)})

    monkeypatch.setattr("worker.engine.batching.paged_model_runner.PagedBatch", mistaken)
    with pytest.raises(
        CheckpointError, match=r"^The regenerator adapter .*differ from those of PEFT"
    ):
        local_engine.load_engine(checkpoints, 2, [])


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (DeviceError("a context of 4096 tokens needs 9.0 GB"), "a context of 4096"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried 2 GB"),
            r"the weights .* out of .*=4bit$",
        ),
    ],
)
def test_a_device_that_is_too_small_is_reported_at_start(
    error: Exception, sentence: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> BatchingEngine:
        """A fake engine on a small GPU."""
        raise error

    monkeypatch.setattr(BatchingEngine, "from_models", full)
    with pytest.raises(CheckpointError, match=f"^HELIXQ_DEVICE=cpu cannot be used: {sentence}"):
        local_engine.load_engine(find(checkpoint), 2, [])


def test_a_gpu_that_cannot_run_kernels_is_reported_before_loading(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPU is a fake."""

    def refuse(*_: Any) -> None:
        raise DeviceError("it is too old")

    monkeypatch.setattr(requirements, "check", refuse)
    monkeypatch.setattr(loading, "load", lambda _: pytest.fail("the weights were loaded"))
    checkpoints = replace(find(checkpoint), device=torch.device("cuda:0"))
    with pytest.raises(CheckpointError, match=r"^HELIXQ_DEVICE=cuda:0 cannot be used: it is"):
        local_engine.load_engine(checkpoints, 2, [])


def test_kernels_need_not_be_compiled_before_their_first_use(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A small model stands for the base meanwhile. It has no place for adapters of later layers. The GPU is a fake."""
    pytest.importorskip("triton")
    caplog.set_level("INFO")
    folder = shutil.copytree(checkpoint, tmp_path / "late")
    change_config(folder / "critic", layers_to_transform=[7], layers_pattern="layers")
    checkpoints = replace(find(folder), device=torch.device("cuda:0"))
    assert local_engine._start_compiling(checkpoints, 2) is None
    assert "kernels are compiled at their first use: Target modules" in caplog.text


def test_an_adapter_that_changes_another_is_detected(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fake fault: PEFT's models share nothing that an adapter could change."""
    load_adapter = role_models.load_adapter
    models: list[Any] = []

    def meddling(base: Any, folder: Path, name: str) -> Any:
        loaded = load_adapter(base, folder, name)
        if models:
            with torch.no_grad():
                next(models[0].parameters()).mul_(1.1)
        models.append(loaded[0])
        return loaded

    monkeypatch.setattr(role_models, "load_adapter", meddling)
    with pytest.raises(
        CheckpointError, match=r"The actor adapter .* by the reference engine: its logits"
    ):
        local_engine.load_engine(find(checkpoint), 1, ["a test"])


def test_logits_that_are_not_finite_are_reported_at_start(checkpoint: Path, tmp_path: Path) -> None:
    folder = beside(checkpoint, tmp_path)
    shutil.copytree(checkpoint / Role.CRITIC, folder / Role.CRITIC)
    file = folder / Role.CRITIC / "adapter_model.safetensors"
    save_file({k: w * 1e30 for k, w in load_file(file).items()}, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"The critic adapter .* its logits are not finite"):
        local_engine.load_engine(find(folder), 2, [])
