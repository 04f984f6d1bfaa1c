"""Every kind of adapter: its role has PEFT's text and the others keep theirs, or it is refused.

The right text is always PEFT's: one adapter alone, on a base that was loaded for it, greedy.
"""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.config import BdLoraConfig, KasaConfig, LoraGAConfig, VeloraConfig
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from jobs.pipeline import Role, Sampling
from tests.adapters import change_config
from tests.conftest import find
from tests.integration.batches import SIZES
from worker import local_engine
from worker.checkpoints import loading
from worker.checkpoints.errors import CheckpointError
from worker.engine import role_models
from worker.engine.batching.engine import BatchingEngine
from worker.engine.batching.runner_setup import RunnerOptions
from worker.engine.interface import Engine, Request
from worker.engine.reference import ReferenceEngine
from worker.lora.adapter import SUPPORTED_METHODS
from worker.lora.extract import extract
from worker.lora.lowrank import Target

TASK: Any = {"task_type": "CAUSAL_LM"}
PROMPT = "gravity explains the field"
ATTENTION: Any = {"target_modules": ["q_proj", "v_proj"], **TASK}


def lora(**options: Any) -> Any:
    targets = ["q_proj", "v_proj", "down_proj"]
    return LoraConfig(**{"r": 4, "target_modules": targets, **TASK, **options})


def cut_ranks(config: Any) -> None:
    """Let an AdaLoRA of rank 6 keep four directions, as training does."""
    config.rank_pattern = {
        f"model.layers.{layer}.self_attn.{name}.lora_E": [i % 3 > 0 for i in range(6)]
        for layer in range(2)
        for name in ("q_proj", "v_proj")
    }


@dataclass(frozen=True)
class Kind:
    config: Callable[[], Any]
    #: Whether the batching engine serves it.
    batched: bool = False
    #: How it is saved.
    saving: Any = None
    #: Changes that training makes to its config.
    training: Callable[[Any], object] = lambda _: None


