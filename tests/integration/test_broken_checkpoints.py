"""Loading: a checkpoint that cannot be served gives an error of one sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.integration.checkpoints import configure, refusal, settings_for
from tests.random_weights import build
from worker.checkpoints import discovery


def test_a_missing_folder(copy: Path) -> None:
    sentence = refusal(settings_for(copy, HELIXQ_BASE_MODEL="/nowhere/base"))
    assert sentence == "HELIXQ_BASE_MODEL: there is no folder /nowhere/base"


def test_a_folder_without_a_model(copy: Path) -> None:
    (copy / "critic" / "adapter_config.json").unlink()
    sentence = refusal(settings_for(copy))
    assert "HELIXQ_ADAPTERS (critic): there is no adapter_config.json in" in sentence


@pytest.mark.parametrize(
    ("trained", "sentence"),
    [
        ("checkpoint-500", "{critic}/checkpoint-500 has one"),
        ("out/checkpoint-500", "give a folder in Hugging Face's format or a hub id"),
    ],
)
def test_the_output_folder_of_a_trainer(copy: Path, trained: str, sentence: str) -> None:
    critic = copy / "critic"
    within = critic / trained
    within.mkdir(parents=True)
    for file in list(critic.glob("adapter_*")):
        file.rename(within / file.name)
    message = refusal(settings_for(copy))
    assert message.endswith(sentence.format(critic=critic))


@pytest.mark.parametrize("with_config", [True, False])
def test_an_adapter_in_the_format_of_torchtune(copy: Path, with_config: bool) -> None:
    """As its FullModelMetaCheckpointer leaves it."""
    critic = copy / "critic"
    (critic / "adapter_model.safetensors").rename(critic / "adapter_model.pt")
    if not with_config:
        (critic / "adapter_config.json").unlink()
    sentence = refusal(settings_for(copy))
    assert "adapter_model.pt is in torchtune's own format" in sentence
    assert "FullModelHFCheckpointer" in sentence


def test_a_whole_model_in_place_of_an_adapter(copy: Path) -> None:
    """As the first HelixNet: three full fine-tunes."""
    settings = settings_for(
        copy,
        HELIXQ_ADAPTERS=f"actor={copy / 'base'},critic={copy / 'critic'},regenerator={copy / 'regenerator'}",
    )
    assert "it has a whole model, of which `helixq lora extract` makes an adapter" in refusal(
        settings
    )


@pytest.mark.parametrize("beside", [True, False])
def test_a_model_in_the_format_of_llama_cpp(copy: Path, beside: bool) -> None:
    """Alone, and beside a config.json, as some repositories have it."""
    base = copy / "base"
    for file in base.glob("*.safetensors"):
        file.unlink()
    if not beside:
        (base / "config.json").unlink()
    (base / "model.Q4_K_M.gguf").write_bytes(b"GGUF")
    sentence = refusal(settings_for(copy))
    assert f"HELIXQ_BASE_MODEL: {base} has a model in llama.cpp's format (GGUF)" in sentence
    assert "HELIXQ_ENGINE=openai" in sentence


@pytest.mark.parametrize("other", ["tokenizer.model", "tekken.json"])
def test_a_tokenizer_in_another_format(copy: Path, other: str) -> None:
    """As Mistral's first and its newer repositories have it beside, or alone."""
    base = copy / "base"
    (base / "tokenizer.json").rename(base / other)
    sentence = refusal(settings_for(copy))
    assert f"The base model {base} has no tokenizer.json" in sentence
    assert "install" not in sentence


def test_a_hub_id_that_cannot_be_fetched(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    sentence = refusal(settings_for(copy, HELIXQ_BASE_MODEL="nobody/nothing@main"))
    assert "nobody/nothing@main is no folder here and cannot be fetched from the hub" in sentence


def test_a_truncated_file(copy: Path) -> None:
    file = copy / "base" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    sentence = refusal(settings_for(copy))
    assert str(copy / "base") in sentence
    assert "check HELIXQ_BASE_MODEL" in sentence


def test_a_missing_tensor(copy: Path) -> None:
    file = copy / "base" / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    assert "model.layers.1.mlp.up_proj.weight" in refusal(settings_for(copy))


def test_a_config_that_is_no_json(copy: Path) -> None:
    (copy / "base" / "config.json").write_text("{")
    assert "cannot be loaded" in refusal(settings_for(copy))


def test_a_tokenizer_of_another_model(copy: Path) -> None:
    file = copy / "base" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "vocab_size": 100}))
    sentence = refusal(settings_for(copy))
    assert "tokens were added without resizing" in sentence
    assert "mixes two models" in sentence


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"hidden": 96}, "size mismatch"),
        ({"layers": 3}, "the base has no place for"),
        ({"layers": 1}, "which the base needs"),
    ],
)
def test_an_adapter_for_another_base(
    copy: Path, tmp_path: Path, shape: dict[str, int], message: str
) -> None:
    build(tmp_path / "other", **shape)
    shutil.rmtree(copy / "critic")
    shutil.copytree(tmp_path / "other" / "critic", copy / "critic")
    sentence = refusal(settings_for(copy))
    assert sentence.startswith(f"The critic adapter {copy / 'critic'} cannot be loaded")
    assert message in sentence
    assert "made for the base model" in sentence


