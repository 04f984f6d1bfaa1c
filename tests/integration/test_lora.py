"""Adapters as files: extracted from two models, loaded by PEFT, merged, looked into."""

from __future__ import annotations

import json
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from click.testing import CliRunner
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

from cli.main import main
from tests.random_weights import build
from worker.checkpoints import digests
from worker.lora import LoraError
from worker.lora.adapter import open_adapter
from worker.lora.extract import extract
from worker.lora.inspect import convert, inspect
from worker.lora.lowrank import Target
from worker.lora.merge import merge

RANK = 4
IDS = torch.tensor([[1, 20, 300, 40, 500, 60, 7, 80]])
DOWN = "model.layers.1.mlp.down_proj.weight"
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def is_linear(name: str) -> bool:
    return name.endswith(".weight") and name.split(".")[-2] in LINEAR


def fine_tune(base: Path, folder: Path, *, noise: float = 0.0, rest: float = 0.0) -> Path:
    """Copy a model, with differences of rank `RANK` plus noise in its linear layers.

    Args:
        base: the model.
        folder: where the fine-tune goes.
        noise: the size of what no low rank reproduces.
        rest: the size of the differences in embeddings, head and norms.
    """
    shutil.copytree(base, folder)
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    weights = load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        if is_linear(name):
            m, n = weight.shape
            difference = normal(m, RANK) @ normal(RANK, n) * 0.02 + noise * normal(m, n)
        elif weight.ndim == 2 or "norm" in name:
            difference = rest * normal(*weight.shape)
        else:
            continue
        weights[name] = weight + difference.to(weight)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def logits(folder: Path, adapter: Path | None = None) -> Tensor:
    """Return what a model says to some tokens, (1, tokens, vocabulary), float32."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter))
    with torch.no_grad():
        found: Tensor = model(input_ids=IDS).logits
    return found


@pytest.fixture
def base(checkpoint: Path) -> Path:
    return checkpoint / "base"


@pytest.fixture
def tuned(base: Path, tmp_path: Path) -> Path:
    return fine_tune(base, tmp_path / "tuned")


# --- extract --------------------------------------------------------------------------


def test_an_adapter_reproduces_the_fine_tune_it_came_from(
    base: Path, tuned: Path, tmp_path: Path
) -> None:
    report = extract(base, tuned, tmp_path / "out", target=Target(rank=RANK))
    assert report.error < 1e-5
    torch.testing.assert_close(logits(base, tmp_path / "out"), logits(tuned), rtol=1e-4, atol=1e-4)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (RANK, RANK)
    assert config["target_modules"] == sorted(LINEAR)


def test_what_is_reported_is_what_was_saved(base: Path, tmp_path: Path) -> None:
    tuned = fine_tune(base, tmp_path / "tuned", noise=0.01)
    report = extract(base, tuned, tmp_path / "out", target=Target(rank=RANK), dtype=torch.float16)
    ours, theirs = (load_file(f / "model.safetensors") for f in (base, tuned))
    adapter = open_adapter(tmp_path / "out")
    lost = total = 0.0
    for layer in report.layers:
        d = (theirs[layer.name] - ours[layer.name]).double()
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


def test_energy_picks_the_least_rank_of_each_layer(base: Path, tmp_path: Path) -> None:
    tuned = fine_tune(base, tmp_path / "tuned", noise=0.03)
    report = extract(base, tuned, tmp_path / "out", target=Target(energy=0.9))
    ours, theirs = (load_file(f / "model.safetensors") for f in (base, tuned))
    for layer in report.layers:
        squares = torch.linalg.svdvals((theirs[layer.name] - ours[layer.name]).double()).square()
        kept = squares.cumsum(0) / squares.sum()
        assert layer.rank == int((kept < 0.9).sum()) + 1
        assert layer.kept >= 0.9 - 1e-4
    assert len({layer.rank for layer in report.layers}) > 1
    model: Any = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base), str(tmp_path / "out")
    )
    scalings = {
        module.scaling["default"] for module in model.modules() if hasattr(module, "lora_A")
    }
    assert scalings == {1.0}, "whatever the rank, the difference is applied once"


def test_what_is_kept_whole_completes_the_fine_tune(base: Path, tmp_path: Path) -> None:
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
    one, two = (load_file(tmp_path / x / "adapter_model.safetensors") for x in ("one", "two"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


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
    # PEFT says that it does not know how the copy of a tied module should be merged.
    with pytest.warns(UserWarning, match="tie") if architecture == "qwen" else _nothing():
        found = logits(tmp_path / "base", tmp_path / "out")
    torch.testing.assert_close(found, logits(tuned), rtol=1e-4, atol=1e-4)
    merge(tmp_path / "base", tmp_path / "out", tmp_path / "merged")
    torch.testing.assert_close(logits(tmp_path / "merged"), found, rtol=1e-4, atol=1e-4)


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
    ("damage", "says"),
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
def test_models_that_do_not_go_together_leave_nothing(
    base: Path, tuned: Path, tmp_path: Path, damage: Callable[[Path], object], says: str
) -> None:
    damage(tuned)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(LoraError, match=says) as caught:
        extract(base, tuned, tmp_path / "out", target=Target(rank=RANK))
    assert str(tuned) in str(caught.value), "the sentence names the file"
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("target", "alpha", "says"),
    [
        (Target(rank=33), None, "the rank 33 is too large for .*_proj.weight, which is 32 x 64"),
        (Target(rank=0), None, "the rank 0 is below 1"),
        (Target(energy=1.5), None, "--energy 1.5 is not a share"),
        (Target(energy=0.5), 8.0, "--alpha needs the same rank"),
    ],
)
def test_targets_that_cannot_be_reached(
    base: Path, tuned: Path, tmp_path: Path, target: Target, alpha: float | None, says: str
) -> None:
    with pytest.raises(LoraError, match=says):
        extract(base, tuned, tmp_path / "out", target=target, alpha=alpha)
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_there_is_spared(base: Path, tuned: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    for force, says in (
        (False, "exists and is not empty"),
        (True, "so --force does not replace it"),
    ):
        with pytest.raises(LoraError, match=says):
            extract(base, tuned, out, target=Target(rank=1), force=force)
    with pytest.raises(LoraError, match="is an input"):
        extract(base, tuned, base, target=Target(rank=1), force=True)
    shutil.rmtree(out)
    extract(base, tuned, out, target=Target(rank=1))
    extract(base, tuned, out, target=Target(rank=2), force=True)
    assert json.loads((out / "adapter_config.json").read_text())["r"] == 2
    assert {p.name for p in tmp_path.iterdir()} == {"tuned", "out"}


@pytest.mark.parametrize("command", ["extract", "merge"])
def test_a_disk_that_is_full_leaves_nothing(
    checkpoint: Path, base: Path, tuned: Path, tmp_path: Path, command: str
) -> None:
    """A limit on the size of files is a full disk to the program: a write comes back short."""
    out = tmp_path / "out"
    source = (
        ["--tuned", str(tuned)] if command == "extract" else ["--adapter", checkpoint / "actor"]
    )
    options = [] if command == "merge" else ["--rank", "16"]
    arguments = ["--base", base, *source, *options, "--out", out]
    found = subprocess.run(
        [sys.executable, "-m", "cli", "lora", command, *arguments],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 1
    assert found.stderr.startswith("Error: ")
    assert "cannot be written (File too large); nothing was left behind." in found.stderr
    assert re.search(r"out/\w+\.safetensors: \S+\.weight cannot", found.stderr), found.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["tuned"]


# --- merge ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
def test_a_merged_model_says_what_base_and_adapter_say(
    checkpoint: Path, base: Path, tmp_path: Path, dtype: torch.dtype | None
) -> None:
    merged = merge(base, checkpoint / "critic", tmp_path / "out", dtype=dtype)
    assert (merged.layers, merged.replaced) == (14, 0)
    wanted = logits(base, checkpoint / "critic")
    effect = float((logits(base) - wanted).abs().max())
    error = float((logits(tmp_path / "out") - wanted).abs().max())
    # Rounding every weight to half precision is a change of its own.
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
    ("change", "says"),
    [
        ({"use_dora": True}, "is incomplete: it has no .*lora_magnitude_vector"),
        ({"alora_invocation_tokens": [1]}, "it is an aLoRA"),
        ({"peft_type": "LOHA"}, "it is not a LoRA but of the type LOHA"),
        ({"init_lora_weights": "pissa"}, "its initialization .pissa. changes the base's weights"),
        ({"r": 8}, "has rank 4, but adapter_config.json says 8"),
    ],
)
def test_adapters_that_cannot_be_merged(
    checkpoint: Path, base: Path, tmp_path: Path, change: dict[str, object], says: str
) -> None:
    adapter = Path(shutil.copytree(checkpoint / "actor", tmp_path / "adapter"))
    config = adapter / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
    with pytest.raises(LoraError, match=says):
        merge(base, adapter, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.parametrize(
    ("shape", "says"), [({"layers": 3}, "has no model.layers.2."), ({"hidden": 96}, "the shape")]
)
def test_an_adapter_of_another_base_is_not_merged(
    base: Path, tmp_path: Path, shape: dict[str, int], says: str
) -> None:
    build(tmp_path / "other", **shape)
    with pytest.raises(LoraError, match=f"is for another base: .*{says}"):
        merge(base, tmp_path / "other" / "actor", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- inspect --------------------------------------------------------------------------


def test_an_adapter_is_described(checkpoint: Path) -> None:
    found = inspect(checkpoint / "critic")
    assert (found.ranks, found.alphas, found.scalings) == ([4], [8], [2])
    assert found.targets == sorted(LINEAR)
    assert (len(found.layers), found.unsupported_reasons, found.dtypes) == (14, [], ["F32"])
    adapter = open_adapter(checkpoint / "critic")
    for layer in found.layers:
        b, a = adapter.get(layer.name)
        assert layer.norm == pytest.approx(float((2 * b @ a).norm()), rel=1e-4)
    tensors = load_file(checkpoint / "critic" / "adapter_model.safetensors")
    assert found.parameters == sum(t.numel() for t in tensors.values())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"use_dora": True}, "it is a DoRA"),
        ({"modules_to_save": ["lm_head"]}, "it replaces whole modules (lm_head)"),
        ({"bias": "lora_only"}, "it has trained biases"),
    ],
)
def test_what_the_engine_refuses_is_said(
    checkpoint: Path, tmp_path: Path, change: dict[str, object], reason: str
) -> None:
    adapter = Path(shutil.copytree(checkpoint / "actor", tmp_path / "adapter"))
    config = adapter / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
    [said] = inspect(adapter).unsupported_reasons
    assert said.startswith(reason)


@pytest.fixture
def pickled(checkpoint: Path, tmp_path: Path) -> Path:
    """An adapter as HelixNet-LMoE's were uploaded: bf16, pickled, with alpha twice the rank."""
    adapter = Path(shutil.copytree(checkpoint / "actor", tmp_path / "pickled"))
    file = adapter / "adapter_model.safetensors"
    torch.save({n: t.bfloat16() for n, t in load_file(file).items()}, adapter / "adapter_model.bin")
    file.unlink()
    return adapter


