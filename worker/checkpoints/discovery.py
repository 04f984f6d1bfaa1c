"""Find the base and its adapters, in folders or on the hub."""

from __future__ import annotations

import json
import logging
import platform
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from jobs.pipeline import Role
from jobs.settings import Settings
from worker.checkpoints.digests import Digest, Digests, is_ignored
from worker.checkpoints.errors import CheckpointError, explain_errors
from worker.checkpoints.hub import GGUF_ALONE, commit_of, resolve
from worker.checkpoints.references import BASE_SETTING, adapter_setting
from worker.engine import probe
from worker.lora.adapter import torchtune_remedy

log = logging.getLogger(__name__)

#: Where Linux tells the version of NVIDIA's driver.
DRIVER_VERSION = Path("/sys/module/nvidia/version")
#: PyTorch dtypes by their names in the settings.
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Checkpoint:
    """A folder with a model or an adapter in Hugging Face's format."""

    #: The folder or hub id in the setting.
    name: str
    path: Path
    hashing: Digest = field(repr=False)

    @property
    def digest(self) -> str:
        """SHA-256 of the names and contents of its files. Waits until it is computed.

        Raises:
            CheckpointError: a file cannot be read.
            CancelledError: hashing was cancelled.
        """
        with explain_errors(f"The checkpoint {self.name}", "check who may read its files"):
            return self.hashing.result()

    def describe(self) -> dict[str, str]:
        """Return its name and digest, and of a snapshot from the hub the hash of its commit as ``revision``."""
        commit = commit_of(self.path)
        revision = {} if commit is None else {"revision": commit}
        return {"name": self.name, "digest": f"sha256:{self.digest}", **revision}


@dataclass(frozen=True)
class Checkpoints:
    """The base with its tokenizer, and an adapter for each role. No weights are loaded."""

    base: Checkpoint
    adapters: dict[Role, Checkpoint]
    #: transformers' configuration of the base.
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    dtype: torch.dtype
    quantization: str
    #: Maximum number of tokens of prompt and output together.
    context: int

    def describe(self, engine: str) -> dict[str, Any]:
        """Return what a worker runs, for job histories."""
        name = platform.processor() or platform.machine()
        if self.device.type == "cuda":
            name = torch.cuda.get_device_name(self.device)
        return {
            "engine": engine,
            "device": str(self.device),
            "device_name": name,
            "dtype": str(self.dtype).removeprefix("torch."),
            "quantization": self.quantization,
            "split_special_tokens": self.tokenizer.split_special_tokens,
            "base": self.base.describe(),
            "adapters": {role.value: c.describe() for role, c in self.adapters.items()},
            "versions": self._versions(),
        }

    def _versions(self) -> dict[str, str]:
        """Return the versions of the software that texts depend on."""
        packages = ["helixq", "torch", "transformers", "peft", "tokenizers", "celery"]
        packages += ["bitsandbytes"] if self.quantization == "4bit" else []
        versions = {
            "python": platform.python_version(),
            **{package: version(package) for package in packages},
        }
        if self.device.type == "cuda":
            versions |= cuda_versions()
        return versions

    def check_unchanged(self) -> None:
        """Check that no files have changed since hashing started, so that what was hashed was loaded.

        Raises:
            CheckpointError: a file has changed.
        """
        for checkpoint in (self.base, *self.adapters.values()):
            if checkpoint.hashing.changed():
                raise CheckpointError(
                    f"The files of {checkpoint.name} changed while they were loaded; "
                    "restart the worker once they are complete"
                )


