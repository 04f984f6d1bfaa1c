"""`merge`: a merged model has the logits of base and adapter."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
)

from tests.adapters import change_config
from tests.integration.lora.fine_tunes import (
    is_linear,
    logits,
)
from tests.random_weights import build
from worker.lora import LoraError
from worker.lora.extract import extract
from worker.lora.lowrank import Target
from worker.lora.merge import merge


@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
def test_a_merged_model_has_the_logits_of_base_and_adapter(
    checkpoint: Path, base: Path, tmp_path: Path, dtype: torch.dtype | None
) -> None:
    merged = merge(base, checkpoint / "critic", tmp_path / "out", dtype=dtype)
    assert (merged.layers, merged.replaced) == (14, 0)
    expected = logits(base, checkpoint / "critic")
    effect = float((logits(base) - expected).abs().max())
    error = float((logits(tmp_path / "out") - expected).abs().max())
    # Rounding the weights to half precision adds an error.
    assert error < effect * {None: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.8}[dtype]
    before, after = (load_file(f / "model.safetensors") for f in (base, tmp_path / "out"))
    assert before.keys() == after.keys()
    if dtype is None:
        assert all(torch.equal(before[n], after[n]) for n in before if not is_linear(n))
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (
        base / "tokenizer.json"
    ).read_bytes()


def test_a_sharded_base_is_merged_in_its_shards(
    checkpoint: Path, base: Path, tmp_path: Path
) -> None:
    AutoModelForCausalLM.from_pretrained(base).save_pretrained(
        tmp_path / "shards", max_shard_size="100KB"
    )
    merge(tmp_path / "shards", checkpoint / "actor", tmp_path / "out")
    names = {p.name for p in (tmp_path / "shards").iterdir()}
    assert {p.name for p in (tmp_path / "out").iterdir()} == names
    torch.testing.assert_close(
        logits(tmp_path / "out"), logits(base, checkpoint / "actor"), rtol=1e-4, atol=1e-4
    )


def test_extraction_undoes_a_merge(checkpoint: Path, base: Path, tmp_path: Path) -> None:
    merge(base, checkpoint / "actor", tmp_path / "merged")
    extract(base, tmp_path / "merged", tmp_path / "again", target=Target(rank=4))
    torch.testing.assert_close(
        logits(base, tmp_path / "again"), logits(base, checkpoint / "actor"), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "is incomplete: it has no .*lora_magnitude_vector"),
        ({"alora_invocation_tokens": [1]}, "it is an aLoRA"),
        ({"peft_type": "LOHA"}, "it is not a LoRA but of the type LOHA"),
        ({"init_lora_weights": "pissa"}, "its initialization .pissa. changes the base's weights"),
        ({"r": 8}, "has rank 4, but adapter_config.json says 8"),
    ],
)
def test_unmergeable_adapters_are_refused(
    checkpoint: Path, base: Path, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    adapter = Path(shutil.copytree(checkpoint / "actor", tmp_path / "adapter"))
    change_config(adapter, **change)
    with pytest.raises(LoraError, match=message):
        merge(base, adapter, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.parametrize(
    ("shape", "message"), [({"layers": 3}, "has no model.layers.2."), ({"hidden": 96}, "the shape")]
)
def test_an_adapter_of_another_base_is_not_merged(
    base: Path, tmp_path: Path, shape: dict[str, int], message: str
) -> None:
    build(tmp_path / "other", **shape)
    with pytest.raises(LoraError, match=f"is for another base: .*{message}"):
        merge(base, tmp_path / "other" / "actor", tmp_path / "out")
    assert not (tmp_path / "out").exists()
