"""A model for each role: PEFT alone on a base of its own, whose memory the roles share.

Adapters of one model are not independent in PEFT. Some change the base's weights as they load (PiSSA,
OLoRA; files with whole embeddings or trained biases), and then every other adapter is computed on what
they left. So each role gets modules of its own around the same tensors. PyTorch copies a tensor when it is
first written to (`Tensor._lazy_clone`): whatever an adapter does to its base, it does to its own copy, and
what it leaves alone is in memory once.
"""

from __future__ import annotations

import copy
import logging
import warnings
from pathlib import Path
from typing import Any

import peft
import torch
from peft import PeftModel
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
from torch import Tensor, nn

log = logging.getLogger(__name__)


def adapted(base: nn.Module, folder: Path, name: str) -> tuple[PeftModel, list[str]]:
    """Load an adapter on a base of its own. Memory: the adapter, and what it changes of the base.

    Args:
        base: a model of transformers. It stays as it is, whatever the adapter does.
        folder: the adapter's.
        name: what to call the adapter.

    Returns:
        PEFT's model, and the names of the base's tensors that it has changed copies of.

    Raises:
        ValueError: a tensor of the file has no place in the base, or a place has no tensor.
        Exception: whatever PEFT raises on a bad adapter.
    """
    own, tensors = _copied(base)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            # Without autocast_adapter_dtype=False, PEFT would turn half precision into fp32.
            model = PeftModel.from_pretrained(
                own, folder, adapter_name=name, autocast_adapter_dtype=False
            )
        except KeyError as error:
            raise ValueError(f"it has no {error.args[0]}, which the base needs") from error
        _check(model, folder, name)
    for warning in said:
        if not issubclass(warning.category, FutureWarning | DeprecationWarning):
            log.warning("PEFT says of the %s adapter: %s", name, warning.message)
    names = {id(tensor): name for name, tensor in _tensors(base).items()}
    present = {id(tensor) for tensor in _tensors(model).values()}
    changed = []
    for theirs, ours in tensors:
        if id(ours) in present and _same(theirs, ours):
            ours.data = theirs.data
        else:
            changed.append(names[id(theirs)])
    return model.eval(), changed


def _copied(base: nn.Module) -> tuple[Any, list[tuple[Tensor, Tensor]]]:
    """Copy a model's modules; its tensors are copied when they are first written to.

    Returns:
        the copy, and the base's tensors beside those of the copy.
    """
    memo: dict[int, Any] = {}
    pairs: list[tuple[Tensor, Tensor]] = []
    for tensor in _tensors(base).values():
        ours = _lazy_clone(tensor)
        if isinstance(tensor, nn.Parameter):
            # Of a quantised parameter too, whose type and further state stay.
            data, ours = ours, copy.copy(tensor)
            ours.requires_grad_(False)
            ours.data = data
            if (state := getattr(tensor, "quant_state", None)) is not None:
                memo[id(state)] = state
        memo[id(tensor)] = ours
        pairs.append((tensor, ours))
    return copy.deepcopy(base, memo), pairs


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers, each once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _lazy_clone(tensor: Tensor) -> Tensor:
    if tensor.device.type == "meta":
        return tensor.detach()
    try:
        return tensor.detach()._lazy_clone()
    except RuntimeError:
        # Memory that is not PyTorch's own, as a mapped file, has to be copied first, once.
        tensor.data = tensor.data.clone()
        return tensor.detach()._lazy_clone()


def _same(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    # Neither `data_ptr` nor anything else that might write: it would make a copy.
    address: Any = torch._C._data_address  # type: ignore[attr-defined]  # torch does not type it
    if address(one) == address(other):
        return True
    return torch.equal(one, other)


def _check(model: PeftModel, folder: Path, name: str) -> None:
    """Make sure that every tensor of the file found its place, and every place its tensor."""
    if model.peft_config[name].is_prompt_learning:
        return  # its tensors belong to no module
    given = peft.load_peft_weights(str(folder), device="cpu")
    report: Any = peft.set_peft_model_state_dict(model, given, adapter_name=name)

    def plain(key: str) -> str:
        return f"{key}.".replace(f".{name}.", ".").removesuffix(".")

    if odd := sorted(map(plain, report.unexpected_keys)):
        raise ValueError(f"the base has no place for {odd[0]}")
    # Some methods name a tensor more than once, and save it under one of its names, or make it anew.
    kind: Any = model.peft_config[name].peft_type
    prefix = PEFT_TYPE_TO_PREFIX_MAPPING.get(kind, "")
    state = model.state_dict()
    there = {state[key].data_ptr() for key in state.keys() - set(report.missing_keys)}
    for key in sorted(report.missing_keys):
        if plain(key) != key and prefix in key and state[key].data_ptr() not in there:
            raise ValueError(f"it has no {plain(key)}, which the base needs")
