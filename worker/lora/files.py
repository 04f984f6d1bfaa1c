"""Read and write checkpoints in the safetensors format, one tensor at a time."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self
from uuid import uuid4

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from worker.lora import LoraError

#: PyTorch dtypes by their names in the safetensors format.
FLOAT_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
DTYPE_NAMES = {dtype: name for name, dtype in FLOAT_DTYPES.items()}
#: Files of a model's weights, with the names that transformers has for them.
SAFE_WEIGHTS_NAME = "model.safetensors"
SAFE_WEIGHTS_INDEX_NAME = "model.safetensors.index.json"
#: A folder with one of these is a checkpoint. ``--force`` replaces no other folder.
CONFIG_NAMES = ("config.json", "adapter_config.json")


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


def open_checkpoint(folder: Path) -> Tensors:
    """Open the tensors that transformers reads for a model, by their names in the files.

    Raises:
        LoraError: there are no weights, a file is missing or damaged, or transformers would not read
            safetensors.
    """
    files, weight_map = weight_files(folder)
    tensors = Tensors(files)
    if missing := sorted(weight_map.keys() - tensors.entries.keys()):
        raise LoraError(
            f"{folder / weight_map[missing[0]]} has no {missing[0]}, which the index in {folder} lists"
        )
    return tensors


def weight_files(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """Find the files that transformers' ``from_pretrained`` reads.

    In order of precedence: the file that the config's ``transformers_weights`` names; `SAFE_WEIGHTS_NAME`, even with a
    `SAFE_WEIGHTS_INDEX_NAME` beside it; all files that the index names, with all tensors in them.

    Returns:
        the files, and the index's ``weight_map``, which is empty if no index is read.

    Raises:
        LoraError: there are no weights, a file is missing, or transformers would not read safetensors.
    """
    if (folder / "adapter_config.json").is_file():
        raise LoraError(
            f"{folder} has an adapter_config.json, so transformers adds that adapter to the model when "
            "it loads it; give a folder with a model alone"
        )
    if any(folder.glob("*.distcp")):
        raise LoraError(
            f"{folder} is a distributed checkpoint of PyTorch; load it with transformers and save it "
            "again, which writes safetensors"
        )
    name = read_json(folder / "config.json").get("transformers_weights")
    if name is None:
        name = next(
            (n for n in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME) if (folder / n).is_file()),
            None,
        )
    if name is None:
        if pickles := sorted(file.name for file in folder.glob("pytorch_model*.bin")):
            raise LoraError(
                f"{folder} has its weights in a pickle, {pickles[0]}; load it with transformers and "
                "save it again, which writes safetensors"
            )
        raise LoraError(
            f"there is no {folder / SAFE_WEIGHTS_NAME}; give a folder with a model as safetensors files"
        )
    if not str(name).endswith(".index.json"):
        return [_require_file(folder / str(name), "config.json")], {}
    shards = read_json(folder / str(name)).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise LoraError(f"{folder / str(name)} has no weight_map")
    return [
        _require_file(folder / shard, str(name)) for shard in sorted(set(shards.values()))
    ], shards


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        LoraError: the file cannot be read, or is not a JSON object.
    """
    try:
        content = json.loads(file.read_text())
    except OSError as error:
        raise LoraError(f"{file} cannot be read ({_reason(error)})") from error
    except (ValueError, RecursionError) as error:
        raise LoraError(f"{file} is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise LoraError(f"{file} is not a JSON object")
    return content


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object with sorted keys.

    Raises:
        LoraError: the file cannot be written.
    """
    with explain_write_errors(file):
        file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


@contextmanager
def new_folder(path: Path, *, force: bool = False) -> Iterator[Path]:
    """Make a folder that appears at ``path`` only when it is complete and on the disk.

    The body writes into a hidden folder beside ``path``, which is renamed to ``path`` at the end. If
    the body fails, the hidden folder is removed.

    Args:
        path: the folder to make. Its parents are made too.
        force: replace an existing folder, if it holds a model or an adapter.

    Raises:
        LoraError: ``path`` exists and may not be replaced, or the folder cannot be written.
    """
    path = path.resolve()
    exists = _check_replaceable(path, force=force)
    part = path.with_name(f".{path.name}.{uuid4().hex[:8]}.part")
    try:
        with explain_write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            part.mkdir()
        yield part
        with explain_write_errors(path):
            for file in part.iterdir():
                fsync(file)
            fsync(part)
            if exists:
                # Two renames, since there is no portable way to swap folders atomically.
                old = part.with_suffix(".old")
                path.rename(old)
                try:
                    part.rename(path)
                except BaseException:
                    old.rename(path)
                    raise
                shutil.rmtree(old)
            else:
                part.rename(path)
            fsync(path.parent)
    except LoraError as error:
        # Name the folder that the user asked for, not the hidden one.
        raise LoraError(str(error).replace(str(part), str(path))) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Make a file that appears at ``path`` only when it is complete; see `new_folder`."""
    part = path.with_name(f".{path.name}.{uuid4().hex[:8]}.part")
    try:
        yield part
        with explain_write_errors(path):
            fsync(part)
            part.replace(path)
            fsync(path.parent)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def explain_write_errors(what: object) -> Iterator[None]:
    """Raise an `OSError` as a `LoraError` that says that ``what`` cannot be written."""
    try:
        yield
    except OSError as error:
        raise LoraError(
            f"{what} cannot be written ({_reason(error)}); nothing was left behind"
        ) from error


class SafetensorsWriter:
    """Writes a safetensors file tensor by tensor, which the safetensors library cannot do.

    The format (https://huggingface.co/docs/safetensors): the header's length in eight bytes, little
    endian; the header, which is JSON padded with spaces; the tensors' bytes without gaps. The header
    has shapes and dtypes alone, so it can be written first.
    """

    def __init__(self, file: Path, layout: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
        """Open the file and write its header.

        Args:
            file: the file to write.
            layout: for each tensor, the dtype's name in the safetensors format, and the shape.
        """
        self._file = file
        # With wide dtypes first, every tensor is aligned without gaps.
        order = sorted(layout, key=lambda name: (-_itemsize(layout[name][0]), name))
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        self._offsets: dict[str, tuple[int, int]] = {}
        at = 0
        for name in order:
            dtype, shape = layout[name]
            end = at + torch.Size(shape).numel() * _itemsize(dtype)
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
            self._offsets[name] = (at, end)
            at = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._start = 8 + len(text)
        with explain_write_errors(file):
            self._stream: IO[bytes] = file.open("wb")
        with explain_write_errors(file):
            self._stream.write(len(text).to_bytes(8, "little") + text)

    def write(self, name: str, tensor: Tensor) -> None:
        """Write a tensor, which must have the dtype and shape that the layout gives for it."""
        at, end = self._offsets.pop(name)
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        assert data.nbytes == end - at, name  # noqa: S101 (the header is already written)
        with explain_write_errors(f"{self._file}: {name}"):
            self._stream.seek(self._start + at)
            self._stream.write(data.data)
            # A full disk would otherwise be reported for a later tensor.
            self._stream.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error_type: object, *_: object) -> None:
        try:
            with explain_write_errors(self._file):
                self._stream.close()
        except LoraError:
            if not error_type:
                raise  # otherwise `write` has reported it, with the tensor's name
        # A tensor that was not written would read as zeros.
        assert error_type or not self._offsets, self._offsets  # noqa: S101 (a bug, not bad input)


def fsync(path: Path) -> None:
    """Flush a file, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _open_safetensors(file: Path) -> Iterator[Any]:
    """Open a safetensors file. The library's handle has no type."""
    try:
        with safe_open(file, framework="pt") as tensors:
            yield tensors
    except (SafetensorError, OSError) as error:
        raise LoraError(f"{file} cannot be read ({_reason(error)}); fetch it again") from error


def _require_file(file: Path, index: str) -> Path:
    if not file.is_file():
        raise LoraError(f"there is no {file}, which {index} names; fetch it again")
    return file


def _check_replaceable(path: Path, *, force: bool) -> bool:
    """Return whether there is a folder to replace; raise `LoraError` if it may not be replaced."""
    if not path.exists():
        return False
    try:
        if not any(path.iterdir()):
            return False
    except OSError as error:
        raise LoraError(f"{path} cannot be the output folder ({_reason(error)})") from error
    if not force:
        raise LoraError(f"{path} exists and is not empty; name another folder, or use --force")
    if not any((path / name).is_file() for name in CONFIG_NAMES):
        raise LoraError(
            f"{path} holds neither a model nor an adapter, so --force does not replace it"
        )
    return True


def _itemsize(dtype: str) -> int:
    """Return the bytes of one value."""
    bits = "".join(c for c in dtype.partition("_")[0] if c.isdigit())
    return 1 if dtype == "BOOL" else int(bits) // 8


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
