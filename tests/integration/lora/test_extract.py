"""`extract`: PEFT loads the fine-tune from it, and invalid input writes nothing."""

from __future__ import annotations

import json
import re
import shutil
import sys
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
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from tests import servers
from tests.integration.lora.fine_tunes import (
    DOWN,
    LINEAR,
    RANK,
    fine_tune,
    logits,
)
from worker.lora import LoraError
from worker.lora.adapter import open_adapter
from worker.lora.extract import extract
from worker.lora.lowrank import Target
from worker.lora.merge import merge


def test_an_adapter_reproduces_the_fine_tune_it_came_from(
    base: Path, tuned: Path, tmp_path: Path
) -> None:
    report = extract(base, tuned, tmp_path / "out", target=Target(rank=RANK))
    assert report.error < 1e-5
    torch.testing.assert_close(logits(base, tmp_path / "out"), logits(tuned), rtol=1e-4, atol=1e-4)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (RANK, RANK)
    assert config["target_modules"] == sorted(LINEAR)


def test_reported_errors_match_the_saved_adapter(base: Path, tmp_path: Path) -> None:
    tuned = fine_tune(base, tmp_path / "tuned", noise=0.01)
    report = extract(base, tuned, tmp_path / "out", target=Target(rank=RANK), dtype=torch.float16)
    base_tensors, tuned_tensors = (load_file(f / "model.safetensors") for f in (base, tuned))
    adapter = open_adapter(tmp_path / "out")
    lost = total = 0.0
    for layer in report.layers:
        d = (tuned_tensors[layer.name] - base_tensors[layer.name]).double()
        b, a = adapter.get(layer.name.removesuffix(".weight"))
        error = float((d - b.double() @ a.double()).norm())
        assert layer.norm == pytest.approx(float(d.norm()), rel=1e-5)
        assert layer.error == pytest.approx(error / float(d.norm()), rel=1e-3)
        assert layer.kept == pytest.approx(1 - layer.error**2)
        best = float(torch.linalg.svdvals(d)[RANK:].square().sum().sqrt() / d.norm())
        assert layer.best_error_at_least == pytest.approx(best, rel=1e-3)
        assert layer.error <= best * 1.002
        lost, total = lost + error**2, total + float(d.norm()) ** 2
    assert report.error**2 == pytest.approx(lost / total, rel=1e-3)
    assert {
        t.dtype for t in load_file(tmp_path / "out" / "adapter_model.safetensors").values()
    } == {torch.float16}


def test_energy_selects_the_smallest_rank_of_each_layer(base: Path, tmp_path: Path) -> None:
    tuned = fine_tune(base, tmp_path / "tuned", noise=0.03)
    report = extract(base, tuned, tmp_path / "out", target=Target(energy=0.9))
    base_tensors, tuned_tensors = (load_file(f / "model.safetensors") for f in (base, tuned))
    for layer in report.layers:
        squares = torch.linalg.svdvals(
            (tuned_tensors[layer.name] - base_tensors[layer.name]).double()
        ).square()
        shares = squares.cumsum(0) / squares.sum()
        assert layer.rank == int((shares < 0.9).sum()) + 1
        assert layer.kept >= 0.9 - 1e-4
    assert len({layer.rank for layer in report.layers}) > 1
    model: Any = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base), str(tmp_path / "out")
    )
    scalings = {
        module.scaling["default"] for module in model.modules() if hasattr(module, "lora_A")
    }
    assert scalings == {1.0}, "the scaling is 1 at any rank"


def test_kept_modules_complete_the_fine_tune(base: Path, tmp_path: Path) -> None:
    tuned = fine_tune(base, tmp_path / "tuned", rest=0.02)
    keep = ("embeddings", "head", "norms")
    report = extract(base, tuned, tmp_path / "out", target=Target(rank=RANK), keep=keep)
    assert {rest.kind for rest in report.rest if rest.kept} == set(keep)
    torch.testing.assert_close(logits(base, tmp_path / "out"), logits(tuned), rtol=1e-4, atol=1e-4)
    without = extract(base, tuned, tmp_path / "without", target=Target(rank=RANK))
    assert {rest.kind: rest.kept for rest in without.rest} == dict.fromkeys(keep, False)
    assert not torch.allclose(logits(base, tmp_path / "without"), logits(tuned), atol=1e-2)


