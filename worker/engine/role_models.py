"""Loads a PEFT model for each role, on bases that share memory.

Adapters of one PEFT model are not independent. Some change the base's weights when they are loaded (PiSSA,
OLoRA; files with whole embeddings or trained biases), and every other adapter would be computed on the
changed weights. So each role gets modules of its own around the same tensors. PyTorch copies a tensor when
it is first written to (`Tensor._lazy_clone`): an adapter changes its own copy of the base, and what it does
not change is in memory once.

`_lazy_clone` and `_data_address` are not public, and PyTorch has no public equivalent: copy-on-write mappings
of files exist on a CPU alone, and version counters miss what is written through `data`. With a PyTorch
without them, the whole base is copied while an adapter loads, and compared afterwards.
"""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft
import torch
from peft import PeftModel
from torch import Tensor, nn

log = logging.getLogger(__name__)

_CLONE: Any = getattr(Tensor, "_lazy_clone", None)
_ADDRESS: Any = getattr(torch._C, "_data_address", None) if _CLONE else None


#: Options of a LoRA that has only tensors that are in its file. Others may need some that PEFT computes.
_PLAIN_OPTIONS = {
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "exclude_modules",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "target_modules",
    "task_type",
    "use_rslora",
}


def load_adapter(base: Any, folder: Path, adapter_name: str) -> tuple[PeftModel, list[str]]:
    """Load an adapter on a base of its own. It takes memory for the adapter and for changed tensors.

    Args:
        base: a model of transformers. It stays as it is, whatever the adapter does.
        folder: the adapter's.
        adapter_name: the name of the adapter in PEFT.

    Returns:
        the PEFT model, and the names of the base's tensors of which it has changed copies.

    Raises:
        ValueError: a tensor of the file has no place in the base, or the base lacks one.
        Exception: whatever PEFT raises on a bad adapter.
    """
    own_base, pairs = _copy_on_write(base)
    with warnings.catch_warnings(record=True) as caught_warnings:
        warnings.simplefilter("always")
        try:
            # Without autocast_adapter_dtype=False, PEFT would turn half precision into fp32.
            model = PeftModel.from_pretrained(
                own_base,
                folder,
                adapter_name=adapter_name,
                autocast_adapter_dtype=False,
                # PEFT would draw random numbers first, which takes seconds for those of a 7B model.
                low_cpu_mem_usage=_is_plain_lora(folder),
                torch_device=str(base.device),
            )
        except KeyError as error:
            raise ValueError(f"it has no {error.args[0]}, which the base needs") from error
        with _keep_adalora_ranks(model.peft_config[adapter_name]):
            _check_tensors(model, folder, adapter_name)
    for warning in caught_warnings:
        if not issubclass(warning.category, FutureWarning | DeprecationWarning):
            log.warning("PEFT warns of the %s adapter: %s", adapter_name, warning.message)
    names = {id(tensor): name for name, tensor in _tensors(base).items()}
    in_use = {id(tensor) for tensor in _tensors(model).values()}
    changed = []
    for original, own in pairs:
        if id(own) in in_use and _is_equal(original, own):
            own.data = original.data
        else:
            changed.append(names[id(original)])
    return model.eval(), changed


def own_tensors(base: nn.Module, model: PeftModel) -> dict[str, Tensor]:
    """Return a model's tensors, by name, that it does not share with the base it was loaded on."""
    shared = {_address(tensor) for tensor in _tensors(base).values()}
    return {n: tensor for n, tensor in _tensors(model).items() if _address(tensor) not in shared}


def _is_plain_lora(folder: Path) -> bool:
    """Return whether an adapter's file has all of its tensors, and no others are computed as it is loaded."""
    try:
        config = json.loads((folder / "adapter_config.json").read_text())
        other_options = {option for option, value in config.items() if value} - _PLAIN_OPTIONS
        return (
            config["peft_type"] == "LORA"
            and config.get("init_lora_weights", True) is True
            and config.get("bias", "none") == "none"
            and not other_options
        )
    except (OSError, ValueError, KeyError, AttributeError):
        return False  # PEFT says what is wrong


