"""The adapter tools read the same files and tensor names as transformers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
)

from tests.integration.lora.fine_tunes import SIZES
from worker.lora import LoraError
from worker.lora.extract import extract
from worker.lora.lowrank import Target
from worker.lora.merge import merge
from worker.lora.weight_files import open_checkpoint

IDS = torch.tensor([[1, 20, 30, 40, 50, 60]])
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def build(kind: str) -> Any:
    torch.manual_seed(3)
    if kind == "mixtral":
        return MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=4))
    if kind == "qwen":
        sizes = {**SIZES, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
        return Qwen2MoeForCausalLM(Qwen2MoeConfig(**sizes, num_experts=4))
    return MistralForCausalLM(MistralConfig(**SIZES, tie_word_embeddings=kind == "tied"))


def tune(model: Any, *, experts: bool = False) -> Any:
    """Add differences of rank 2 to a model's linear layers, and if asked, to its experts."""
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        if name.endswith(("proj.weight", "shared_expert_gate.weight")):
            m, n = parameter.shape
            a, b = (torch.randn(*x, generator=generator) for x in ((m, 2), (2, n)))
            parameter.data += 0.05 * a @ b
        elif experts and "experts" in name:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


def logits(folder: Path, adapter: Path | None = None) -> Tensor:
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter))
    with torch.no_grad():
        scores: Tensor = model(input_ids=IDS).logits
    return scores


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    build("mistral").save_pretrained(tmp_path / "base")
    return tmp_path / "base"


# --- which files ----------------------------------------------------------------------


def leave_shards(folder: Path) -> None:
    """Save the base as shards, and later as a single file beside them."""
    build("mistral").save_pretrained(folder / "old", max_shard_size="20KB")
    for file in (folder / "old").glob("model*"):
        shutil.move(file, folder / file.name)
    shutil.rmtree(folder / "old")


def name_another(folder: Path) -> None:
    """Name the file in the config; a stale file has the usual name."""
    shutil.move(folder / SINGLE, folder / "best.safetensors")
    build("mistral").save_pretrained(folder / "old")
    shutil.move(folder / "old" / SINGLE, folder / SINGLE)
    shutil.rmtree(folder / "old")
    file = folder / "config.json"
    content = {**json.loads(file.read_text()), "transformers_weights": "best.safetensors"}
    file.write_text(json.dumps(content))


def split(folder: Path) -> None:
    """Shard the model, one shard in a folder of its own; the index lists one tensor only."""
    weights = load_file(folder / SINGLE)
    (folder / SINGLE).unlink()
    (folder / "more").mkdir()
    names = sorted(weights)
    old = weights["model.norm.weight"] * 0
    first = {name: weights[name] for name in names[::2]} | {"model.norm.weight": old}
    second = {name: weights[name] for name in names[1::2]}
    second["model.norm.weight"] = weights["model.norm.weight"]
    save_file(first, folder / "a.safetensors", metadata={"format": "pt"})
    save_file(second, folder / "more" / "b.safetensors", metadata={"format": "pt"})
    listed = {names[0]: "a.safetensors", names[1]: "more/b.safetensors"}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": listed}))


@pytest.mark.parametrize("arrange", [leave_shards, name_another, split])
def test_weight_files_are_found_as_by_transformers(
    base: Path, tmp_path: Path, arrange: Callable[[Path], None]
) -> None:
    tuned = tmp_path / "tuned"
    tune(build("mistral")).save_pretrained(tuned)
    expected = logits(tuned)
    arrange(tuned)
    close(logits(tuned), expected)
    read = open_checkpoint(tuned)
    for name, tensor in AutoModelForCausalLM.from_pretrained(tuned).state_dict().items():
        assert torch.equal(read.get(name), tensor), name
    report = extract(base, tuned, tmp_path / "out", target=Target(rank=2))
    assert min(layer.norm for layer in report.layers) > 0
    close(logits(base, tmp_path / "out"), expected)
    # As the base of a merge, which adds the same difference again.
    twice = tune(tune(build("mistral")))
    merge(tuned, tmp_path / "out", tmp_path / "merged")
    twice.save_pretrained(tmp_path / "twice")
    close(logits(tmp_path / "merged"), logits(tmp_path / "twice"))
    assert not (tmp_path / "merged" / "more").exists()


def save_pickled(folder: Path) -> None:
    torch.save(load_file(folder / SINGLE), folder / "pytorch_model.bin")
    (folder / SINGLE).unlink()


def lose_a_shard(folder: Path) -> None:
    (folder / SINGLE).unlink()
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "gone.safetensors"}}
    (folder / INDEX).write_text(json.dumps(index))


def embed_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


def untie(folder: Path) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "tie_word_embeddings": True}))


def double(folder: Path) -> None:
    weights = load_file(folder / SINGLE)
    weights["norm.weight"] = weights["model.norm.weight"].clone()
    save_file(weights, folder / SINGLE, metadata={"format": "pt"})


