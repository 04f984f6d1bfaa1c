"""Loads the base, once, and each role's adapter; no code of a checkpoint runs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from jobs.pipeline import Role
from worker.checkpoints.discovery import Checkpoint, Checkpoints
from worker.checkpoints.errors import CheckpointError, explained
from worker.engine import probe, role_models
from worker.engine.models import registry
from worker.engine.tokenization.stop_tokens import resolve_stop_tokens
from worker.lora import LoraError
from worker.lora.adapter import (
    Adapter,
    open_adapter,
    other_base,
    read_pickle,
    refusals,
    unservable,
)
from worker.lora.files import Held, Tensors, finite, not_finite
from worker.phases import phase

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loaded:
    """The models of the three roles."""

    #: By the roles' names. The base's tensors are in memory once.
    models: dict[str, PeftModel]
    #: By the roles' names: tensors of the base that the role has changed copies of.
    changed: dict[str, list[str]]
    #: By the roles' names: how it scored the probe's tokens before other adapters were there.
    scores: dict[str, Tensor]


def unbatchable(checkpoints: Checkpoints) -> list[str]:
    """Say why the engine that batches cannot serve a base with its adapters; empty if it can.

    Raises:
        CheckpointError: an adapter is damaged, or of a kind that cannot be served at all.
    """
    reasons = registry.unsupported_reasons(checkpoints.config, checkpoints.context)
    for role, adapter in checkpoints.adapters.items():
        found = _open(role, adapter)
        said = refusals(found.config, found.tensors.entries)
        reasons += [f"the {role} adapter: {reason}" for reason in said]
    return reasons


def load(checkpoints: Checkpoints) -> Loaded:
    """Load the base, and each adapter as PEFT does on a base of its own.

    Raises:
        CheckpointError: weights are missing or damaged, or an adapter is for another base or of a kind
            that cannot be served.
    """
    for role, adapter in checkpoints.adapters.items():
        found = _open(role, adapter)
        with (
            phase(f"checking the numbers of the {role} adapter {adapter.name}"),
            explained(f"The {role} adapter {adapter.name}", "fetch it again"),
        ):
            tensor = not_finite(found.tensors)
        if tensor:
            raise CheckpointError(f"The {role} adapter {adapter.name} cannot be served: {tensor}")
        base = checkpoints.base
        if said := other_base(found.config, base.name, base.path):
            log.warning(
                "the config of the %s adapter %s names the base model %s, and it is served with %s",
                role,
                adapter.name,
                said,
                base.name,
            )
    return _load(checkpoints, _load_base(checkpoints))


def _load(checkpoints: Checkpoints, base: Any) -> Loaded:
    found = Loaded({}, {}, {})
    for role, adapter in checkpoints.adapters.items():
        torch.manual_seed(0)  # should an adapter draw something as it loads
        with (
            phase(f"loading the {role} adapter {adapter.name}"),
            explained(
                f"The {role} adapter {adapter.name}",
                f"give one that was made for the base model {checkpoints.base.name} in HELIXQ_ADAPTERS",
            ),
        ):
            model, changed = role_models.load_adapter(base, adapter.path, role.value)
            scores = probe.peft_logits(model, role.value, probe.probe_token_ids(checkpoints.config))
        found.models[role.value], found.changed[role.value] = model, changed
        found.scores[role.value] = scores
        if changed:
            log.info(
                "the %s adapter changes %d tensors of the base (%s, …): the role has its own",
                role,
                len(changed),
                changed[0],
            )
    return found


def _load_base(checkpoints: Checkpoints) -> Any:
    base = checkpoints.base
    options: dict[str, Any] = {}
    if checkpoints.quantization == "4bit":
        options["quantization_config"] = transformers.BitsAndBytesConfig(  # type: ignore[no-untyped-call]  # transformers has no types there
            load_in_4bit=True, bnb_4bit_compute_dtype=checkpoints.dtype
        )
    if checkpoints.device.type == "cuda":
        options["device_map"] = {"": checkpoints.device}
    with explained(f"The base model {base.name}", "check HELIXQ_BASE_MODEL, or fetch it again"):
        with phase(f"loading the base model {base.name}"):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                base.path,
                dtype=checkpoints.dtype,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # to name them, below
                **options,
            )
        model, report = loaded
        # transformers would fill the gaps with random numbers and go on.
        if lost := sorted(report["missing_keys"]):
            raise ValueError(f"{lost[0]} is missing{_and_more(lost)}")
        if misshapen := sorted(report["mismatched_keys"]):
            name, stored, wanted = misshapen[0]
            raise ValueError(
                f"{name} has the shape {tuple(stored)}, and config.json asks for {tuple(wanted)}"
                f"{_and_more(misshapen)}"
            )
        with phase(f"checking the numbers of the base model {base.name}"):
            _check_finite(model, base.path)
        # What is wrong with the base should not be said of the first adapter.
        resolve_stop_tokens(model, checkpoints.tokenizer)
        probe.dummy_run(model, probe.probe_token_ids(checkpoints.config))
    return model


def _and_more(names: Sequence[object]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _check_finite(model: torch.nn.Module, folder: Path) -> None:
    """Make sure that a base's weights are finite numbers.

    Weights of 4 bits are not looked at; what they give is, by the probe.

    Raises:
        ValueError: one is not; it names file and tensor.
    """
    floats = {n: p for n, p in model.named_parameters() if p.is_floating_point()}
    device = next(iter(floats.values())).device
    # One wait for the device, not one for each tensor.
    flags = torch.stack([finite(tensor).to(device) for tensor in floats.values()]).tolist()
    for (name, tensor), good in zip(floats.items(), flags, strict=True):
        if good:
            continue
        for file in sorted(folder.glob("*.safetensors")):
            if found := not_finite(Tensors([file])):
                raise ValueError(found)
        for file in sorted(folder.glob("*.bin")):
            if found := not_finite(Held(file, read_pickle(file))):
                raise ValueError(found)
        dtype = str(tensor.dtype).removeprefix("torch.")
        raise ValueError(f"{name} has values that are too large for {dtype}; set HELIXQ_DTYPE")


def _open(role: Role, adapter: Checkpoint) -> Adapter:
    """Open an adapter, if it is of a kind that an engine serves as PEFT alone would."""
    try:
        found = open_adapter(adapter.path)
    except LoraError as error:
        raise CheckpointError(
            f"The {role} adapter {adapter.name} cannot be loaded: {error}"
        ) from error
    if reason := unservable(found.config):
        raise CheckpointError(f"The {role} adapter {adapter.name} cannot be served: {reason}")
    return found