def _copy_on_write(base: nn.Module) -> tuple[Any, list[tuple[Tensor, Tensor]]]:
    """Copy a model's modules; its tensors are copied when they are first written to.

    Returns:
        the copy, and pairs of the base's tensors and those of the copy.
    """
    memo: dict[int, Any] = {}
    pairs: list[tuple[Tensor, Tensor]] = []
    for tensor in _tensors(base).values():
        own = _lazy_clone(tensor)
        if isinstance(tensor, nn.Parameter):
            # A quantized parameter, too, keeps its type and its other state.
            data, own = own, copy.copy(tensor)
            own.requires_grad_(False)
            own.data = data
            if (state := getattr(tensor, "quant_state", None)) is not None:
                memo[id(state)] = state
        memo[id(tensor)] = own
        pairs.append((tensor, own))
    return copy.deepcopy(base, memo), pairs


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers, each once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _lazy_clone(tensor: Tensor) -> Tensor:
    if tensor.device.type == "meta":
        return tensor.detach()
    if _CLONE is None:
        return tensor.detach().clone()
    try:
        clone: Tensor = _CLONE(tensor.detach())
    except RuntimeError:
        # Memory that PyTorch does not own, such as a mapped file, must be copied once.
        tensor.data = tensor.data.clone()
        clone = _CLONE(tensor.detach())
    return clone


def _is_equal(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return _address(a) == _address(b) or torch.equal(a, b)


def _address(tensor: Tensor) -> int:
    """Return the address of a tensor's values, without triggering a lazy clone's copy."""
    # `data_ptr` may be used to write, so it triggers the copy. Without lazy clones there is none.
    return int((_ADDRESS or Tensor.data_ptr)(tensor))


@contextmanager
def _keep_adalora_ranks(config: Any) -> Iterator[None]:
    """Keep PEFT from pruning an AdaLoRA's ranks to its rank pattern a second time."""
    pattern = getattr(config, "rank_pattern", None)
    if config.peft_type == "ADALORA":
        config.rank_pattern = None
    yield
    if config.peft_type == "ADALORA":
        config.rank_pattern = pattern


def _check_tensors(model: PeftModel, folder: Path, adapter_name: str) -> None:
    """Check that every tensor of the file was loaded, and that the file has every tensor it should.

    Raises:
        ValueError: one is missing, or has no place in the base.
    """
    if model.peft_config[adapter_name].is_prompt_learning:
        return  # its tensors belong to no module
    weights = peft.load_peft_weights(str(folder), device="cpu")
    # What PEFT would save of the model, without embeddings, for which it has rules of its own.
    expected = peft.get_peft_model_state_dict(
        model, adapter_name=adapter_name, save_embedding_layers=False
    )
    for key in sorted(weights.keys() - expected.keys()):
        # Saved without PEFT, as the state dict of the whole model. Its keys would match by chance if the
        # adapter was trained under the name that it has here.
        parts = key.split(".")
        for i, part in enumerate(parts):
            if ".".join(parts[:i] + parts[i + 1 :]) in expected:
                raise ValueError(
                    f"{key} has one part too many, {part}, which looks like an adapter's name; save the "
                    "adapter with PEFT's save_pretrained"
                )
    if _is_plain_lora(folder) and weights.keys() == expected.keys():
        return  # and PEFT has loaded each under its name
    report: Any = peft.set_peft_model_state_dict(model, weights, adapter_name=adapter_name)

    def without_name(key: str) -> str:
        return f"{key}.".replace(f".{adapter_name}.", ".").removesuffix(".")

    if unexpected := sorted(map(without_name, report.unexpected_keys)):
        raise ValueError(f"the base has no place for {unexpected[0]}")
    # Some methods have a tensor under several names and save it under one, or create it anew.
    loaded = {_address(expected[key]) for key in weights.keys() & expected.keys()}
    for key in sorted(expected.keys() - weights.keys()):
        if _address(expected[key]) not in loaded:
            raise ValueError(f"it has no {key}, which the base needs")
