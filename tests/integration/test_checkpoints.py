"""Loading: an invalid checkpoint gives an error of one sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from cli.main import main
from jobs import settings
from jobs.pipeline import Role
from jobs.settings import Settings
from tests.adapters import change_config
from tests.random_weights import build
from worker.checkpoints import discovery, hub, loading
from worker.checkpoints.digests import Digests
from worker.checkpoints.discovery import find_checkpoints
from worker.checkpoints.errors import CheckpointError
from worker.local_engine import make_engine
from worker.lora.adapter import mismatched_base


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint that a test may damage."""
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


def settings_for(folder: Path, **changes: str) -> Settings:
    return settings.load(
        {
            "HELIXQ_BASE_MODEL": str(folder / "base"),
            "HELIXQ_ADAPTERS": ",".join(f"{role}={folder / role}" for role in Role),
            "HELIXQ_DATA_DIR": str(folder / "data"),
            **changes,
        }
    )


def refusal(configured: Settings) -> str:
    """Return the error with which a checkpoint is refused."""
    with pytest.raises(CheckpointError) as excinfo:
        loading.load(find_checkpoints(configured))
    sentence = str(excinfo.value)
    assert "\n" not in sentence
    return sentence


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


def test_a_missing_folder(copy: Path) -> None:
    sentence = refusal(settings_for(copy, HELIXQ_BASE_MODEL="/nowhere/base"))
    assert sentence == "HELIXQ_BASE_MODEL: there is no folder /nowhere/base"


def test_a_folder_without_a_model(copy: Path) -> None:
    (copy / "critic" / "adapter_config.json").unlink()
    sentence = refusal(settings_for(copy))
    assert "HELIXQ_ADAPTERS (critic): there is no adapter_config.json in" in sentence


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
    assert "mixes two models" in refusal(settings_for(copy))


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


def test_a_pickled_adapter_is_loaded_as_weights_only(copy: Path) -> None:
    file = copy / "actor" / "adapter_model.safetensors"
    torch.save(load_file(file), copy / "actor" / "adapter_model.bin")
    file.unlink()
    assert "actor" in loading.load(find_checkpoints(settings_for(copy))).models

    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (copy / "sprung",))  # type: ignore[return-value]  # a call to make

    torch.save({"x": Trap()}, copy / "actor" / "adapter_model.bin")
    assert "cannot be loaded" in refusal(settings_for(copy))
    assert not (copy / "sprung").exists()


