"""Finds the base and its adapters, from folders or the hub."""

from __future__ import annotations

import logging
import platform
from dataclasses import dataclass, field
from importlib.metadata import version
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
from worker.checkpoints.digests import Digest, Digests
from worker.checkpoints.errors import CheckpointError, explained
from worker.checkpoints.hub import resolve
from worker.engine import probe

log = logging.getLogger(__name__)

#: Settings whose values name dtypes, as torch knows them.
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Checkpoint:
    """A folder with a model or an adapter in Hugging Face's format."""

    #: As the setting names it.
    name: str
    path: Path
    hashing: Digest = field(repr=False)

    @property
    def digest(self) -> str:
        """SHA-256 over names and contents of its files; waits for it if need be.

        Raises:
            CheckpointError: a file cannot be read.
            CancelledError: the hashing was given up.
        """
        with explained(f"The checkpoint {self.name}", "check who may read its files"):
            return self.hashing.result()

    def describe(self) -> dict[str, str]:
        return {"name": self.name, "digest": f"sha256:{self.digest}"}


@dataclass(frozen=True)
class Checkpoints:
    """The base with its tokenizer, and an adapter for each role; no weights loaded yet."""

    base: Checkpoint
    adapters: dict[Role, Checkpoint]
    #: The base's.
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    dtype: torch.dtype
    quantization: str
    #: Tokens of prompt and output together.
    context: int

    def describe(self, engine: str) -> dict[str, Any]:
        """Say what a worker runs, for the histories."""
        name = platform.processor() or platform.machine()
        if self.device.type == "cuda":
            name = torch.cuda.get_device_name(self.device)
        packages = ["helixq", "torch", "transformers", "peft", "celery"]
        packages += ["bitsandbytes"] if self.quantization == "4bit" else []
        return {
            "engine": engine,
            "device": str(self.device),
            "device_name": name,
            "dtype": str(self.dtype).removeprefix("torch."),
            "quantization": self.quantization,
            "split_special_tokens": self.tokenizer.split_special_tokens,
            "base": self.base.describe(),
            "adapters": {role.value: c.describe() for role, c in self.adapters.items()},
            "versions": {
                "python": platform.python_version(),
                **{package: version(package) for package in packages},
            },
        }

    def check_unchanged(self) -> None:
        """Make sure that what was loaded is what was hashed.

        Raises:
            CheckpointError: files were written to since the hashing began.
        """
        for checkpoint in (self.base, *self.adapters.values()):
            if checkpoint.hashing.changed():
                raise CheckpointError(
                    f"The files of {checkpoint.name} changed while they were loaded; "
                    "start again once they are whole"
                )


def find_checkpoints(settings: Settings, digests: Digests | None = None) -> Checkpoints:
    """Find everything the settings name, and load what is light. The hashing goes on on threads.

    Args:
        settings: what to find.
        digests: what is being hashed already; by default it begins here.

    Raises:
        CheckpointError: something is missing, damaged or does not go together.
    """
    device = torch.device(settings.device if settings.device != "auto" else _best_device())
    if device.type == "cuda" and not torch.cuda.is_available():
        raise CheckpointError(
            f"HELIXQ_DEVICE={settings.device}, but PyTorch sees no CUDA device; "
            "use HELIXQ_DEVICE=cpu or install a driver and a CUDA build of torch"
        )
    if settings.quantization == "4bit" and find_spec("bitsandbytes") is None:
        raise CheckpointError(
            "HELIXQ_QUANTIZATION=4bit needs bitsandbytes: pip install 'helixq[quantization]'"
        )
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    if settings.dtype != "auto":
        dtype = DTYPES[settings.dtype]
    digests = digests or Digests.of_settings(settings)
    base = _checkpoint(settings.base_model, "HELIXQ_BASE_MODEL", "config.json", digests)
    if (base.path / "adapter_config.json").is_file():
        # transformers would load the base that this file names, and put the adapter on it.
        raise CheckpointError(
            f"HELIXQ_BASE_MODEL: {base.path} has an adapter_config.json, so it is an adapter or has one "
            "beside the model; give a folder with a model alone"
        )
    adapters = {
        role: _checkpoint(
            settings.adapters[role], f"HELIXQ_ADAPTERS ({role})", "adapter_config.json", digests
        )
        for role in Role
    }
    with explained(f"The tokenizer of the base model {base.name}", "check HELIXQ_BASE_MODEL"):
        tokenizer = AutoTokenizer.from_pretrained(base.path, trust_remote_code=False)
        config = AutoConfig.from_pretrained(base.path, trust_remote_code=False)
    # transformers' own switch: it holds for whoever encodes with this tokenizer.
    tokenizer.split_special_tokens = settings.split_special_tokens
    sizes = config.get_text_config()
    if not tokenizer.is_fast or tokenizer.eos_token_id is None:
        raise CheckpointError(
            f"The tokenizer of the base model {base.name} has no tokenizer.json or no EOS token; "
            "give a base with a fast tokenizer in HELIXQ_BASE_MODEL"
        )
    if len(tokenizer) > sizes.vocab_size:
        raise CheckpointError(
            f"The tokenizer of the base model {base.name} has {len(tokenizer)} tokens, but the "
            f"model knows {sizes.vocab_size}; the folder mixes two models"
        )
    if not tokenizer.encode("question", add_special_tokens=False):
        raise CheckpointError(
            f"The tokenizer of the base model {base.name} has no vocabulary; fetch its tokenizer.json"
        )
    longest = getattr(sizes, "max_position_embeddings", settings.max_context)
    if longest is None:
        raise CheckpointError(
            f"The base model {base.name} does not say how many tokens it takes; "
            "say it in HELIXQ_MAX_CONTEXT"
        )
    if settings.max_context is not None and settings.max_context > longest:
        raise CheckpointError(
            f"HELIXQ_MAX_CONTEXT={settings.max_context}, but the base model {base.name} takes "
            f"{longest} tokens at most"
        )
    context = settings.max_context or int(longest)
    if context < probe.NUM_TOKENS:
        raise CheckpointError(
            f"A context of {context} tokens has no room for a question; set HELIXQ_MAX_CONTEXT, or give "
            "a base that takes more"
        )
    return Checkpoints(
        base=base,
        adapters=adapters,
        config=config,
        tokenizer=tokenizer,
        device=device,
        dtype=dtype,
        quantization=settings.quantization,
        context=context,
    )


def _best_device() -> str:
    return "cuda:0" if torch.cuda.is_available() else "cpu"


def _checkpoint(reference: str, setting: str, config: str, digests: Digests) -> Checkpoint:
    path = resolve(reference, setting)
    if not (path / config).is_file():
        raise CheckpointError(
            f"{setting}: there is no {config} in {path}; "
            "give a folder in Hugging Face's format or a hub id"
        )
    with explained(f"{setting}: {path}", "check its files, or fetch it again"):
        hashing = digests.begin(path)
    return Checkpoint(name=reference, path=path, hashing=hashing)