KINDS = {
    "plain": Kind(lora, batched=True),
    "gaussian": Kind(lambda: lora(init_lora_weights="gaussian"), batched=True),
    "eva": Kind(lambda: lora(init_lora_weights="eva", eva_config=peft.EvaConfig()), batched=True),
    "orthogonal": Kind(lambda: lora(init_lora_weights="orthogonal"), batched=True),
    "rslora": Kind(lambda: lora(use_rslora=True), batched=True),
    "another task": Kind(lambda: lora(task_type=None, lora_dropout=0.5), batched=True),
    "exclude_modules": Kind(lambda: lora(exclude_modules=["v_proj"]), batched=True),
    "layers_to_transform": Kind(lambda: lora(layers_to_transform=[1]), batched=True),
    "patterns": Kind(
        lambda: lora(rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 3}), batched=True
    ),
    "patterns as expressions": Kind(
        lambda: lora(
            rank_pattern={r"layers\.0\..*q_proj": 3, ".*v_proj": 5},
            alpha_pattern={r"^model\.layers\.1.*": 7},
        ),
        batched=True,
    ),
    "gaussian, in another case": Kind(lambda: lora(init_lora_weights="Gaussian"), batched=True),
    "a classifier's task": Kind(lambda: lora(task_type="SEQ_CLS")),
    "velora": Kind(lambda: lora(velora_config=VeloraConfig())),
    "kasa": Kind(lambda: lora(kasa_config=KasaConfig())),
    "lora-ga": Kind(lambda: lora(init_lora_weights="lora_ga", lora_ga_config=LoraGAConfig())),
    "bd-lora": Kind(
        lambda: lora(
            use_bdlora=BdLoraConfig(
                nblocks=2,
                target_modules_bd_a=["down_proj"],
                target_modules_bd_b=["q_proj", "v_proj"],
            )
        )
    ),
    "a module of several layers": Kind(
        lambda: lora(target_modules=["q_proj"], modules_to_save=["mlp"])
    ),
    "pissa": Kind(lambda: lora(init_lora_weights="pissa")),
    "olora": Kind(lambda: lora(init_lora_weights="olora")),
    "mica": Kind(lambda: lora(init_lora_weights="mica")),
    "dora": Kind(lambda: lora(use_dora=True)),
    "lora_bias": Kind(lambda: lora(lora_bias=True)),
    "bias all": Kind(lambda: lora(bias="all")),
    "bias lora_only": Kind(lambda: lora(bias="lora_only")),
    "alora": Kind(lambda: lora(alora_invocation_tokens=[9, 10])),
    "target_parameters": Kind(
        lambda: lora(target_modules=[], target_parameters=["mlp.up_proj.weight"])
    ),
    "head": Kind(lambda: lora(modules_to_save=["lm_head"])),
    "embeddings": Kind(lambda: lora(modules_to_save=["embed_tokens"])),
    "tied head": Kind(lambda: lora(modules_to_save=["embed_tokens"], ensure_weight_tying=True)),
    "norm": Kind(lambda: lora(modules_to_save=["norm"])),
    "tokens": Kind(lambda: lora(trainable_token_indices=[5, 6, 7])),
    "lora on the head": Kind(lambda: lora(target_modules=["q_proj", "lm_head"])),
    "lora on the head, factors": Kind(
        lambda: lora(target_modules=["q_proj", "lm_head"]),
        batched=True,
        saving={"save_embedding_layers": False},
    ),
    "lora on embeddings": Kind(lambda: lora(target_modules=["q_proj", "embed_tokens"])),
    "lora on embeddings, factors": Kind(
        lambda: lora(target_modules=["q_proj", "embed_tokens"]),
        saving={"save_embedding_layers": False},
    ),
    "whole embeddings": Kind(lora, saving={"save_embedding_layers": True}),
    "ADALORA": Kind(lambda: peft.AdaLoraConfig(total_step=10, **ATTENTION)),
    "ADALORA, cut": Kind(
        lambda: peft.AdaLoraConfig(init_r=6, total_step=10, **ATTENTION), training=cut_ranks
    ),
    "BOFT": Kind(lambda: peft.BOFTConfig(boft_block_size=4, **ATTENTION)),
    "C3A": Kind(lambda: peft.C3AConfig(block_size=8, **ATTENTION)),
    "DELORA": Kind(lambda: peft.DeloraConfig(**ATTENTION)),
    "FOURIERFT": Kind(lambda: peft.FourierFTConfig(n_frequency=20, **ATTENTION)),
    "GRALORA": Kind(lambda: peft.GraloraConfig(r=4, gralora_k=2, **ATTENTION)),
    "HRA": Kind(lambda: peft.HRAConfig(**ATTENTION)),
    "IA3": Kind(lambda: peft.IA3Config(feedforward_modules=[], **ATTENTION)),
    "LN_TUNING": Kind(lambda: peft.LNTuningConfig(target_modules=["input_layernorm"], **TASK)),
    "LOHA": Kind(lambda: peft.LoHaConfig(**ATTENTION)),
    "LOKR": Kind(lambda: peft.LoKrConfig(**ATTENTION)),
    "MISS": Kind(lambda: peft.MissConfig(r=4, **ATTENTION)),
    "OFT": Kind(lambda: peft.OFTConfig(oft_block_size=4, r=0, **ATTENTION)),
    "RANDLORA": Kind(lambda: peft.RandLoraConfig(r=4, target_modules=["q_proj"], **TASK)),
    "ROAD": Kind(lambda: peft.RoadConfig(group_size=8, **ATTENTION)),
    "SHIRA": Kind(lambda: peft.ShiraConfig(r=2, **ATTENTION)),
    "TRAINABLE_TOKENS": Kind(lambda: peft.TrainableTokensConfig(token_indices=[5, 6], **TASK)),
    "VBLORA": Kind(lambda: peft.VBLoRAConfig(num_vectors=8, vector_length=4, **ATTENTION)),
    "VBLORA, top k": Kind(
        lambda: peft.VBLoRAConfig(
            num_vectors=8, vector_length=4, save_only_topk_weights=True, **ATTENTION
        )
    ),
    "VERA": Kind(lambda: peft.VeraConfig(r=8, target_modules=["q_proj"], **TASK)),
    "WAVEFT": Kind(lambda: peft.WaveFTConfig(n_frequency=20, **ATTENTION)),
}
#: Whether the base ties the head to the embeddings, and kinds. Kinds without tied modules need one base.
CASES = [(False, name) for name in KINDS] + [
    (True, name) for name in KINDS if "head" in name or "embeddings" in name or name == "tokens"
]


