"""A model for each role: PEFT alone on a base of its own, whose memory the roles share.

Adapters of one model are not independent in PEFT. Some change the base's weights as they load (PiSSA,
OLoRA; files with whole embeddings or trained biases), and then every other adapter is computed on what
they left. So each role gets modules of its own around the same tensors. PyTorch copies a tensor when it is
first written to (`Tensor._lazy_clone`): whatever an adapter does to its base, it does to its own copy, and
what it leaves alone is in memory once.

`_lazy_clone` and `_data_address` are not PyTorch's public interface, which has nothing of the kind: files that
are mapped for copying on write exist on a CPU alone, and version counters miss what is written through `data`.
A PyTorch without them works too. It copies the whole base for the time that an adapter loads, and compares.
"""

from __future__ import annotations

import copy
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
        with _ranks_as_they_are(model.peft_config[name]):
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
    if _CLONE is None:
        return tensor.detach().clone()
    try:
        found: Tensor = _CLONE(tensor.detach())
    except RuntimeError:
        # Memory that is not PyTorch's own, as a mapped file, has to be copied first, once.
        tensor.data = tensor.data.clone()
        found = _CLONE(tensor.detach())
    return found


def _same(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return _address(one) == _address(other) or torch.equal(one, other)


def _address(tensor: Tensor) -> int:
    """Return where a tensor's values are, without making a lazy clone's copy."""
    # `data_ptr` might be used to write, so it makes the copy; without lazy clones there is none to make.
    return int((_ADDRESS or Tensor.data_ptr)(tensor))


@contextmanager
def _ranks_as_they_are(config: Any) -> Iterator[None]:
    """Keep PEFT from cutting an AdaLoRA's ranks down to its pattern a second time."""
    pattern = getattr(config, "rank_pattern", None)
    if config.peft_type == "ADALORA":
        config.rank_pattern = None
    yield
    if config.peft_type == "ADALORA":
        config.rank_pattern = pattern


def _check(model: PeftModel, folder: Path, name: str) -> None:
    """Make sure that every tensor of the file found its place, and every place its tensor."""
    if model.peft_config[name].is_prompt_learning:
        return  # its tensors belong to no module
    given = peft.load_peft_weights(str(folder), device="cpu")
    # What PEFT would save of the model: embeddings apart, which it saves by rules of its own.
    wanted = peft.get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    for key in sorted(given.keys() - wanted.keys()):
        # Saved without PEFT, as a state of the whole model. Its names would be right by chance, if the
        # adapter was trained under the name that it has here.
        parts = key.split(".")
        for i, part in enumerate(parts):
            if ".".join(parts[:i] + parts[i + 1 :]) in wanted:
                raise ValueError(
                    f"{key} has one part too many, {part}, which looks like an adapter's name; save the "
                    "adapter with PEFT's save_pretrained"
                )
    report: Any = peft.set_peft_model_state_dict(model, given, adapter_name=name)

    def plain(key: str) -> str:
        return f"{key}.".replace(f".{name}.", ".").removesuffix(".")

    if odd := sorted(map(plain, report.unexpected_keys)):
        raise ValueError(f"the base has no place for {odd[0]}")
    # Some methods name a tensor more than once, and save it under one of its names, or make it anew.
    there = {_address(wanted[key]) for key in given.keys() & wanted.keys()}
    for key in sorted(wanted.keys() - given.keys()):
        if _address(wanted[key]) not in there:
            raise ValueError(f"it has no {key}, which the base needs")
