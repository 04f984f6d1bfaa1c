"""An adapter put on its base by PEFT itself, one module at a time.

PEFT builds its layers on the meta device, from the adapter's config: that tells which tensors the
adapter must have. A module's tensors are read only when its merged weights are asked for.
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

from worker.lora import LoraError
from worker.lora.adapter import CONFIG, PREFIX, Adapter, unmergeable
from worker.lora.layout import Weights

#: What PEFT puts between a module's name and the names of the base's own tensors.
_INFIX = re.compile(r"\b(base_layer|original_module|token_adapter)\.")
#: Options that change what the adapter is, and that PEFT's merge applies exactly.
_MERGES = ("use_dora", "lora_bias", "fan_in_fan_out", "trainable_token_indices", "bias")
#: Only a trained token's way back, which no merge takes.
_ORIGINALS = "trainable_tokens_original"
#: Where PEFT keeps what takes a module's place.
_SAVED = "modules_to_save.default"


class Applied:
    """The base's modules as they are with the adapter merged in."""

    def __init__(self, base: Path, model: Any, weights: Weights, adapter: Adapter) -> None:
        """Put the adapter's layers on the model, without values, and check that they fit.

        Args:
            base: the base's folder.
            model: the base's `skeleton`; it is changed.
            weights: the base's tensors.
            adapter: the adapter.

        Raises:
            LoraError: PEFT's merge would not be exact, or the adapter lacks a tensor that its config
                asks for, has one that has no place, or is for another base.
        """
        self._weights = weights
        self._adapter = adapter
        parameters = dict(model.named_parameters(remove_duplicate=False))
        injected = _inject(base, model, adapter)
        self._model: nn.Module = injected.base_model.model
        #: Full names of parameters of the injected model -> names of the adapter's tensors.
        self._sources = _sources(base, injected, adapter)
        #: Names of modules that PEFT has wrapped.
        self.modules = {
            name.removeprefix(PREFIX)
            for name, module in injected.named_modules()
            if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)
            and not _INFIX.search(f"{name}.")
        }
        for name in parameters:
            self._check_shape(base, name, tuple(parameters[name].shape))
            if len(within := self._wrapped(name)) > 1:
                raise LoraError(
                    f"{adapter.folder} cannot be merged: it replaces {within[0]} and adds to {within[1]} in it"
                )
        self._last: tuple[str, dict[str, Tensor]] = ("", {})
        #: Names of the base's tensors that the adapter holds whole.
        self.replaced = {
            name for name in parameters if self._whole(name) in adapter.tensors.entries
        }

    def changes(self, name: str) -> bool:
        """Return whether a tensor of the base, by the model's name, is another with the adapter."""
        return name in self.replaced or bool(self._wrapped(name))

    def get(self, name: str) -> Tensor:
        """Return a tensor that `changes`, merged: float32.

        Raises:
            LoraError: a tensor cannot be read, or has NaN or infinite values.
        """
        if not (within := self._wrapped(name)):
            return self._adapter.tensors.get_finite(self._sources[PREFIX + name])
        module = within[0]
        if self._last[0] != module:
            self._last = (module, self._merge(module))
        return self._last[1][name.removeprefix(f"{module}.")]

    def _wrapped(self, name: str) -> list[str]:
        """Return the modules around a tensor that PEFT has wrapped, the outermost first."""
        parts = name.split(".")
        outer = (".".join(parts[:i]) for i in range(1, len(parts)))
        return [module for module in outer if module in self.modules]

    def _merge(self, name: str) -> dict[str, Tensor]:
        """Read a wrapped module's tensors and let PEFT merge it."""
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
        except Exception as error:  # whatever PEFT has against it
            raise LoraError(
                f"{self._adapter.folder} cannot be merged: PEFT cannot merge it in {name} ({_first(error)})"
            ) from error
        return {key: value.detach() for key, value in merged.state_dict().items()}

    def _whole(self, name: str) -> str | None:
        """Return the adapter's tensor that takes a tensor's place before anything is added."""
        parts = name.split(".")
        paths = [name]
        for i in range(1, len(parts)):
            module, attribute = ".".join(parts[:i]), ".".join(parts[i:])
            paths += (f"{module}.{part}.{attribute}" for part in ("base_layer", _SAVED))
        found = (self._sources.get(PREFIX + path) for path in paths)
        return next((key for key in found if key is not None), None)

    def _check_shape(self, base: Path, name: str, shape: tuple[int, ...]) -> None:
        """Make sure that a tensor that an adapter changes has the shape that the config says."""
        entry = self._weights.tensors.entries.get(name)
        if not self._wrapped(name):
            return
        if entry is None:
            raise LoraError(f"{base} has no {name}, which {self._adapter.folder} changes")
        if entry.shape != shape:
            raise LoraError(
                f"{entry.file}: {entry.stored} has the shape {entry.shape}, but config.json asks "
                f"for {shape}"
            )


