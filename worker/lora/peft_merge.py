"""Merge an adapter with PEFT's own layers, one module at a time.

PEFT builds its layers on the meta device from the adapter's config, which defines the tensors that the
adapter must have. A module's tensors are read only when its merged weights are needed.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from worker.checkpoints.errors import and_more, first_line
from worker.lora import LoraError
from worker.lora.adapter import CONFIG_NAME, PREFIX, Adapter, merging_unsupported_reasons
from worker.lora.layout import Weights

#: Names of submodules that PEFT inserts around the base's tensors.
_INFIX = re.compile(r"\b(base_layer|original_module|token_adapter)\.")
#: Options that the batching engine does not support, but PEFT's merge does.
_MERGEABLE_OPTIONS = ("use_dora", "lora_bias", "fan_in_fan_out", "trainable_token_indices", "bias")
#: PEFT restores trained tokens from these when it unmerges, which is not needed here.
_ORIGINALS = "trainable_tokens_original"
#: The submodule in which PEFT keeps a replaced module.
_REPLACEMENT = "modules_to_save.default"


class PeftMerger:
    """Merges an adapter's modules into those of the base, with PEFT."""

    def __init__(self, base: Path, model: Any, weights: Weights, adapter: Adapter) -> None:
        """Inject the adapter's layers into the model, without values, and check that they fit.

        Args:
            base: the base's folder.
            model: the base's `meta_model`, which is modified.
            weights: the base's tensors.
            adapter: the adapter.

        Raises:
            LoraError: PEFT's merge would not be exact, or the adapter lacks a tensor that its config
                requires, has an unexpected one, or is for another base.
        """
        self._weights = weights
        self._adapter = adapter
        parameters = dict(model.named_parameters(remove_duplicate=False))
        injected = _inject(base, model, adapter)
        self._model: nn.Module = injected.base_model.model
        #: Full names of parameters of the injected model -> names of the adapter's tensors.
        self._sources = _map_tensors(base, injected, adapter)
        #: Names of modules that PEFT has wrapped.
        self.modules = {
            name.removeprefix(PREFIX)
            for name, module in injected.named_modules()
            if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)
            and not _INFIX.search(f"{name}.")
        }
        for name in parameters:
            self._check_shape(base, name, tuple(parameters[name].shape))
            if len(wrapped := self._wrapped_modules(name)) > 1:
                raise LoraError(
                    f"{adapter.folder} cannot be merged: it replaces {wrapped[0]} and also changes {wrapped[1]} in it"
                )
        self._last: tuple[str, dict[str, Tensor]] = ("", {})
        #: Names of the base's tensors that the adapter replaces.
        self.replaced = {
            name for name in parameters if self._replacement(name) in adapter.tensors.entries
        }

    def changes(self, name: str) -> bool:
        """Return whether the adapter changes a tensor of the base.

        Args:
            name: the parameter's name in the model.
        """
        return name in self.replaced or bool(self._wrapped_modules(name))

    def get(self, name: str) -> Tensor:
        """Return a merged tensor, float32. `changes` must be true for it.

        Raises:
            LoraError: a tensor cannot be read, or has NaN or infinite values.
        """
        if not (wrapped := self._wrapped_modules(name)):
            return self._adapter.tensors.get_finite(self._sources[PREFIX + name])
        module = wrapped[0]
        if self._last[0] != module:
            self._last = (module, self._merge(module))
        return self._last[1][name.removeprefix(f"{module}.")]

    def _wrapped_modules(self, name: str) -> list[str]:
        """Return the modules that contain a tensor and that PEFT has wrapped, outermost first."""
        parts = name.split(".")
        parents = (".".join(parts[:i]) for i in range(1, len(parts)))
        return [module for module in parents if module in self.modules]

    def _merge(self, name: str) -> dict[str, Tensor]:
        """Read a wrapped module's tensors, and merge it with PEFT."""
        module: Any = copy.deepcopy(self._model.get_submodule(name)).to_empty(device="cpu").float()
        state = module.state_dict()
        for path, empty in state.items():
            full = f"{PREFIX}{name}.{path}"
            if full in self._sources:
                value = self._adapter.tensors.get_finite(self._sources[full])
            elif _ORIGINALS in path:
                value = torch.zeros_like(empty)
            else:
                value = self._weights.tensors.get_finite(f"{name}.{_INFIX.sub('', path)}")
            state[path] = value
        module.load_state_dict(state)
        try:
            with torch.no_grad():
                if hasattr(module, "unload_and_optionally_merge_module"):
                    merged = module.unload_and_optionally_merge_module(
                        merge=True, safe_merge=False, adapter_names=None
                    )
                else:
                    module.merge()
                    merged = module.get_base_layer()
        except Exception as error:  # PEFT may raise anything
            raise LoraError(
                f"{self._adapter.folder} cannot be merged: PEFT cannot merge it in {name} ({first_line(error)})"
            ) from error
        return {key: value.detach() for key, value in merged.state_dict().items()}

    def _replacement(self, name: str) -> str | None:
        """Return the adapter's tensor that replaces a tensor before factors are added, if any."""
        parts = name.split(".")
        paths = [name]
        for i in range(1, len(parts)):
            module, attribute = ".".join(parts[:i]), ".".join(parts[i:])
            paths += (f"{module}.{part}.{attribute}" for part in ("base_layer", _REPLACEMENT))
        keys = (self._sources.get(PREFIX + path) for path in paths)
        return next((key for key in keys if key is not None), None)

    def _check_shape(self, base: Path, name: str, shape: tuple[int, ...]) -> None:
        """Check that a tensor that the adapter changes has the shape that the config requires."""
        entry = self._weights.tensors.entries.get(name)
        if not self._wrapped_modules(name):
            return
        if entry is None:
            raise LoraError(f"{base} has no {name}, which {self._adapter.folder} changes")
        if entry.shape != shape:
            raise LoraError(
                f"{entry.file}: {entry.stored_name} has the shape {entry.shape}, but config.json "
                f"requires {shape}"
            )