def find_checkpoints(settings: Settings, digests: Digests | None = None) -> Checkpoints:
    """Find base and adapters, and load configs and tokenizer. Hashing continues on threads.

    Args:
        settings: the settings that name them.
        digests: digests that are already being computed; by default they start here.

    Raises:
        CheckpointError: a checkpoint is missing or damaged, or they are incompatible.
    """
    device = _device(settings.device)
    if settings.quantization == "4bit" and find_spec("bitsandbytes") is None:
        raise CheckpointError(
            "HELIXQ_QUANTIZATION=4bit needs bitsandbytes: pip install 'helixq[quantization]'"
        )
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    if settings.dtype != "auto":
        dtype = DTYPES[settings.dtype]
    digests = digests or Digests.of_settings(settings)
    base = _find_checkpoint(settings.base_model, BASE_SETTING, "config.json", digests)
    if (base.path / "adapter_config.json").is_file():
        # transformers would load the base that this file names, and apply the adapter to it.
        raise CheckpointError(
            f"HELIXQ_BASE_MODEL: {base.path} has an adapter_config.json, so it is an adapter or has one "
            "beside the model; give a folder with a model alone"
        )
    _check_not_quantized(base)
    adapters = {
        role: _find_checkpoint(
            settings.adapters[role], adapter_setting(role), "adapter_config.json", digests
        )
        for role in Role
    }
    config, tokenizer = _load_tokenizer(base)
    # transformers' option: it applies to every use of this tokenizer.
    tokenizer.split_special_tokens = settings.split_special_tokens
    return Checkpoints(
        base=base,
        adapters=adapters,
        config=config,
        tokenizer=tokenizer,
        device=device,
        dtype=dtype,
        quantization=settings.quantization,
        context=_context(settings.max_context, base, config),
    )


def _device(setting: str) -> torch.device:
    """Return the device of a setting.

    Raises:
        CheckpointError: PyTorch does not see it.
    """
    if setting == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    device = torch.device(setting)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise CheckpointError(
            f"HELIXQ_DEVICE={setting}, but PyTorch sees no CUDA device; "
            "use HELIXQ_DEVICE=cpu or install a driver and a CUDA build of torch"
        )
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        raise CheckpointError(
            f"HELIXQ_DEVICE={setting}, but PyTorch sees {count} CUDA device{'s' * (count > 1)}; "
            f"use cuda:{count - 1} or lower"
        )
    return device


def _load_tokenizer(base: Checkpoint) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase]:
    """Return the base's config and its tokenizer.

    Raises:
        CheckpointError: one of them is damaged, or they are of different models.
    """
    with explain_errors(f"The tokenizer of the base model {base.name}", "check HELIXQ_BASE_MODEL"):
        try:
            tokenizer = AutoTokenizer.from_pretrained(base.path, trust_remote_code=False)
        except Exception as error:  # its message asks for packages that do not help
            if (base.path / "tokenizer.json").exists():
                raise
            raise CheckpointError(
                f"The base model {base.name} has no tokenizer.json, and transformers makes none from its other "
                "files; fetch it from where the model comes from, or from the model that it was trained from"
            ) from error
        config = AutoConfig.from_pretrained(base.path, trust_remote_code=False)
    text_config = config.get_text_config()
    if not tokenizer.is_fast or tokenizer.eos_token_id is None:
        raise CheckpointError(
            f"The tokenizer of the base model {base.name} has no tokenizer.json or no EOS token; "
            "give a base with a fast tokenizer in HELIXQ_BASE_MODEL"
        )
    if len(tokenizer) > text_config.vocab_size:
        raise CheckpointError(
            f"The tokenizer of the base model {base.name} has {len(tokenizer)} tokens, but the "
            f"model has {text_config.vocab_size}; tokens were added without resizing the model's embeddings, or "
            "the folder mixes two models"
        )
    if not tokenizer.encode("question", add_special_tokens=False):
        raise CheckpointError(
            f"The tokenizer of the base model {base.name} has no vocabulary; fetch its tokenizer.json"
        )
    return config, tokenizer


def _context(setting: int | None, base: Checkpoint, config: PreTrainedConfig) -> int:
    """Return the maximum number of tokens of prompt and output together.

    Args:
        setting: the one that was set; None for what the model takes.
        base: the base.
        config: the base's.

    Raises:
        CheckpointError: nobody says it, the model takes less, or it has no room for a question.
    """
    max_position_embeddings = getattr(config.get_text_config(), "max_position_embeddings", setting)
    if max_position_embeddings is None:
        raise CheckpointError(
            f"The base model {base.name} does not say how many tokens it takes; "
            "say it in HELIXQ_MAX_CONTEXT"
        )
    if setting is not None and setting > max_position_embeddings:
        raise CheckpointError(
            f"HELIXQ_MAX_CONTEXT={setting}, but the base model {base.name} takes "
            f"{max_position_embeddings} tokens at most"
        )
    context = setting or int(max_position_embeddings)
    if context < probe.NUM_TOKENS:
        raise CheckpointError(
            f"A context of {context} tokens has no room for a question; set HELIXQ_MAX_CONTEXT, or give "
            "a base that takes more"
        )
    return context