def test_the_same_models_in_shards_give_the_same_adapter(
    base: Path, tuned: Path, tmp_path: Path
) -> None:
    for name, folder in (("base", base), ("tuned", tuned)):
        model = AutoModelForCausalLM.from_pretrained(folder)
        model.save_pretrained(tmp_path / "shards" / name, max_shard_size="100KB")
    shards = tmp_path / "shards"
    assert len(list((shards / "base").glob("*.safetensors"))) > 2
    extract(base, tuned, tmp_path / "one", target=Target(rank=RANK))
    extract(shards / "base", shards / "tuned", tmp_path / "two", target=Target(rank=RANK))
    first, second = (load_file(tmp_path / x / "adapter_model.safetensors") for x in ("one", "two"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("architecture", ["llama", "qwen"])
def test_other_architectures(architecture: str, tmp_path: Path) -> None:
    """Llama; and Qwen, whose attention has biases and whose small models tie head and embeddings."""
    torch.manual_seed(2)
    sizes: dict[str, Any] = {
        "vocab_size": 512,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    model: Any = (
        LlamaForCausalLM(LlamaConfig(**sizes))
        if architecture == "llama"
        else Qwen2ForCausalLM(Qwen2Config(**sizes, tie_word_embeddings=True))
    )
    model.save_pretrained(tmp_path / "base")
    tuned = fine_tune(tmp_path / "base", tmp_path / "tuned", rest=0.02)
    extract(
        tmp_path / "base",
        tuned,
        tmp_path / "out",
        target=Target(rank=RANK),
        keep=("embeddings", "head", "norms"),
    )
    # PEFT warns that it cannot merge the copy of a tied module.
    with pytest.warns(UserWarning, match="tie") if architecture == "qwen" else _nothing():
        adapted = logits(tmp_path / "base", tmp_path / "out")
    torch.testing.assert_close(adapted, logits(tuned), rtol=1e-4, atol=1e-4)
    merge(tmp_path / "base", tmp_path / "out", tmp_path / "merged")
    torch.testing.assert_close(logits(tmp_path / "merged"), adapted, rtol=1e-4, atol=1e-4)


class _nothing:  # noqa: N801 (reads like contextlib's)
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def edit(file: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Change the tensors of a file."""
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})


def poison(weights: dict[str, Tensor]) -> None:
    weights[DOWN][3, 4] = torch.nan


def shrink(weights: dict[str, Tensor]) -> None:
    weights[DOWN] = weights[DOWN][:-1].clone()


def truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def swap_tokens(folder: Path) -> None:
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    file.write_text(json.dumps(content))


def widen(folder: Path) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "hidden_size": 96}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: edit(f / "model.safetensors", poison), f"{DOWN} has NaN or infinite values"),
        (lambda f: edit(f / "model.safetensors", shrink), f"{DOWN} has the shape 63 x 128, but 64"),
        (
            lambda f: edit(f / "model.safetensors", lambda w: w.pop(DOWN)),
            f"has no tensor {DOWN}, which its config.json requires",
        ),
        (truncate, "model.safetensors cannot be read"),
        (swap_tokens, "have different"),
        (widen, "is not a fine-tune of .*: hidden_size is 96 and not 64"),
        (lambda f: (f / "config.json").unlink(), "config.json cannot be read"),
        (lambda f: (f / "config.json").write_text("{"), "config.json is not JSON"),
        (lambda f: (f / "model.safetensors").unlink(), "there is no .*model.safetensors"),
    ],
)
def test_incompatible_models_write_nothing(
    base: Path, tuned: Path, tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(tuned)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(LoraError, match=message) as excinfo:
        extract(base, tuned, tmp_path / "out", target=Target(rank=RANK))
    assert str(tuned) in str(excinfo.value), "the sentence names the file"
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("target", "alpha", "message"),
    [
        (Target(rank=33), None, "the rank 33 is too large for .*_proj.weight, which is 32 x 64"),
        (Target(rank=0), None, "the rank 0 is below 1"),
        (Target(energy=1.5), None, "--energy 1.5 is not a share"),
        (Target(energy=0.5), 8.0, "--alpha needs the same rank"),
    ],
)
def test_impossible_targets_are_refused(
    base: Path, tuned: Path, tmp_path: Path, target: Target, alpha: float | None, message: str
) -> None:
    with pytest.raises(LoraError, match=message):
        extract(base, tuned, tmp_path / "out", target=target, alpha=alpha)
    assert not (tmp_path / "out").exists()


def test_an_existing_output_is_not_overwritten(base: Path, tuned: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    for force, message in (
        (False, "exists and is not empty"),
        (True, "so --force does not replace it"),
    ):
        with pytest.raises(LoraError, match=message):
            extract(base, tuned, out, target=Target(rank=1), force=force)
    with pytest.raises(LoraError, match="is an input"):
        extract(base, tuned, base, target=Target(rank=1), force=True)
    shutil.rmtree(out)
    extract(base, tuned, out, target=Target(rank=1))
    extract(base, tuned, out, target=Target(rank=2), force=True)
    assert json.loads((out / "adapter_config.json").read_text())["r"] == 2
    assert {p.name for p in tmp_path.iterdir()} == {"tuned", "out"}


#: The program, with a limit on the size of files.
LIMITED = """
import resource
import runpy
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
runpy.run_module("cli", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("command", ["extract", "merge"])
def test_a_full_disk_leaves_no_partial_output(
    checkpoint: Path, base: Path, tuned: Path, tmp_path: Path, command: str
) -> None:
    """A limit on the size of files acts like a full disk: a write is cut short."""
    out = tmp_path / "out"
    source = (
        ["--tuned", str(tuned)] if command == "extract" else ["--adapter", checkpoint / "actor"]
    )
    options = [] if command == "merge" else ["--rank", "16"]
    arguments = ["lora", command, "--base", base, *source, *options, "--out", out]
    program = (sys.executable, "-c", LIMITED)
    process = servers.forked(*map(str, arguments), environ={}, program=program)
    assert process.wait() == 1
    assert process.output.startswith("Error: ")
    assert "cannot be written (File too large); nothing was left behind." in process.output
    assert re.search(r"out/\w+\.safetensors: \S+\.weight cannot", process.output), process.output
    assert [p.name for p in tmp_path.iterdir()] == ["tuned"]
