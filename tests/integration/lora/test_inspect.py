"""`inspect`: an adapter's description, and pickled adapters."""

from __future__ import annotations

import shutil
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file

from tests.adapters import change_config
from tests.integration.lora.fine_tunes import (
    LINEAR,
)
from worker.lora import LoraError
from worker.lora.adapter import open_adapter
from worker.lora.inspect import convert, inspect


def test_an_adapter_is_described(checkpoint: Path) -> None:
    description = inspect(checkpoint / "critic")
    assert (description.ranks, description.alphas, description.scalings) == ([4], [8], [2])
    assert description.targets == sorted(LINEAR)
    assert len(description.layers) == 14
    assert (description.unsupported_reasons, description.dtypes) == ([], ["F32"])
    adapter = open_adapter(checkpoint / "critic")
    for layer in description.layers:
        b, a = adapter.get(layer.name)
        assert layer.norm == pytest.approx(float((2 * b @ a).norm()), rel=1e-4)
    tensors = load_file(checkpoint / "critic" / "adapter_model.safetensors")
    assert description.parameters == sum(t.numel() for t in tensors.values())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"use_dora": True}, "it is a DoRA"),
        ({"modules_to_save": ["lm_head"]}, "it replaces whole modules (lm_head)"),
        ({"bias": "lora_only"}, "it has trained biases"),
    ],
)
def test_unsupported_adapters_are_reported(
    checkpoint: Path, tmp_path: Path, change: dict[str, object], reason: str
) -> None:
    adapter = Path(shutil.copytree(checkpoint / "actor", tmp_path / "adapter"))
    change_config(adapter, **change)
    [unsupported] = inspect(adapter).unsupported_reasons
    assert unsupported.startswith(reason)


def test_a_pickle_is_converted_bit_for_bit(pickled: Path) -> None:
    assert inspect(pickled).file == "adapter_model.bin"
    convert(pickled)
    original = torch.load(pickled / "adapter_model.bin", weights_only=True)
    converted = load_file(pickled / "adapter_model.safetensors")
    assert original.keys() == converted.keys()
    assert all(
        torch.equal(original[n], converted[n]) and original[n].dtype == converted[n].dtype
        for n in original
    )
    assert inspect(pickled).dtypes == ["BF16"]
    assert set(peft.load_peft_weights(str(pickled), device="cpu")) == set(original)
    with pytest.raises(LoraError, match="already exists"):
        convert(pickled)


def test_a_pickle_with_code_does_not_run(pickled: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return (Path.touch, (tmp_path / "sprung",))

    torch.save({"x": Trap()}, pickled / "adapter_model.bin")
    for read in (inspect, convert):
        with pytest.raises(LoraError, match="it is damaged, or contains more than tensors"):
            read(pickled)
    assert not (tmp_path / "sprung").exists()
    assert not (pickled / "adapter_model.safetensors").exists()
