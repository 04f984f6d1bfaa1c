"""Merged models against PEFT's own ``merge_and_unload``, for the kinds of LoRA that PEFT has."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from cli.main import main
from tests.adapters import change_config
from tests.integration.lora.fine_tunes import SIZES
from worker.lora import LoraError
from worker.lora.inspect import inspect
from worker.lora.merge import merge

WEIGHTS = "adapter_model.safetensors"
ATTENTION = ["q_proj", "v_proj"]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small models with random weights, saved by transformers."""
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("bases")
    tied = MistralConfig(**SIZES, tie_word_embeddings=True)
    for name, model in {
        "mistral": MistralForCausalLM(MistralConfig(**SIZES)),
        "tied": MistralForCausalLM(tied),
        "qwen": Qwen2ForCausalLM(Qwen2Config(**SIZES)),
        "gpt2": GPT2LMHeadModel(
            GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4, tie_word_embeddings=False)
        ),
    }.items():
        model.save_pretrained(folder / name)
    return folder


def adapt(base: Path, folder: Path, **options: Any) -> Path:
    """Save an adapter with random factors, biases and whole modules, as PEFT does by default."""
    torch.manual_seed(4)
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    with warnings.catch_warnings():
        # PEFT warns about embeddings and tied weights, which is intended here.
        warnings.simplefilter("ignore")
        config = LoraConfig(r=3, lora_alpha=5, task_type="CAUSAL_LM", **options)
        wrapped: Any = get_peft_model(model, config)
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1 * torch.randn_like(parameter)
        wrapped.save_pretrained(folder)
    return folder


def states(base: Path, adapter: Path, merged: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the weights of our merge, and of PEFT's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: Any = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(base), str(adapter)
        )
        expected: Any = model.merge_and_unload()
    loaded: Any = AutoModelForCausalLM.from_pretrained(merged)
    return loaded.state_dict(), expected.state_dict()


@pytest.mark.parametrize(
    ("base", "options"),
    [
        ("mistral", {"target_modules": ATTENTION}),
        (
            "mistral",
            {
                "target_modules": "all-linear",
                "use_rslora": True,
                "rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 4},
                "alpha_pattern": {"down_proj": 7},
            },
        ),
        ("mistral", {"target_modules": ATTENTION, "layers_to_transform": [1]}),
        ("mistral", {"target_modules": ".*layers.0.*proj", "exclude_modules": ["o_proj"]}),
        ("mistral", {"target_modules": ATTENTION, "use_dora": True}),
        ("mistral", {"target_modules": ["lm_head", "q_proj"]}),
        ("mistral", {"target_modules": ["lm_head", "embed_tokens"]}),
        ("mistral", {"target_modules": ATTENTION, "modules_to_save": ["lm_head", "embed_tokens"]}),
        ("mistral", {"target_modules": ATTENTION, "modules_to_save": ["mlp"]}),
        ("mistral", {"target_modules": ATTENTION, "init_lora_weights": "Gaussian"}),
        ("mistral", {"target_modules": ATTENTION, "trainable_token_indices": [5, 7]}),
        ("qwen", {"target_modules": ATTENTION, "bias": "all"}),
        ("qwen", {"target_modules": ATTENTION, "bias": "lora_only", "lora_bias": False}),
        ("qwen", {"target_modules": ATTENTION, "lora_bias": True}),
        ("gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
        ("tied", {"target_modules": ATTENTION, "trainable_token_indices": [5, 7]}),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value),
)
def test_a_merged_model_is_pefts(
    bases: Path, tmp_path: Path, base: str, options: dict[str, Any]
) -> None:
    adapter = adapt(bases / base, tmp_path / "adapter", **options)
    merged = merge(bases / base, adapter, tmp_path / "merged")
    actual, expected = states(bases / base, adapter, tmp_path / "merged")
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor, rtol=1e-5, atol=1e-6, msg=name)
    before = AutoModelForCausalLM.from_pretrained(bases / base).state_dict()
    assert any(not torch.equal(before[name], actual[name]) for name in actual)
    assert merged.layers > 0
    assert merged.warnings == []


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def lose_a_layer(folder: Path) -> None:
    edit(folder, lambda w: [w.pop(name) for name in list(w) if "layers.1.self_attn.q_proj" in name])