def _inject(base: Path, model: Any, adapter: Adapter) -> Any:
    """Let PEFT wrap the modules that the adapter's config names, without weights."""
    unknown = adapter.config.keys() - LoraConfig.__dataclass_fields__.keys() - {"runtime_config"}
    reasons = merging_unsupported_reasons(
        {key: value for key, value in adapter.config.items() if key not in _MERGEABLE_OPTIONS}, []
    )
    if adapter.config.get("peft_type") != "LORA":
        unknown = set()  # other methods have other options, and are rejected anyway
    reasons += [
        f"PEFT {peft.__version__} does not know its option {option}={adapter.config[option]!r}"
        for option in sorted(unknown)
        if adapter.config[option]
    ]
    if reasons:
        raise LoraError(f"{adapter.folder} cannot be merged: {'; '.join(reasons)}")
    options: dict[str, Any] = {k: v for k, v in adapter.config.items() if k not in unknown}
    # The factors are read from the file, so they need no initialization.
    try:
        config = LoraConfig(**{**options, "init_lora_weights": False, "inference_mode": True})
    except Exception as error:  # PEFT may raise anything
        raise LoraError(
            f"{adapter.folder / CONFIG_NAME} is not a config that PEFT accepts ({first_line(error)})"
        ) from error
    try:
        with torch.device("meta"), warnings.catch_warnings():
            # PEFT warns of tied and transposed layers, which are checked here.
            warnings.simplefilter("ignore")
            return PeftModel(model, config, autocast_adapter_dtype=False, low_cpu_mem_usage=True)
    except Exception as error:  # PEFT may raise anything
        raise LoraError(
            f"{adapter.folder} is for another base: PEFT cannot apply it to {base} ({first_line(error)})"
        ) from error


def _map_tensors(base: Path, injected: Any, adapter: Adapter) -> dict[str, str]:
    """Map the injected model's parameters to the adapter's tensors.

    Raises:
        LoraError: the adapter has an unexpected tensor, lacks one, or has one of the wrong shape.
    """
    state: dict[str, Tensor] = injected.state_dict(keep_vars=True)
    required = get_peft_model_state_dict(injected, state_dict=state, save_embedding_layers=False)
    # A tied parameter has several names.
    names_by_id: dict[int, list[str]] = {}
    for name, parameter in state.items():
        names_by_id.setdefault(id(parameter), []).append(name)
    sources = {}
    entries = adapter.tensors.entries
    for key, entry in entries.items():
        if key not in required and key not in state:
            raise LoraError(_explain_unexpected(base, injected, adapter, key))
        parameter = required[key] if key in required else state[key]
        if entry.shape != (shape := tuple(parameter.shape)):
            raise LoraError(
                f"{adapter.folder} is for another base: {key} has the shape {entry.shape}, and "
                f"{base} requires {shape}"
            )
        sources.update(dict.fromkeys(names_by_id[id(parameter)], key))
    if missing := sorted(required.keys() - entries.keys()):
        raise LoraError(
            f"{adapter.folder} is incomplete: it has no {missing[0]}{and_more(missing)}, which its {CONFIG_NAME} "
            f"requires for {base}"
        )
    return sources


def _explain_unexpected(base: Path, injected: Any, adapter: Adapter, key: str) -> str:
    """Return why the base has no parameter for a tensor of the adapter."""
    module = re.split(r"\.lora_|\.base_layer\.|\.weight$|\.bias$", key)[0]
    names: Mapping[str, Any] = dict(injected.named_modules())
    if module not in names:
        return (
            f"{adapter.folder} is for another base: {base} has no {module.removeprefix(PREFIX)} for "
            f"{key}"
        )
    return f"{adapter.folder} has {key}, which its {CONFIG_NAME} does not include for {base}"