def test_missing_devices_are_refused(copy: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    assert "sees no CUDA device" in refusal(settings_for(copy, HELIXQ_DEVICE="cuda"))


def test_a_device_number_that_is_too_large_is_refused(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two CUDA devices are fakes."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    sentence = refusal(settings_for(copy, HELIXQ_DEVICE="cuda:2"))
    assert sentence == "HELIXQ_DEVICE=cuda:2, but PyTorch sees 2 CUDA devices; use cuda:1 or lower"


def test_without_bitsandbytes_there_is_no_4bit(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "find_spec", lambda _: None)
    assert "pip install" in refusal(settings_for(copy, HELIXQ_QUANTIZATION="4bit"))


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize("part", ["base", "critic"])
def test_a_nan_is_reported_with_its_file(copy: Path, part: str, value: float) -> None:
    file = copy / part / ("model.safetensors" if part == "base" else "adapter_model.safetensors")
    weights = load_file(file)
    name = sorted(weights)[-1]
    weights[name].flatten()[3] = value
    save_file(weights, file, metadata={"format": "pt"})
    sentence = refusal(settings_for(copy))
    assert f"{file}: {name} has NaN or infinite values" in sentence
    assert str(copy / part) in sentence


def test_a_nan_in_a_pickle_is_reported_with_its_file(copy: Path) -> None:
    weights = load_file(copy / "base" / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    torch.save(weights, copy / "base" / "pytorch_model.bin")
    (copy / "base" / "model.safetensors").unlink()
    sentence = refusal(settings_for(copy))
    assert "pytorch_model.bin: model.norm.weight has NaN or infinite values" in sentence


def test_a_value_that_overflows_the_dtype_is_reported(copy: Path) -> None:
    file = copy / "base" / "model.safetensors"
    weights = load_file(file)
    weights["model.norm.weight"][0] = 1e9
    save_file(weights, file, metadata={"format": "pt"})
    sentence = refusal(settings_for(copy, HELIXQ_DTYPE="float16"))
    assert "model.norm.weight has values that are too large for float16" in sentence
    assert "HELIXQ_DTYPE" in sentence


def point_nowhere(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("nothing")


def add_adapter(folder: Path) -> None:
    """As if an adapter had been saved into its base's folder."""
    shutil.copy(folder.parent / "critic" / "adapter_config.json", folder)


def drop_vocabulary(folder: Path) -> None:
    """As transformers creates for some models where the tokenizer's file is missing."""
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"] |= {"vocab": {}, "merges": [], "unk_token": None}
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (point_nowhere, "cannot be loaded ([Errno 2] No such file or directory"),
        (
            add_adapter,
            "has an adapter_config.json, so it is an adapter or has one beside the model",
        ),
        (drop_vocabulary, "has no vocabulary; fetch its tokenizer.json"),
        (configure(vocab_size=900), "and config.json requires (900, 64)"),
        (configure(num_attention_heads=0), "The base model"),
        (configure(vocab_size="768"), "Field 'vocab_size' expected int, got str"),
        (configure(max_position_embeddings=8), "has no room for a question"),
        # Errors of the base are not reported as errors of an adapter.
        (configure(return_dict=False), "The base model"),
        (
            configure("generation_config.json", eos_token_id="2"),
            "eos_token_id='2', which is no token",
        ),
    ],
)
def test_an_unusable_base_is_one_sentence(
    copy: Path, change: Callable[[Path], object], message: str
) -> None:
    change(copy / "base")
    sentence = refusal(settings_for(copy))
    assert message in sentence
    assert str(copy / "base") in sentence or "HELIXQ_MAX_CONTEXT" in sentence
    assert "adapter " not in sentence or change is add_adapter


@pytest.mark.parametrize(
    ("changes", "method"),
    [
        # As AutoGPTQ, AutoAWQ, DeepSeek, llm-compressor, ExLlamaV2 and mlx-lm write them.
        ({"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}}, "gptq"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4, "version": "gemm"}}, "awq"),
        ({"quantization_config": {"quant_method": "fp8", "fmt": "e4m3"}}, "fp8"),
        (
            {"quantization_config": {"quant_method": "compressed-tensors", "config_groups": {}}},
            "compressed-tensors",
        ),
        ({"quantization_config": {"quant_method": "exl2", "bits": 4.0}}, "exl2"),
        (
            {
                "quantization": {"group_size": 64, "bits": 4},
                "quantization_config": {"group_size": 64, "bits": 4},
            },
            "mlx",
        ),
        ({"quantization_config": {"bits": 4}}, "by an unknown method"),
    ],
)
def test_a_quantized_base_is_refused_by_its_method(
    copy: Path, changes: dict[str, object], method: str
) -> None:
    configure("config.json", **changes)(copy / "base")
    sentence = refusal(settings_for(copy))
    assert f"{copy / 'base'} is quantized ({method}), which is not served" in sentence
    assert "pip install" not in sentence


def test_an_adapter_of_mlx_is_refused_by_name(copy: Path) -> None:
    folder = copy / "critic"
    weights = load_file(folder / "adapter_model.safetensors")
    save_file(
        {
            name.removeprefix("base_model.model.").replace("lora_A.weight", "lora_a"): tensor
            for name, tensor in weights.items()
        },
        folder / "adapters.safetensors",
    )
    (folder / "adapter_model.safetensors").unlink()
    config = {
        "fine_tune_type": "lora",
        "lora_parameters": {"rank": 8, "dropout": 0.0, "scale": 20.0},
        "model": "mistralai/Mistral-7B-v0.1",
        "num_layers": 16,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    sentence = refusal(settings_for(copy))
    assert f"{folder} has an adapter of MLX" in sentence
    assert "helixq lora extract" in sentence