def base_of(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)


def save(folder: Path, role: Role, kind: Kind, seed: int) -> None:
    """Write an adapter of a kind with random weights."""
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns about some
        model: Any = get_peft_model(base_of(folder), kind.config())
        with torch.no_grad():
            for weight in model.parameters():
                if weight.requires_grad:
                    weight += 0.2 * torch.randn_like(weight)
            if (kind.saving or {}).get("save_embedding_layers"):
                weight = model.get_input_embeddings().weight
                weight += 0.3 * torch.randn_like(weight)
        model.peft_config["default"].base_model_name_or_path = str(folder / "base")
        kind.training(model.peft_config["default"])
        model.save_pretrained(str(folder / role), **(kind.saving or {}))


def peft_text(folder: Path, role: Role, tokenizer: Any) -> str:
    """Return PEFT's text."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model: Any = PeftModel.from_pretrained(base_of(folder), str(folder / role)).eval()
        ids = torch.tensor([tokenizer.encode(PROMPT)])
        limits: Any = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 2}
        output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **limits)
    return str(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))


@pytest.fixture(scope="module")
def make_plain(
    tokenizer: Any, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[bool], tuple[Path, dict[Role, str]]]:
    """Return a cached function that makes a base, tied or not, with plain adapters and PEFT's texts."""

    @cache
    def make(tied: bool) -> tuple[Path, dict[Role, str]]:
        folder = tmp_path_factory.mktemp("kinds")
        torch.manual_seed(0)
        model: Any = Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=tied))
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "norm" not in name:
                    weight.normal_(std=0.3)
        model.save_pretrained(folder / "base")
        tokenizer.save_pretrained(folder / "base")
        for seed, role in enumerate(Role):
            save(folder, role, KINDS["plain"], seed)
        return folder, {role: peft_text(folder, role, tokenizer) for role in Role}

    return make