def test_a_pickle_is_converted_once_bit_for_bit(pickled: Path) -> None:
    assert inspect(pickled).file == "adapter_model.bin"
    convert(pickled)
    one = torch.load(pickled / "adapter_model.bin", weights_only=True)
    two = load_file(pickled / "adapter_model.safetensors")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[n], two[n]) and one[n].dtype == two[n].dtype for n in one)
    assert inspect(pickled).dtypes == ["BF16"]
    assert set(peft.load_peft_weights(str(pickled), device="cpu")) == set(one)
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


# --- the commands ---------------------------------------------------------------------


def run(*arguments: object, status: int = 0) -> Any:
    found = CliRunner().invoke(main, ["lora", *map(str, arguments)])
    assert found.exit_code == status, found.output
    return found


def test_the_commands_print_tables_and_json(base: Path, tuned: Path, tmp_path: Path) -> None:
    out, models = tmp_path / "out", ("--base", base, "--tuned", tuned)
    table = run("extract", *models, "--out", out, "--rank", RANK).output
    assert f"{DOWN.removesuffix('.weight')} " in table
    assert "\ntotal " in table
    found = json.loads(
        run("extract", *models, "--out", out, "--rank", 4, "--force", "--json").stdout
    )
    assert len(found["layers"]) == 14
    assert found["total"]["kept"] == pytest.approx(1, abs=1e-6)

    merged = json.loads(
        run("merge", "--base", base, "--adapter", out, "--out", tmp_path / "m", "--json").stdout
    )
    assert merged["layers"] == 14

    described = json.loads(run("inspect", out, "--json").stdout)
    assert described["digest"] == f"sha256:{digests.digest(out)}"
    assert (described["scalings"], described["unsupported_reasons"]) == ([1.0], [])
    lines = run("inspect", out).output
    assert "scaling     1\n" in lines
    assert "batching    yes\n" in lines