def _inject(base: Path, model: Any, adapter: Adapter) -> Any:
    """Let PEFT wrap the modules that the adapter's config names; no weights are made."""
    unknown = adapter.config.keys() - LoraConfig.__dataclass_fields__.keys() - {"runtime_config"}
    reasons = unmergeable(
        {key: value for key, value in adapter.config.items() if key not in _MERGES}, []
    )
    if adapter.config.get("peft_type") != "LORA":
        unknown = set()  # another method's options are no news
    reasons += [
        f"PEFT {peft.__version__} does not know its option {option}={adapter.config[option]!r}"
        for option in sorted(unknown)
        if adapter.config[option]
    ]
    if reasons:
        raise LoraError(f"{adapter.folder} cannot be merged: {'; '.join(reasons)}")
    known: dict[str, Any] = {k: v for k, v in adapter.config.items() if k not in unknown}
    # What its factors begin with is not asked: they are read.
    try:
        config = LoraConfig(**{**known, "init_lora_weights": False, "inference_mode": True})
    except Exception as error:  # whatever PEFT has against it
        raise LoraError(
            f"{adapter.folder / CONFIG} is no config that PEFT takes ({_first(error)})"
        ) from error
    try:
        with torch.device("meta"), warnings.catch_warnings():
            # About ties and transposed layers: both are looked at here.
            warnings.simplefilter("ignore")
            return PeftModel(model, config, autocast_adapter_dtype=False, low_cpu_mem_usage=True)
    except Exception as error:  # whatever PEFT has against it
        raise LoraError(
            f"{adapter.folder} is for another base: PEFT cannot put it on {base} ({_first(error)})"
        ) from error


def _first(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0]


def _sources(base: Path, injected: Any, adapter: Adapter) -> dict[str, str]:
    """Find the place of every tensor of the adapter, and a tensor for every place."""
    state: dict[str, Tensor] = injected.state_dict(keep_vars=True)
    wanted = get_peft_model_state_dict(injected, state_dict=state, save_embedding_layers=False)
    # What is tied has several names.
    places: dict[int, list[str]] = {}
    for name, parameter in state.items():
        places.setdefault(id(parameter), []).append(name)
    found = {}
    entries = adapter.tensors.entries
    for key, entry in entries.items():
        if key not in wanted and key not in state:
            raise LoraError(_misplaced(base, injected, adapter, key))
        place = wanted[key] if key in wanted else state[key]
        if entry.shape != (shape := tuple(place.shape)):
            raise LoraError(
                f"{adapter.folder} is for another base: {key} has the shape {entry.shape}, and "
                f"{base} asks for {shape}"
            )
        found.update(dict.fromkeys(places[id(place)], key))
    if lost := sorted(wanted.keys() - entries.keys()):
        more = f" (and {len(lost) - 1} more)" if len(lost) > 1 else ""
        raise LoraError(
            f"{adapter.folder} is incomplete: it has no {lost[0]}{more}, which its {CONFIG} asks "
            f"for on {base}"
        )
    return found


def _misplaced(base: Path, injected: Any, adapter: Adapter, key: str) -> str:
    """Say why a tensor of the adapter has no place."""
    module = re.split(r"\.lora_|\.base_layer\.|\.weight$|\.bias$", key)[0]
    names: Mapping[str, Any] = dict(injected.named_modules())
    if module not in names:
        return (
            f"{adapter.folder} is for another base: {base} has no {module.removeprefix(PREFIX)} to "
            f"add {key} to"
        )
    return f"{adapter.folder} has {key}, which its {CONFIG} does not ask for on {base}"