def cuda_versions(driver: Path = DRIVER_VERSION) -> dict[str, str]:
    """Return the versions of CUDA, of the driver and of Triton, as far as they are known.

    Args:
        driver: the file in which the kernel tells the version of NVIDIA's driver.
    """
    versions = {}
    if torch.version.cuda is not None:
        versions["cuda"] = torch.version.cuda
    with suppress(OSError):
        versions["nvidia_driver"] = driver.read_text().strip()
    with suppress(PackageNotFoundError):
        versions["triton"] = version("triton")
    return versions


def _find_checkpoint(reference: str, setting: str, config: str, digests: Digests) -> Checkpoint:
    path = resolve(reference, setting)
    if any(path.glob("*.gguf")) and not any(path.glob("*.safetensors")):
        raise CheckpointError(f"{setting}: {path} {GGUF_ALONE}")
    if not (path / config).is_file():
        raise CheckpointError(f"{setting}: there is no {config} in {path}; {_remedy(path, config)}")
    _check_names(path, setting)
    with explain_errors(f"{setting}: {path}", "check its files, or fetch it again"):
        hashing = digests.begin(path)
    return Checkpoint(name=reference, path=path, hashing=hashing)


def _remedy(folder: Path, config: str) -> str:
    """Return what to do about a folder without a config, by what is in it."""
    if config == "adapter_config.json" and (folder / "config.json").is_file():
        return "it has a whole model, of which `helixq lora extract` makes an adapter"
    if config == "adapter_config.json" and (remedy := torchtune_remedy(folder)):
        return remedy
    # As trainers leave it.
    if within := sorted(file.parent for file in folder.glob(f"*/{config}")):
        return f"{' and '.join(map(str, within))} {'has' if len(within) == 1 else 'have'} one"
    return "give a folder in Hugging Face's format or a hub id"


def _check_not_quantized(base: Checkpoint) -> None:
    """Check that a base's weights are not quantized by a program whose layers no engine was tested with.

    transformers would ask for packages that do not help, dequantize the weights, or ignore how they are
    quantized. Those of bitsandbytes are what HELIXQ_QUANTIZATION makes.

    Raises:
        CheckpointError: they are.
    """
    config = _json_object(base.path / "config.json")
    # MLX writes both.
    quantization = config.get("quantization_config") or config.get("quantization")
    if not quantization:
        return
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    if method is None and "quantization" in config:
        method = "mlx"
    if method != "bitsandbytes":
        raise CheckpointError(
            f"HELIXQ_BASE_MODEL: {base.path} is quantized ({method or 'by an unknown method'}), which is not "
            "served; give the model that it was made from, with HELIXQ_QUANTIZATION=4bit if it is too large"
        )


def _check_names(folder: Path, setting: str) -> None:
    """Check that the files that a checkpoint names are in its folder: its digest is of nothing else.

    Raises:
        CheckpointError: one is elsewhere.
    """
    named: list[object] = [_json_object(folder / "config.json").get("transformers_weights")]
    for index in folder.glob("*.index.json"):
        if is_ignored(index.name):
            continue
        shards = _json_object(index).get("weight_map")
        named += shards.values() if isinstance(shards, dict) else []
    for name in named:
        if isinstance(name, str) and (Path(name).name != name or "\\" in name):
            raise CheckpointError(
                f"{setting}: {folder} names the file {name!r}, which is not in the folder itself; fetch it again"
            )
        if isinstance(name, str) and is_ignored(name):
            raise CheckpointError(
                f"{setting}: {folder} names the file {name!r}, which is in Mistral's own format; give the model "
                "in Hugging Face's"
            )


def _json_object(file: Path) -> dict[str, Any]:
    """Return what a file holds; nothing if it is not there, or damaged, which others report."""
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
