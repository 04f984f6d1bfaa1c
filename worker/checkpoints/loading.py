"""Load the base once, and each role's adapter. Code in a checkpoint does not run."""

from __future__ import annotations

import logging
from collections.abc import Mapping
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
from worker.checkpoints.errors import CheckpointError, and_more, explain_errors
from worker.checkpoints.own_tokenizers import tokenizer_differences
from worker.engine import probe, role_models
from worker.engine.models import registry
from worker.engine.tokenization.stop_tokens import resolve_stop_tokens
from worker.lora import LoraError
from worker.lora.adapter import (
    Adapter,
    mismatched_base,
    open_adapter,
    read_pickle,
    unsupported_reason,
)
from worker.lora.adapter import (
    batching_unsupported_reasons as adapter_unsupported_reasons,
)
from worker.lora.tensors import InMemoryTensors, Tensors, find_non_finite, is_finite
from worker.phases import phase

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedModels:
    """The models of the three roles."""

    #: By role name. The base's tensors are in memory once.
    models: dict[str, PeftModel]
    #: By role name: names of the base's tensors of which the role has a changed copy.
    changed_tensors: dict[str, list[str]]
    #: By role name: logits of the probe's tokens before the next adapters were loaded.
    probe_logits: dict[str, Tensor]


def batching_unsupported_reasons(checkpoints: Checkpoints) -> list[str]:
    """Return why the batching engine does not support a base with its adapters; empty if it does.

    Raises:
        CheckpointError: an adapter is damaged, or of a kind that no engine supports.
    """
    reasons = registry.unsupported_reasons(checkpoints.config, checkpoints.context)
    for role, adapter in checkpoints.adapters.items():
        opened = _open_supported(role, adapter)
        adapter_reasons = adapter_unsupported_reasons(opened.config, opened.tensors.entries)
        reasons += [f"the {role} adapter: {reason}" for reason in adapter_reasons]
    return reasons


def load(checkpoints: Checkpoints) -> LoadedModels:
    """Load the base, and each adapter as if PEFT had loaded it on its own base.

    Raises:
        CheckpointError: weights are missing or damaged, or an adapter is for another base or of a kind
            that no engine supports.
    """
    for role, adapter in checkpoints.adapters.items():
        opened = _open_supported(role, adapter)
        base = checkpoints.base
        if named_base := mismatched_base(opened.config, base.name, base.path):
            log.warning(
                "the config of the %s adapter %s names the base model %s, and it is served with %s",
                role,
                adapter.name,
                named_base,
                base.name,
            )
        if differences := tokenizer_differences(adapter.path, checkpoints.tokenizer):
            log.warning(
                "the folder of the %s adapter %s has a tokenizer of its own, which is not used: %s; prompts and "
                "texts have the tokens of the base model %s",
                role,
                adapter.name,
                "; ".join(differences),
                base.name,
            )
    return _load_adapters(checkpoints, _load_base(checkpoints))


def _load_adapters(checkpoints: Checkpoints, base: Any) -> LoadedModels:
    loaded = LoadedModels({}, {}, {})
    for role, adapter in checkpoints.adapters.items():
        torch.manual_seed(0)  # some adapters draw random numbers as they load
        with (
            phase(f"loading the {role} adapter {adapter.name}"),
            explain_errors(
                f"The {role} adapter {adapter.name}",
                f"give one that was made for the base model {checkpoints.base.name} in HELIXQ_ADAPTERS",
            ),
        ):
            model, changed = role_models.load_adapter(base, adapter.path, role.value)
            # Some kinds have infinite values that are not in their files.
            if _non_finite(role_models.own_tensors(base, model)) and (
                message := find_non_finite(open_adapter(adapter.path).tensors)
            ):
                raise CheckpointError(
                    f"The {role} adapter {adapter.name} cannot be served: {message}"
                )
            logits = probe.peft_logits(model, role.value, probe.probe_token_ids(checkpoints.config))
        loaded.models[role.value], loaded.changed_tensors[role.value] = model, changed
        loaded.probe_logits[role.value] = logits
        if changed:
            log.info(
                "the %s adapter changes %d tensors of the base (%s, …); the role has its own copies",
                role,
                len(changed),
                changed[0],
            )
    return loaded


def _load_base(checkpoints: Checkpoints) -> Any:
    base = checkpoints.base
    options: dict[str, Any] = {}
    if checkpoints.quantization == "4bit":
        options["quantization_config"] = transformers.BitsAndBytesConfig(  # type: ignore[no-untyped-call]  # transformers has no types there
            load_in_4bit=True, bnb_4bit_compute_dtype=checkpoints.dtype
        )
    if checkpoints.device.type == "cuda":
        options["device_map"] = {"": checkpoints.device}
    with explain_errors(
        f"The base model {base.name}", "check HELIXQ_BASE_MODEL, or fetch it again"
    ):
        with phase(f"loading the base model {base.name}"):
            result: Any = AutoModelForCausalLM.from_pretrained(
                base.path,
                dtype=checkpoints.dtype,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are reported below
                **options,
            )
        model, report = result
        # transformers initializes missing tensors with random numbers.
        if missing := sorted(report["missing_keys"]):
            raise ValueError(f"{missing[0]} is missing{and_more(missing)}")
        if mismatched := sorted(report["mismatched_keys"]):
            name, stored_shape, required_shape = mismatched[0]
            raise ValueError(
                f"{name} has the shape {tuple(stored_shape)}, and config.json requires "
                f"{tuple(required_shape)}{and_more(mismatched)}"
            )
        with phase(f"checking the values of the base model {base.name}"):
            _check_base(model, base.path)
        # Find faults of the base here, so that no adapter is blamed for them.
        resolve_stop_tokens(model, checkpoints.tokenizer)
        probe.dummy_run(model, probe.probe_token_ids(checkpoints.config))
    return model


def _non_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of tensors with values that are not finite. 4-bit weights are not checked."""
    floats = {name: t for name, t in tensors.items() if t.is_floating_point()}
    if not floats:
        return []
    device = next(iter(floats.values())).device
    # Synchronize with the device once, not for each tensor.
    flags = torch.stack([is_finite(tensor).to(device) for tensor in floats.values()]).tolist()
    return [name for name, is_good in zip(floats, flags, strict=True) if not is_good]


def _check_base(model: torch.nn.Module, folder: Path) -> None:
    """Check that a base's weights are finite. The probe checks the logits of 4-bit weights.

    Raises:
        ValueError: a weight is not finite. The message names file and tensor.
    """
    parameters = dict(model.named_parameters())
    for name in _non_finite(parameters):
        for file in sorted(folder.glob("*.safetensors")):
            if message := find_non_finite(Tensors([file])):
                raise ValueError(message)
        for file in sorted(folder.glob("*.bin")):
            if message := find_non_finite(InMemoryTensors(file, read_pickle(file))):
                raise ValueError(message)
        dtype = str(parameters[name].dtype).removeprefix("torch.")
        raise ValueError(f"{name} has values that are too large for {dtype}; set HELIXQ_DTYPE")


def _open_supported(role: Role, adapter: Checkpoint) -> Adapter:
    """Open an adapter, and check that an engine supports it."""
    try:
        opened = open_adapter(adapter.path)
    except LoraError as error:
        raise CheckpointError(
            f"The {role} adapter {adapter.name} cannot be loaded: {error}"
        ) from error
    if reason := unsupported_reason(opened.config):
        raise CheckpointError(f"The {role} adapter {adapter.name} cannot be served: {reason}")
    return opened
