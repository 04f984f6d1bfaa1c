"""A CUDA device that a CPU simulates, so that tests run what only CUDA runs.

A tensor of the device holds one of the CPU, and says that it is on ``cuda:0``. What a real device would refuse, this one
refuses too: operations on tensors of host and device together, and whatever makes the host wait while a CUDA graph is
captured. Copies to the host that need not be waited for arrive only when they are waited for. A captured graph repeats
its operations in the memory in which they were captured.

Not simulated: kernels (`worker.engine.cuda.torch_ops` computes), streams that run beside each other, and memory that a
graph uses for several tensors.
"""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any, Self

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from worker.engine.batching import runner_setup
from worker.engine.cuda import requirements, torch_ops

DEVICE = torch.device("cuda", 0)
GB = 2**30
#: Operations whose result the host reads, and operations whose result's size the host must read.
READS = {"_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select", "_unique2"}


class RefusedError(AssertionError):
    """What a real device would refuse."""


class DeviceTensor(torch.Tensor):
    """A tensor on the simulated device."""

    value: Tensor

    @staticmethod
    def __new__(cls, value: Tensor) -> Self:
        with torch.inference_mode(False):  # views of other tensors are made in inference mode, too
            made: Self = torch.Tensor._make_wrapper_subclass(
                cls,
                value.shape,
                strides=value.stride(),
                storage_offset=value.storage_offset(),
                dtype=value.dtype,
                device=DEVICE,
                requires_grad=False,
            )
        made.value = value
        CARD.count(made)
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch says that it is none
        cls, function: Any, _types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return CARD.execute(function, args, kwargs or {})

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            copied: Tensor = DeviceTensor(self.value.clone())
            is_parameter = isinstance(self, nn.Parameter)
            memo[id(self)] = nn.Parameter(copied, requires_grad=False) if is_parameter else copied
        return memo[id(self)]  # type: ignore[no-any-return]  # what was put there

    def __repr__(self) -> str:  # type: ignore[override]  # torch has an argument
        return f"DeviceTensor({self.value!r})"


