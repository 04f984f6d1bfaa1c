"""Loading: how a checkpoint is described, what settings change, and what is warned of."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from jobs.pipeline import Role
from jobs.settings import Settings
from tests.adapters import change_config
from tests.integration.checkpoints import configure, refusal, settings_for
from worker.checkpoints import discovery, loading
from worker.checkpoints.digests import Digests
from worker.checkpoints.discovery import find_checkpoints
from worker.checkpoints.errors import CheckpointError
from worker.local_engine import make_engine
from worker.lora.adapter import mismatched_base


def test_a_good_checkpoint_is_described(copy: Path) -> None:
    checkpoints = find_checkpoints(settings_for(copy))
    assert set(loading.load(checkpoints).models) == set(Role)
    description = checkpoints.describe("reference")
    digests = {
        description["base"]["digest"],
        *(a["digest"] for a in description["adapters"].values()),
    }
    assert len(digests) == 4
    assert all(digest.startswith("sha256:") for digest in digests)
    assert description["dtype"] == "float32"
    assert {
        "helixq",
        "python",
        "torch",
        "transformers",
        "peft",
        "tokenizers",
    } <= set(description["versions"])
    assert "revision" not in description["base"], "a folder is no commit"


def test_checkpoints_of_the_hub_are_described_with_their_commits(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the hub's cache, as a download leaves it: by a tag, by the default branch, and by the commit."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    commits = {"base": "b" * 40, "actor": "a" * 40, "critic": "c" * 40}
    for name, commit in commits.items():
        repository = tmp_path / f"models--team--{name}"
        shutil.copytree(checkpoint / name, repository / "snapshots" / commit)
        (repository / "refs").mkdir()
        for reference in ("v1.2", "main"):
            (repository / "refs" / reference).write_text(commit)
    configured = settings_for(
        checkpoint,
        HELIXQ_DATA_DIR=str(tmp_path / "data"),
        HELIXQ_BASE_MODEL="team/base@v1.2",
        HELIXQ_ADAPTERS=f"actor=team/actor,critic=team/critic@{commits['critic']},"
        f"regenerator={checkpoint / 'regenerator'}",
    )
    description = find_checkpoints(configured).describe("batching")
    adapters = description["adapters"]
    assert description["base"]["name"] == "team/base@v1.2"
    assert description["base"]["revision"] == commits["base"]
    assert [adapters[role].get("revision") for role in Role] == [
        commits["actor"],
        commits["critic"],
        None,
    ]
    of_folder = find_checkpoints(settings_for(checkpoint)).describe("batching")
    assert description["base"]["digest"] == of_folder["base"]["digest"]


def test_cuda_and_its_driver_are_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.version.cuda", "13.0")
    file = tmp_path / "version"
    assert discovery.cuda_versions(file)["cuda"] == "13.0"
    assert "nvidia_driver" not in discovery.cuda_versions(file)
    file.write_text("580.82.07\n")
    assert discovery.cuda_versions(file)["nvidia_driver"] == "580.82.07"


def test_a_digest_depends_on_contents_not_paths(copy: Path, checkpoint: Path) -> None:
    first = find_checkpoints(settings_for(copy))
    elsewhere = settings_for(checkpoint, HELIXQ_DATA_DIR=str(copy / "other"))
    assert find_checkpoints(elsewhere).base.digest == first.base.digest
    weights = load_file(copy / "base" / "model.safetensors")
    weights["lm_head.weight"][0, 0] += 1
    save_file(weights, copy / "base" / "model.safetensors", metadata={"format": "pt"})
    assert find_checkpoints(settings_for(copy)).base.digest != first.base.digest


def test_dtype_and_context_are_settings(copy: Path) -> None:
    checkpoints = find_checkpoints(
        settings_for(copy, HELIXQ_DTYPE="bfloat16", HELIXQ_MAX_CONTEXT="128")
    )
    assert (checkpoints.dtype, checkpoints.context) == (torch.bfloat16, 128)
    models = loading.load(checkpoints).models.values()
    assert {p.dtype for model in models for p in model.parameters()} == {torch.bfloat16}, (
        "adapters included"
    )
    assert "takes 4096 tokens at most" in refusal(settings_for(copy, HELIXQ_MAX_CONTEXT="5000"))


def logged(caplog: pytest.LogCaptureFixture, configured: Settings) -> list[str]:
    """Load a checkpoint; return the warnings in the log."""
    with caplog.at_level("WARNING", logger="worker"):
        loading.load(find_checkpoints(configured))
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_an_adapter_that_names_another_base_is_served_with_a_warning(
    copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert logged(caplog, settings_for(copy)) == []
    change_config(copy / "critic", base_model_name_or_path="somebody/another-7B", revision="v2")
    (warning,) = logged(caplog, settings_for(copy))
    assert f"the critic adapter {copy / 'critic'}" in warning
    assert "the base model somebody/another-7B@v2" in warning
    assert str(copy / "base") in warning


@pytest.mark.parametrize(
    ("adapter_config", "base", "named"),
    [
        ({"base_model_name_or_path": "org/model"}, "org/model", None),
        ({"base_model_name_or_path": "org/model"}, "/models/model", None),
        ({"base_model_name_or_path": "org/model", "revision": "main"}, "org/model", None),
        ({"base_model_name_or_path": "org/model", "revision": "v1"}, "org/model@v1", None),
        ({"base_model_name_or_path": "org/model", "revision": "v1"}, "org/model", "org/model@v1"),
        (
            {"base_model_name_or_path": "org/model", "revision": "v1"},
            "org/model@v2",
            "org/model@v1",
        ),
        ({"base_model_name_or_path": "org/model"}, "org/model-instruct", "org/model"),
        ({"base_model_name_or_path": None}, "org/model", None),
    ],
)
def test_another_base_or_revision_is_detected(
    tmp_path: Path, adapter_config: dict[str, str], base: str, named: str | None
) -> None:
    assert mismatched_base(adapter_config, base, tmp_path) == named


def test_an_option_that_this_peft_does_not_know_is_named_in_a_warning(
    copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    change_config(copy / "actor", use_tomorrows_method=True)
    (warning,) = logged(caplog, settings_for(copy))
    assert "the actor adapter" in warning
    assert "use_tomorrows_method" in warning


def test_the_engine_can_be_chosen(copy: Path) -> None:
    """`auto` is tested everywhere: `batching` where it can serve the adapters, and `reference` otherwise."""
    chosen = settings_for(copy, HELIXQ_ENGINE="reference")
    engine, runtime = make_engine(chosen, Digests(), lambda _: None)
    engine.close()
    assert (engine.name, runtime.description["engine"]) == ("reference", "reference")
    change_config(copy / "critic", use_dora=True)
    with pytest.raises(
        CheckpointError, match=r"HELIXQ_ENGINE=batching cannot be used, because of .*critic"
    ):
        make_engine(settings_for(copy, HELIXQ_ENGINE="batching"), Digests(), lambda _: None)


def test_a_window_of_one_token_is_left_to_transformers(copy: Path) -> None:
    """In transformers, it attends to more tokens while decoding than while prefilling."""
    configure(sliding_window=1)(copy / "base")
    reasons = loading.batching_unsupported_reasons(find_checkpoints(settings_for(copy)))
    assert len(reasons) == 1
    assert "window of 1 token" in reasons[0]


def test_a_tokenizer_in_the_folder_of_an_adapter(
    copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As trainers leave it: the base's own, or one with the tokens of a chat format."""
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(copy / "base" / file, copy / "critic" / file)
    assert logged(caplog, settings_for(copy)) == []
    tokenizer = AutoTokenizer.from_pretrained(copy / "critic")
    tokenizer.add_special_tokens(
        {"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]}
    )
    tokenizer.save_pretrained(copy / "critic")
    (warning,) = logged(caplog, settings_for(copy))
    assert f"the critic adapter {copy / 'critic'} has a tokenizer of its own" in warning
    assert "it has the tokens '<|im_end|>', '<|im_start|>', which the base model's lacks" in warning
    assert "its EOS token is '<|im_end|>', and the base model's is '</s>'" in warning


@pytest.mark.parametrize("content", ["{", "[]", '{"added_tokens": 1, "model": {"vocab": []}}'])
def test_a_damaged_tokenizer_in_the_folder_of_an_adapter(
    copy: Path, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    """Nothing reads it."""
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (copy / "critic" / file).write_text(content)
    assert logged(caplog, settings_for(copy)) == []