def quantize(folder: Path) -> None:
    file = folder / "config.json"
    content = {**json.loads(file.read_text()), "quantization_config": {"quant_method": "gptq"}}
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (save_pickled, "has its weights in a pickle, pytorch_model.bin; load it with transformers"),
        (lose_a_shard, "there is no .*gone.safetensors, which model.safetensors.index.json names"),
        (embed_adapter, "has an adapter_config.json, so transformers adds that adapter"),
        (untie, "both are stored and differ, so transformers does not tie them"),
        (double, "has model.norm.weight twice, as model.norm.weight and as norm.weight"),
        (quantize, "is a quantized model"),
    ],
)
def test_ambiguous_checkpoints_are_refused(
    base: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    adapter = tmp_path / "adapter"
    tune(build("mistral")).save_pretrained(tmp_path / "tuned")
    extract(base, tmp_path / "tuned", adapter, target=Target(rank=2))
    damage(base)
    with pytest.raises(LoraError, match=message):
        merge(base, adapter, tmp_path / "merged")


# --- under which names ----------------------------------------------------------------


def test_a_model_saved_without_its_head_is_a_fine_tune(base: Path, tmp_path: Path) -> None:
    """``model.model.save_pretrained`` writes no prefix and no head."""
    tuned = tune(build("mistral"))
    tuned.save_pretrained(tmp_path / "whole")
    tuned.model.save_pretrained(tmp_path / "bare")
    report = extract(base, tmp_path / "bare", tmp_path / "out", target=Target(rank=2))
    assert report.warnings == [
        f"{tmp_path / 'bare'} was saved without its head, which is assumed to be unchanged"
    ]
    close(logits(base, tmp_path / "out"), logits(tmp_path / "whole"))
    with pytest.raises(LoraError, match=r"saved without its head: there is no lm_head.weight"):
        extract(base, tmp_path / "bare", tmp_path / "x", target=Target(rank=2), keep=("head",))


def test_a_base_saved_without_its_head_is_merged(base: Path, tmp_path: Path) -> None:
    tune(build("mistral")).save_pretrained(tmp_path / "tuned")
    extract(base, tmp_path / "tuned", tmp_path / "out", target=Target(rank=2))
    build("mistral").model.save_pretrained(tmp_path / "bare")
    merge(tmp_path / "bare", tmp_path / "out", tmp_path / "merged")
    merged = load_file(tmp_path / "merged" / SINGLE)
    tuned = load_file(tmp_path / "tuned" / SINGLE)
    assert merged.keys() == {n.removeprefix("model.") for n in tuned if n != "lm_head.weight"}
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, tuned[f"model.{name}"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tied", ["lm_head.weight", "model.embed_tokens.weight", "both"])
def test_tied_weights_are_found_under_either_name(tmp_path: Path, tied: str) -> None:
    build("tied").save_pretrained(tmp_path / "base")
    tune(build("tied")).save_pretrained(tmp_path / "tuned")
    expected = logits(tmp_path / "tuned")
    file = tmp_path / "tuned" / SINGLE
    weights = load_file(file)
    embeddings = weights.pop("model.embed_tokens.weight")
    for name in ("lm_head.weight", "model.embed_tokens.weight") if tied == "both" else (tied,):
        weights[name] = embeddings.clone()
    save_file(weights, file, metadata={"format": "pt"})
    close(logits(tmp_path / "tuned"), expected)
    extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "out", target=Target(rank=2))
    close(logits(tmp_path / "base", tmp_path / "out"), expected)
    merge(tmp_path / "tuned", tmp_path / "out", tmp_path / "merged")
    assert load_file(tmp_path / "merged" / SINGLE).keys() == weights.keys()


@pytest.mark.parametrize("kind", ["mixtral", "qwen"])
def test_a_mixture_whose_experts_did_not_change_is_extracted(kind: str, tmp_path: Path) -> None:
    build(kind).save_pretrained(tmp_path / "base")
    tune(build(kind)).save_pretrained(tmp_path / "tuned")
    report = extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "out", target=Target(rank=2))
    # Qwen has gates with a single output, which have no rank 2.
    assert {layer.rank for layer in report.layers} == ({2} if kind == "mixtral" else {1, 2})
    close(logits(tmp_path / "base", tmp_path / "out"), logits(tmp_path / "tuned"))
    merge(tmp_path / "base", tmp_path / "out", tmp_path / "merged")
    close(logits(tmp_path / "merged"), logits(tmp_path / "tuned"))


@pytest.mark.parametrize("kind", ["mixtral", "qwen"])
def test_a_mixture_whose_experts_changed_is_refused(kind: str, tmp_path: Path) -> None:
    build(kind).save_pretrained(tmp_path / "base")
    tune(build(kind), experts=True).save_pretrained(tmp_path / "tuned")
    with pytest.raises(LoraError, match=r"experts.0.\S+ differs, but it belongs to an expert of a"):
        extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "out", target=Target(rank=1))
    assert not (tmp_path / "out").exists()


def configure(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_differences_of_configs_are_reported(base: Path, tmp_path: Path) -> None:
    """An adapter cannot represent them."""
    tune(build("mistral")).save_pretrained(tmp_path / "tuned")
    configure(tmp_path / "tuned", attention_multiplier=2.0, attention_dropout=0.5, eos_token_id=3)
    report = extract(base, tmp_path / "tuned", tmp_path / "out", target=Target(rank=2))
    assert report.warnings == [
        f"attention_multiplier is 2.0 in {tmp_path / 'tuned'} and None in {base}, which an adapter cannot change"
    ]


@pytest.mark.parametrize("changes", [{"num_attention_heads": 0}, {"vocab_size": "96"}])
def test_an_invalid_config_is_one_sentence(
    base: Path, tmp_path: Path, changes: dict[str, object]
) -> None:
    shutil.copytree(base, tmp_path / "tuned")
    for folder in (base, tmp_path / "tuned"):
        configure(folder, **changes)
    with pytest.raises(LoraError, match=r"config.json (does not describe|is not a config that)"):
        extract(base, tmp_path / "tuned", tmp_path / "out", target=Target(rank=2))