def poison(folder: Path) -> None:
    def infinite(weights: dict[str, Any]) -> None:
        weights[next(name for name in sorted(weights) if "lora_B" in name)][0, 0] = torch.inf

    edit(folder, infinite)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: edit(f, dict.clear), "has an adapter without tensors"),
        (
            lose_a_layer,
            r"is incomplete: it has no \S+layers.1.self_attn.q_proj.lora_A.weight \(and 1 more\)",
        ),
        (
            lambda f: change_config(f, target_modules=["q_proj"]),
            r"has \S+v_proj.lora_A.weight, which its adapter_config.json does not include",
        ),
        (
            lambda f: change_config(f, target_modules=["query"]),
            "is for another base: PEFT cannot apply",
        ),
        (
            lambda f: change_config(f, init_lora_weights="olora"),
            "its initialization .olora. changes",
        ),
        (
            lambda f: change_config(f, target_parameters=["q_proj.weight"]),
            "it adapts parameters that are not linear layers",
        ),
        (
            lambda f: change_config(f, use_something_new=True),
            "does not know its option use_something_new=True",
        ),
        (
            lambda f: change_config(f, task_type="NONE"),
            "is not a config that PEFT accepts .Invalid task type",
        ),
        (
            lambda f: change_config(f, target_modules="(q"),
            "has '.q' in target_modules, which is not a reg",
        ),
        (
            lambda f: change_config(f, rank_pattern=[2]),
            r"has rank_pattern=\[2\], which is not an object",
        ),
        (
            lambda f: change_config(f, peft_type="LOHA"),
            r"cannot be merged: it is not a LoRA but .* LOHA$",
        ),
        (poison, r"adapter_model.safetensors: \S+lora_B.weight has NaN or infinite values"),
    ],
)
def test_an_adapter_that_contradicts_its_config_is_not_merged(
    bases: Path, tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    adapter = adapt(bases / "mistral", tmp_path / "adapter", target_modules=ATTENTION)
    damage(adapter)
    with pytest.raises(LoraError, match=message) as excinfo:
        merge(bases / "mistral", adapter, tmp_path / "merged")
    assert "\n" not in str(excinfo.value)
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]


def test_an_adapter_without_tensors_is_not_described(bases: Path, tmp_path: Path) -> None:
    adapter = adapt(bases / "mistral", tmp_path / "adapter", target_modules=ATTENTION)
    edit(adapter, dict.clear)
    with pytest.raises(LoraError, match="without tensors"):
        inspect(adapter)


def test_merges_that_peft_refuses_are_one_sentence(bases: Path, tmp_path: Path) -> None:
    """A bias of B where the layer has none."""
    adapter = adapt(
        bases / "mistral", tmp_path / "adapter", target_modules=ATTENTION, lora_bias=True
    )
    with pytest.raises(
        LoraError, match=r"PEFT cannot merge it in .*because the base layer has no bias"
    ):
        merge(bases / "mistral", adapter, tmp_path / "merged")


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_tied_weights_that_would_differ_are_not_merged(
    bases: Path, tmp_path: Path, target: str
) -> None:
    """PEFT's merge would add to both what its adapter adds to one."""
    adapter = adapt(bases / "tied", tmp_path / "adapter", target_modules=[target, "q_proj"])
    with pytest.raises(LoraError, match="ties its head to its embeddings, and the adapter makes"):
        merge(bases / "tied", adapter, tmp_path / "merged")


def test_a_base_with_nan_is_not_merged(bases: Path, tmp_path: Path) -> None:
    """Also in a tensor that the adapter does not change."""
    adapter = adapt(bases / "mistral", tmp_path / "adapter", target_modules=ATTENTION)
    model: Any = AutoModelForCausalLM.from_pretrained(bases / "mistral")
    model.model.norm.weight.data[3] = torch.nan
    model.save_pretrained(tmp_path / "base")
    with pytest.raises(LoraError, match=r"model.safetensors: model.norm.weight has NaN"):
        merge(tmp_path / "base", adapter, tmp_path / "merged")


def test_an_adapter_that_names_another_base_is_warned_about(bases: Path, tmp_path: Path) -> None:
    adapter = adapt(bases / "mistral", tmp_path / "adapter", target_modules=ATTENTION)
    change_config(adapter, base_model_name_or_path="somebody/Zephyr-7B")
    options = ("--base", bases / "mistral", "--adapter", adapter, "--out", tmp_path / "merged")
    result = CliRunner().invoke(main, ["lora", "merge", *map(str, options)])
    assert result.exit_code == 0, result.output
    assert (
        f"Warning: the adapter's config names the base somebody/Zephyr-7B, and it was merged into {bases / 'mistral'}"
        in result.stderr
    )