class Card:
    """The device: its memory, the capture that is under way, and copies to the host that are."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.fraction = 1.0
        self.allocated = self.peak = 0
        self._uses: Counter[int] = Counter()
        #: The operations of the capture that is under way.
        self.capture: list[tuple[Any, Any, Any, Any]] | None = None
        self._copies: list[tuple[Tensor, Tensor]] = []
        #: Times that the host waited for the device, by operation.
        self.waits: Counter[str] = Counter()
        #: Times that a graph was replayed.
        self.replays = 0

    def count(self, tensor: DeviceTensor) -> None:
        """Count a tensor's memory until the last tensor that shares it is gone."""
        storage = tensor.value.untyped_storage()
        key, size = storage.data_ptr(), storage.nbytes()
        self._uses[key] += 1
        if self._uses[key] == 1:
            self.allocated += size
            self.peak = max(self.peak, self.allocated)
        weakref.finalize(tensor, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._uses[key] -= 1
        if not self._uses[key]:
            self.allocated -= size

    def wait(self, why: str) -> None:
        """Make the host wait for the device."""
        if self.capture is not None:
            raise RefusedError(f"{why} waits for the device while a graph is captured")
        self.waits[why] += 1
        with torch.inference_mode():  # the copies are of tensors that were made in it
            for target, values in self._copies:
                target.copy_(values)
        self._copies.clear()

    def execute(self, function: Any, args: Any, kwargs: Any) -> Any:
        """Run an operation on tensors of host and device as the device would, or refuse it."""
        name = function.overloadpacket.__name__
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        own = [tensor for tensor in tensors if isinstance(tensor, DeviceTensor)]
        target = kwargs.get("device")
        to_device = torch.device(target).type == "cuda" if target is not None else bool(own)
        if not own and not to_device:
            return function(*args, **kwargs)
        if name == "copy_":
            return self.copy(*args, **kwargs)
        if name == "_to_copy" and own and not to_device:
            self.wait("a copy to the host")
        elif name == "_to_copy" and not own and to_device:
            self._from_host(args[0], bool(kwargs.get("non_blocking")))
        elif name in READS and own:
            self.wait(name)
        elif own and name != "_to_copy":
            self._check_devices(name, tensors)
        plain_args, plain_kwargs = tree_map(_plain, (args, kwargs))
        if "device" in plain_kwargs and to_device:
            plain_kwargs["device"] = torch.device("cpu")
        plain_kwargs.pop("pin_memory", None)
        result = function(*plain_args, **plain_kwargs)
        if not to_device or name == "_local_scalar_dense":
            return result
        if self.capture is not None:
            self.capture.append((function, plain_args, plain_kwargs, result))
        known = {id(tensor.value): tensor for tensor in own}

        def on_device(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            return known[id(leaf)] if id(leaf) in known else DeviceTensor(leaf)

        return tree_map(on_device, result)

    def index(self, function: Any, tensor: Tensor, index: Any, *values: Any) -> Any:
        """Read or write a part of a tensor."""
        if not isinstance(tensor, DeviceTensor):
            return function(tensor, index, *values)
        indices = [leaf for leaf in tree_leaves(index) if isinstance(leaf, Tensor)]
        if any(leaf.dtype is torch.bool for leaf in indices):
            self.wait("a mask as an index")
        if any(not isinstance(leaf, DeviceTensor) for leaf in indices):
            self.wait("an index of the host")
        if any(
            isinstance(v, Tensor) and not isinstance(v, DeviceTensor) and v.dim() for v in values
        ):
            raise RefusedError("a part of a tensor of the device, set to values of the host")
        plain = tree_map(_plain, (tensor, index, *values))
        result = function(*plain)
        if self.capture is not None:
            self.capture.append((function, plain, {}, result))
        return None if result is None else DeviceTensor(result)

    def _check_devices(self, name: str, tensors: list[Tensor]) -> None:
        if any(not isinstance(tensor, DeviceTensor) and tensor.dim() for tensor in tensors):
            raise RefusedError(f"{name} of tensors on the host and on the device")

    def copy(self, target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        if isinstance(target, DeviceTensor):
            if not isinstance(source, DeviceTensor):
                self._from_host(source, non_blocking)
            value = _plain(source)
            target.value.copy_(value)
            if self.capture is not None:
                copy = torch.ops.aten.copy_.default
                self.capture.append((copy, (target.value, value), {}, target.value))
        elif non_blocking and target in PINNED:
            self._copies.append((target, source.value.clone()))  # type: ignore[attr-defined]  # it is the device's
            target.fill_(-(2**40))  # what nobody may read
        else:
            self.wait("a copy to the host")
            target.copy_(source.value)  # type: ignore[attr-defined]  # likewise
        return target

    def _from_host(self, source: Tensor, non_blocking: bool) -> None:
        if (source not in PINNED and source.dim()) or not non_blocking:
            self.wait("a copy of memory that is not pinned")


class _Identities:
    """A set of tensors, by identity."""

    def __init__(self) -> None:
        self._keys: set[int] = set()

    def add(self, tensor: Tensor) -> Tensor:
        key = id(tensor)
        self._keys.add(key)
        weakref.finalize(tensor, self._keys.discard, key)
        return tensor

    def __contains__(self, tensor: Tensor) -> bool:
        return id(tensor) in self._keys


PINNED = _Identities()
#: The one that was installed last.
CARD = Card(0)


def _plain(leaf: Any) -> Any:
    return leaf.value if isinstance(leaf, DeviceTensor) else leaf


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types there
    """Hands the device what makes tensors on it, and whatever else runs on this thread."""

    def __torch_dispatch__(
        self, function: Any, _types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return CARD.execute(function, args, kwargs or {})


class _Calls(TorchFunctionMode):
    """Replaces what PyTorch does with a real device before it comes to an operation."""

    def __torch_function__(
        self, function: Any, _types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
            return CARD.index(function, *args)
        if function is torch.Tensor.copy_ and any(isinstance(arg, DeviceTensor) for arg in args):
            return CARD.copy(*args, **kwargs)
        if function is torch.Tensor.contiguous and isinstance(args[0], DeviceTensor):
            return (
                args[0]
                if args[0].is_contiguous()
                else args[0].clone(memory_format=torch.contiguous_format)
            )
        if function is torch.Tensor.__invert__:
            return torch.bitwise_not(args[0])
        device = kwargs.get("device")
        if function is torch.tensor and device is not None and torch.device(device).type == "cuda":
            kwargs.pop("device")
            return torch.tensor(*args, **kwargs).to(DEVICE)
        if function is torch.Tensor.pin_memory:
            return PINNED.add(args[0].clone())
        if kwargs.pop("pin_memory", False):
            return PINNED.add(function(*args, **kwargs))
        return function(*args, **kwargs)


class _Active(threading.local):
    count = 0


_ACTIVE = _Active()


@contextmanager
def active(_device: object = None) -> Iterator[None]:
    """Simulate the device on this thread: stands for `torch.cuda.device` as well."""
    with ExitStack() as stack:
        if not _ACTIVE.count:
            stack.enter_context(_Calls())
            stack.enter_context(_Operations())  # type: ignore[no-untyped-call]  # torch has no types there
        _ACTIVE.count += 1
        try:
            yield
        finally:
            _ACTIVE.count -= 1


class _Event:
    def __init__(self, **_: Any) -> None:
        self._recorded = False

    def record(self) -> None:
        self._recorded = True

    def synchronize(self) -> None:
        assert self._recorded
        CARD.wait("an event")

    def elapsed_time(self, _end: _Event) -> float:
        return 1.0


class _Stream:
    def wait_stream(self, _stream: _Stream) -> None:
        pass


class _Graph:
    def __init__(self) -> None:
        self.operations: list[tuple[Any, Any, Any, Any]] = []

    def pool(self) -> str:
        return "pool"

    def replay(self) -> None:
        CARD.replays += 1
        for function, args, kwargs, before in self.operations:
            taken = {
                t.untyped_storage().data_ptr()
                for t in tree_leaves((args, kwargs))
                if isinstance(t, Tensor)
            }
            after = function(*args, **kwargs)
            for old, new in zip(tree_leaves(before), tree_leaves(after), strict=True):
                # Views are still those of what was computed, and what was written to is written to.
                if isinstance(old, Tensor) and new.untyped_storage().data_ptr() not in taken:
                    old.copy_(new)


@contextmanager
def _capturing(
    graph: _Graph, *, pool: object, stream: _Stream, capture_error_mode: str
) -> Iterator[None]:
    del pool, stream
    assert capture_error_mode == "thread_local"
    CARD.wait("the begin of a capture")
    CARD.capture = graph.operations
    try:
        yield
    finally:
        CARD.capture = None


@contextmanager
def _on_stream(_stream: object) -> Iterator[None]:
    yield


def install(patch: pytest.MonkeyPatch, total: int = 80 * GB) -> Card:
    """Give the machine the device, in the place of `torch.cuda`'s functions."""
    global CARD
    card = CARD = Card(total)

    def set_fraction(fraction: float, _device: object) -> None:
        assert isinstance(fraction, float)
        card.fraction = fraction

    functions: dict[str, Callable[..., Any]] = {
        "_lazy_init": lambda: None,
        "current_device": lambda: 0,
        "current_stream": _Stream,
        "device": active,
        "device_count": lambda: 1,
        "empty_cache": lambda: None,
        "get_device_capability": lambda _: (9, 0),
        "get_device_name": lambda _: "simulated",
        "get_device_properties": lambda _: SimpleNamespace(total_memory=card.total),
        "get_per_process_memory_fraction": lambda _: card.fraction,
        "graph": _capturing,
        "is_available": lambda: True,
        "max_memory_allocated": lambda _: card.peak,
        "mem_get_info": lambda _: (card.total - card.allocated, card.total),
        "memory_allocated": lambda _: card.allocated,
        "memory_reserved": lambda _: card.allocated,
        "reset_peak_memory_stats": lambda _: setattr(CARD, "peak", card.allocated),
        "set_per_process_memory_fraction": set_fraction,
        "stream": _on_stream,
        "synchronize": lambda _=None: card.wait("synchronize"),
        "utilization": lambda _: 50,
        "CUDAGraph": _Graph,
        "Event": _Event,
        "Stream": _Stream,
    }
    for name, function in functions.items():
        patch.setattr(torch.cuda, name, function)
    # Otherwise a parameter keeps its type, and gets what the device's tensor says of itself.
    patch.setattr(torch.__future__, "get_overwrite_module_params_on_conversion", lambda: True)
    patch.setattr(requirements, "check", lambda _: None)
    patch.setattr(runner_setup, "ops_for", lambda _: torch_ops)
    return card