@pytest.fixture
def tied(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def plain(tied: bool, make_plain: Callable[[bool], tuple[Path, dict[Role, str]]]) -> Path:
    """A base that has biases, and a plain adapter for each role."""
    return make_plain(tied)[0]


@pytest.fixture
def texts(
    tied: bool, make_plain: Callable[[bool], tuple[Path, dict[Role, str]]]
) -> dict[Role, str]:
    """PEFT's texts of the plain adapters."""
    return make_plain(tied)[1]


def beside(plain: Path, folder: Path) -> Path:
    """Return a folder with the same base and adapters, except for the critic's."""
    for name in ("base", Role.ACTOR, Role.REGENERATOR):
        (folder / name).symlink_to(plain / name)
    return folder


def served(folder: Path, tokenizer: Any, *, batched: bool) -> dict[Role, str]:
    """Return each role's text. The actor's is that of a second request, after the others'."""
    checkpoints = find(folder)
    assert bool(loading.batching_unsupported_reasons(checkpoints)) is not batched
    models = loading.load(checkpoints).models
    engine: Engine
    if batched:
        engine = BatchingEngine.from_models(
            models, tokenizer, RunnerOptions(max_model_len=64, max_num_seqs=3)
        )
    else:
        engine = ReferenceEngine(models, tokenizer, max_model_len=64)
    sampling = Sampling(temperature=0, max_output_tokens=8)
    requests = [Request(role, PROMPT, sampling) for role in (*Role, Role.ACTOR)]
    generations = [engine.submit(request) for request in requests]
    texts = {
        request.role: g.result().text for request, g in zip(requests, generations, strict=True)
    }
    engine.close()
    return texts


@pytest.mark.parametrize(("tied", "name"), CASES, indirect=["tied"])
def test_each_role_has_pefts_text(
    name: str, plain: Path, texts: dict[Role, str], tokenizer: Any, tmp_path: Path
) -> None:
    kind = KINDS[name]
    folder = beside(plain, tmp_path)
    save(folder, Role.CRITIC, kind, seed=7)
    expected = {**texts, Role.CRITIC: peft_text(folder, Role.CRITIC, tokenizer)}
    assert served(folder, tokenizer, batched=kind.batched) == expected


@pytest.mark.parametrize("tied", [False], indirect=True)
@pytest.mark.parametrize("name", ["plain", "pissa", "bias all", "embeddings"])
def test_a_pytorch_without_lazy_clones_works(
    name: str,
    plain: Path,
    texts: dict[Role, str],
    tokenizer: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(role_models, "_CLONE", None)
    monkeypatch.setattr(role_models, "_ADDRESS", None)
    folder = beside(plain, tmp_path)
    save(folder, Role.CRITIC, KINDS[name], seed=7)
    expected = {**texts, Role.CRITIC: peft_text(folder, Role.CRITIC, tokenizer)}
    assert served(folder, tokenizer, batched=KINDS[name].batched) == expected


@pytest.mark.parametrize("tied", [False], indirect=True)
@pytest.mark.parametrize("lazy_clones", [True, False])
def test_models_share_the_tensors_that_their_adapters_do_not_change(
    plain: Path, monkeypatch: pytest.MonkeyPatch, lazy_clones: bool
) -> None:
    """A 7B model would take 14 GB for each role."""
    if not lazy_clones:
        monkeypatch.setattr(role_models, "_CLONE", None)
        monkeypatch.setattr(role_models, "_ADDRESS", None)
    first, *others = (
        {
            name: tensor.data_ptr()
            for name, tensor in model.get_base_model().state_dict().items()
            if "lora_" not in name
        }
        for model in loading.load(find(plain)).models.values()
    )
    assert len(first) > 10
    assert others == [first, first]


def rename(weights: dict[str, Any], name: str) -> dict[str, Any]:
    """Rename tensors as in a full model's state, with the adapter's name."""
    return {
        re.sub(r"(lora_[AB])\.weight", rf"\1.{name}.weight", key): weight
        for key, weight in weights.items()
    }


def without(weights: dict[str, Any], end: str) -> dict[str, Any]:
    """Leave out the first tensor whose name ends so."""
    lost = next(key for key in weights if key.endswith(end))
    return {key: weight for key, weight in weights.items() if key != lost}


@pytest.mark.parametrize("tied", [False], indirect=True)
def test_a_plain_adapter_is_copied_to_the_device_once(
    plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a 7B model are hundreds of megabytes each."""
    monkeypatch.setattr(peft, "set_peft_model_state_dict", lambda *_, **__: pytest.fail("twice"))
    loading.load(find(plain))


@pytest.mark.parametrize("tied", [False], indirect=True)
@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("plain", lambda w: rename(w, "default"), "has one part too many, default, which looks"),
        # The name that the adapter has here: PEFT alone would ignore it.
        ("plain", lambda w: rename(w, "critic"), "has one part too many, critic, which looks"),
        ("bias all", lambda w: without(w, "k_proj.bias"), "it has no base_model.model.model."),
        ("SHIRA", lambda w: without(w, "shira_indices"), "shira_indices, which the base needs"),
        (
            "plain",
            lambda w: {k: t[:0] if "_A" in k else t[:, :0].contiguous() for k, t in w.items()},
            "has rank 0, so its factors are empty",
        ),
    ],
)
def test_an_incomplete_adapter_is_refused(
    name: str,
    change: Callable[[dict[str, Any]], dict[str, Any]],
    message: str,
    plain: Path,
    tmp_path: Path,
) -> None:
    folder = beside(plain, tmp_path)
    save(folder, Role.CRITIC, KINDS[name], seed=7)
    file = folder / Role.CRITIC / "adapter_model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError) as excinfo:
        loading.load(find(folder))
    sentence = str(excinfo.value)
    assert sentence.startswith(f"The critic adapter {folder / 'critic'} cannot be loaded")
    assert message in sentence


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank_pattern": {"(": 4}}, "has '(' in rank_pattern, which is not a regular expression"),
        ({"alpha_pattern": {"*q": 4}}, "has '*q' in alpha_pattern, which is not a regular"),
        ({"target_modules": "(q"}, "has '(q' in target_modules, which is not a regular"),
        ({"rank_pattern": [1]}, "has rank_pattern=[1], which is not an object"),
        ({"alpha_pattern": None}, "has alpha_pattern=None, which is not an object"),
        ({"peft_type": ["LORA"]}, "has peft_type=['LORA'], which is not the name of a method"),
        ({"lora_alpha": float("nan")}, "has the lora_alpha nan for"),
        ({"r": "4"}, "has rank 4, but adapter_config.json says '4'"),
        ({"layers_pattern": ["("], "layers_to_transform": [0, 1]}, "missing ), unterminated"),
    ],
)
def test_a_config_with_an_invalid_value_is_one_sentence(
    changes: dict[str, Any], message: str, checkpoint: Path, tmp_path: Path
) -> None:
    folder = beside(checkpoint, tmp_path)
    shutil.copytree(checkpoint / Role.CRITIC, folder / Role.CRITIC)
    change_config(folder / Role.CRITIC, **changes)
    with pytest.raises(CheckpointError) as excinfo:
        loading.load(find(folder))
    sentence = str(excinfo.value)
    assert sentence.startswith(f"The critic adapter {folder / 'critic'} cannot be loaded")
    assert message in sentence


def test_every_supported_method_is_tested() -> None:
    assert SUPPORTED_METHODS - KINDS.keys() == {"LORA"}


@pytest.mark.parametrize(
    ("tied", "keep"),
    [(False, "embeddings"), (False, "head"), (True, "embeddings")],
    indirect=["tied"],
)
def test_kept_modules_are_served(
    keep: str, plain: Path, texts: dict[Role, str], tokenizer: Any, tmp_path: Path
) -> None:
    folder = beside(plain, tmp_path)
    shutil.copytree(plain / "base", tmp_path / "tuned")
    weights = load_file(tmp_path / "tuned" / "model.safetensors")
    torch.manual_seed(5)
    tuned = {k: w if w.ndim < 2 else w + 0.2 * torch.randn_like(w) for k, w in weights.items()}
    save_file(tuned, tmp_path / "tuned" / "model.safetensors", metadata={"format": "pt"})
    out = folder / Role.CRITIC
    extract(plain / "base", tmp_path / "tuned", out, target=Target(rank=4), keep=[keep])
    expected = {**texts, Role.CRITIC: peft_text(folder, Role.CRITIC, tokenizer)}
    assert served(folder, tokenizer, batched=False) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_lora_weights": "pissa_niter_4"}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "corda"}, "(corda) changes the base by data"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "it repeats layers of the base"),
        ({"peft_type": "PROMPT_TUNING"}, "virtual tokens would use context"),
        ({"peft_type": "XLORA"}, "it is of the type XLORA, and HelixQ serves ADALORA, BOFT,"),
        ({"peft_type": "OF_TOMORROW"}, "it is of the type OF_TOMORROW, and HelixQ serves"),
    ],
)
def test_unsupported_adapters_are_refused(
    changes: dict[str, Any], message: str, checkpoint: Path, tmp_path: Path
) -> None:
    folder = beside(checkpoint, tmp_path)
    shutil.copytree(checkpoint / Role.CRITIC, folder / Role.CRITIC)
    change_config(folder / Role.CRITIC, **changes)
    for refused in (loading.batching_unsupported_reasons, loading.load):
        with pytest.raises(CheckpointError) as excinfo:
            refused(find(folder))
        assert str(excinfo.value).startswith(
            f"The critic adapter {folder / 'critic'} cannot be served"
        )
        assert message in str(excinfo.value)


@pytest.mark.parametrize(
    ("tied", "name", "message"),
    [
        (
            False,
            "pissa",
            "loading it changes model.layers.0.self_attn.q_proj.weight of the base",
        ),
        (False, "dora", "the critic adapter is not plain LoRA in model.layers.0.self_attn.q_proj"),
        (False, "head", "the critic adapter replaces lm_head"),
    ],
    indirect=["tied"],
)
def test_an_unknown_kind_is_refused(name: str, message: str, plain: Path, tmp_path: Path) -> None:
    """As if the batching engine accepted it."""
    folder = beside(plain, tmp_path)
    save(folder, Role.CRITIC, KINDS[name], seed=7)
    with pytest.raises(CheckpointError, match=re.escape(message)):
        local_engine.load_engine(find(folder), 2, [])
