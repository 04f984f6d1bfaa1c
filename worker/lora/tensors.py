"""Tensors of checkpoints, by name. They are read from safetensors files one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from worker.lora import LoraError
from worker.lora.files import error_reason

#: PyTorch dtypes by their names in the safetensors format.
FLOAT_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
DTYPE_NAMES = {dtype: name for name, dtype in FLOAT_DTYPES.items()}


@dataclass(frozen=True)
class TensorInfo:
    """A tensor's description in the header of its file."""

    file: Path
    #: Name of the dtype in the safetensors format.
    dtype: str
    shape: tuple[int, ...]
    #: Name of the tensor in its file.
    stored_name: str


class Tensors:
    """The tensors of safetensors files, by name. They stay on the disk."""

    def __init__(self, files: list[Path]) -> None:
        """Read the headers.

        Args:
            files: the files. The last file that has a name counts, as in transformers.

        Raises:
            LoraError: a file is missing or truncated, or is not a safetensors file.
        """
        self.entries: dict[str, TensorInfo] = {}
        for file in files:
            with _open_safetensors(file) as tensors:
                for name in tensors.keys():  # noqa: SIM118 (it is no mapping)
                    view = tensors.get_slice(name)
                    shape = tuple(view.get_shape())
                    self.entries[name] = TensorInfo(file, view.get_dtype(), shape, name)

    def get(self, name: str) -> Tensor:
        """Read a tensor in its stored dtype.

        Raises:
            KeyError: no tensor has this name.
            LoraError: its file cannot be read.
        """
        # Open the file for each tensor: pages of a mapped file count as this process's memory until
        # it is unmapped, and would add up to the whole model.
        entry = self.entries[name]
        with _open_safetensors(entry.file) as tensors:
            tensor: Tensor = tensors.get_tensor(entry.stored_name)
            return tensor

    def get_finite(self, name: str) -> Tensor:
        """Read a tensor as float32.

        Raises:
            LoraError: its file cannot be read, its dtype is not a float dtype, or it has a NaN or an infinity.
        """
        entry = self.entries[name]
        if entry.dtype not in FLOAT_DTYPES:
            raise LoraError(
                f"{entry.file}: {entry.stored_name} has dtype {entry.dtype}, which is quantized or not a float; "
                "give a checkpoint in float32, float16 or bfloat16"
            )
        tensor = self.get(name).float()
        if not is_finite(tensor):
            raise LoraError(f"{entry.file}: {entry.stored_name} has NaN or infinite values")
        return tensor

    def renamed(self, names: Mapping[str, str]) -> Tensors:
        """Return the same tensors under new names.

        Args:
            names: new name -> current name.
        """
        tensors = Tensors([])
        tensors.entries = {new: self.entries[name] for new, name in names.items()}
        return tensors


class InMemoryTensors(Tensors):
    """Tensors of a file in another format, which were loaded whole."""

    def __init__(self, file: Path, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors
        self.entries = {
            name: TensorInfo(
                file, DTYPE_NAMES.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape), name
            )
            for name, tensor in tensors.items()
        }

    def get(self, name: str) -> Tensor:
        return self._tensors[name]


def is_finite(tensor: Tensor) -> Tensor:
    """Return whether all values of a float tensor are finite, as a bool tensor on the same device.

    Checks the minimum and the maximum, which are NaN if any value is. This reads the memory once and
    copies nothing. A sum in float64 would first make a copy of two to four times the size, and takes
    25 times as long on a CPU.
    """
    if tensor.numel() == 0:
        return torch.ones((), dtype=torch.bool, device=tensor.device)
    if tensor.dtype.itemsize < 2:
        tensor = tensor.float()  # PyTorch cannot compare 8-bit floats
    return torch.stack(tensor.detach().aminmax()).isfinite().all()


def find_non_finite(tensors: Tensors) -> str | None:
    """Return a message that names the first tensor with NaN or infinite values and its file, or None.

    Raises:
        LoraError: a tensor cannot be read.
    """
    for name, entry in tensors.entries.items():
        tensor = tensors.get(name)
        if tensor.is_floating_point() and not is_finite(tensor):
            return f"{entry.file}: {entry.stored_name} has NaN or infinite values"
    return None


@contextmanager
def _open_safetensors(file: Path) -> Iterator[Any]:
    """Open a safetensors file. The library's handle has no type."""
    try:
        with safe_open(file, framework="pt") as tensors:
            yield tensors
    except (SafetensorError, OSError) as error:
        raise LoraError(f"{file} cannot be read ({error_reason(error)}); fetch it again") from error