def test_a_pickle_of_the_hub_is_not_loaded(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor downloaded. A command converts an adapter, and the worker finds it then."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--team--actor"
    folder = Path(shutil.copytree(checkpoint / "actor", repository / "snapshots" / ("a" * 40)))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    file = folder / "adapter_model.safetensors"
    torch.save(load_file(file), folder / "adapter_model.bin")
    file.unlink()
    fetched: list[str] = []
    fetch = huggingface_hub.snapshot_download

    def note(*arguments: Any, **options: Any) -> str:
        fetched.extend(options["allow_patterns"])
        return str(fetch(*arguments, **options))

    monkeypatch.setattr(hub, "snapshot_download", note)
    with pytest.raises(CheckpointError, match="`helixq lora convert team/actor`"):
        hub.resolve("team/actor", "HELIXQ_ADAPTERS (actor)")
    assert not any("bin" in pattern or pattern == "*" or "py" in pattern for pattern in fetched)
    # Those of the settings: of the hub, the one that is pickled. Folders may be on other machines only.
    shutil.copytree(
        checkpoint / "critic",
        repository.with_name("models--team--critic") / "snapshots" / ("c" * 40),
    )
    monkeypatch.setenv(
        "HELIXQ_ADAPTERS", f"actor=team/actor,critic=team/critic@{'c' * 40},regenerator=/nowhere"
    )
    for outcome in (f"wrote {file}", "has safetensors"):
        result = CliRunner().invoke(main, ["lora", "convert"])
        assert result.exit_code == 0, result.output
        assert result.output.splitlines() == [
            f"team/actor: {outcome}",
            f"team/critic@{'c' * 40}: has safetensors",
        ]
    assert hub.resolve("team/actor", "HELIXQ_ADAPTERS (actor)") == folder

    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "sprung",))  # type: ignore[return-value]  # a call to make

    file.unlink()
    torch.save({"x": Trap()}, folder / "adapter_model.bin")
    result = CliRunner().invoke(main, ["lora", "convert", "team/actor"])
    assert result.exit_code == 1, result.output
    assert not file.exists()
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("model_type", ["odd", "mistral"])
def test_code_in_a_checkpoint_does_not_run(copy: Path, model_type: str) -> None:
    trap = f"open({str(copy / 'sprung')!r}, 'w')"
    for name in ("config.json", "tokenizer_config.json"):
        file = copy / "base" / name
        mapped = {"AutoConfig": "odd.Config", "AutoModelForCausalLM": "odd.Model"}
        tokenizer = {"AutoTokenizer": ["odd.Tokenizer", "odd.Tokenizer"]}
        config = {**json.loads(file.read_text()), "auto_map": {**mapped, **tokenizer}}
        if name == "config.json":
            config["model_type"] = model_type
        file.write_text(json.dumps(config))
    (copy / "base" / "odd.py").write_text(trap)
    custom = copy / "base" / "custom_generate"
    custom.mkdir()
    (custom / "generate.py").write_text(trap)
    if model_type == "odd":
        assert "cannot be loaded" in refusal(settings_for(copy))
    else:
        assert loading.load(find_checkpoints(settings_for(copy))).models
    assert not (copy / "sprung").exists()


def test_a_module_that_an_adapter_names_is_not_imported(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(copy / "actor")
    (copy / "actor" / "odd.py").write_text(f"open({str(copy / 'sprung')!r}, 'w')")
    file = copy / "actor" / "adapter_config.json"
    config = json.loads(file.read_text())
    auto = {"parent_library": "odd", "base_model_class": "Model"}
    file.write_text(json.dumps({**config, "auto_mapping": auto, "megatron_core": "odd"}))
    assert loading.load(find_checkpoints(settings_for(copy))).models
    file.write_text(json.dumps({**config, "megatron_core": "odd", "megatron_config": {"a": 1}}))
    assert "names the module that PEFT would import" in refusal(settings_for(copy))
    assert not (copy / "sprung").exists()


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd", "a/b.safetensors"])
def test_files_beyond_the_folder_are_not_read(copy: Path, name: str) -> None:
    """The digest in the histories is of the files in the folder."""
    (copy / "base" / "model.safetensors").rename(copy / "other.safetensors")
    index = {"metadata": {}, "weight_map": {"model.norm.weight": name}}
    (copy / "base" / "model.safetensors.index.json").write_text(json.dumps(index))
    assert f"names the file {name!r}, which is not in the folder" in refusal(settings_for(copy))
    (copy / "base" / "model.safetensors.index.json").unlink()
    file = copy / "base" / "config.json"
    config = {**json.loads(file.read_text()), "transformers_weights": name}
    file.write_text(json.dumps(config))
    assert f"names the file {name!r}, which is not in the folder" in refusal(settings_for(copy))


def test_missing_devices_are_refused(copy: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    assert "sees no CUDA device" in refusal(settings_for(copy, HELIXQ_DEVICE="cuda"))


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


def configure(file: str = "config.json", **changes: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        path = folder / file
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


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


def test_a_window_of_one_token_is_left_to_transformers(copy: Path) -> None:
    """In transformers, it attends to more tokens while decoding than while prefilling."""
    configure(sliding_window=1)(copy / "base")
    reasons = loading.batching_unsupported_reasons(find_checkpoints(settings_for(copy)))
    assert len(reasons) == 1
    assert "window of 1 token" in reasons[0]