def test_the_cards_alpha_is_possible_and_warned_about(
    base: Path, tuned: Path, tmp_path: Path
) -> None:
    models = ("--base", base, "--tuned", tuned, "--out", tmp_path / "out")
    found = run("extract", *models, "--rank", 4, "--alpha", 8)
    assert "Warning: with --alpha 8 and rank 4, the adapter will apply 2 times" in found.stderr
    assert inspect(tmp_path / "out").scalings == [2.0]


def test_a_pickle_is_converted_by_inspect(pickled: Path) -> None:
    assert "file        adapter_model.safetensors" in run("inspect", pickled, "--convert").output


def test_bad_input_is_one_sentence(base: Path, tuned: Path, tmp_path: Path) -> None:
    models = ("--base", base, "--tuned", tuned, "--out", tmp_path / "out")
    said = run("extract", *models, "--rank", 99, status=1).stderr
    assert said.startswith("Error: the rank 99 is too large for model.layers.0.self_attn.k_proj")
    assert said.count("\n") == 1
    for arguments, sentence in (
        (("inspect", tmp_path), "there is no adapter_config.json in"),
        (("inspect", "/no/such/folder"), "there is no folder /no/such/folder"),
        (
            ("extract", *models, "--keep", "all", "--rank", 4),
            "not one of embeddings, head and norms",
        ),
    ):
        status = 2 if "--keep" in arguments else 1
        assert sentence in run(*arguments, status=status).stderr
    if not torch.cuda.is_available():
        said = run("extract", *models, "--device", "cuda", status=1).stderr
        assert "PyTorch sees no CUDA device here" in said
