"""Checkpoints on disk, one tensor at a time: safetensors read, written, and put in place whole."""

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

#: Dtypes by the names that the safetensors format gives them.
FLOATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
NAMES = {dtype: name for name, dtype in FLOATS.items()}
#: A model's weights in one file; and the list of its files where there are several.
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
#: Files that make a folder a checkpoint: only such a folder is ever replaced.
CONFIGS = ("config.json", "adapter_config.json")


@dataclass(frozen=True)
class Entry:
    """What a file's header says about a tensor."""

    file: Path
    #: As the safetensors format names it.
    dtype: str
    shape: tuple[int, ...]
    #: What its file calls it.
    stored: str


class Tensors:
    """The tensors of some safetensors files, by name; none is held in memory."""

    def __init__(self, files: list[Path]) -> None:
        """Read the headers.

        Args:
            files: the files; of a name that several have, the last file's counts, as in transformers.

        Raises:
            LoraError: a file is missing, truncated or no safetensors file.
        """
        self.entries: dict[str, Entry] = {}
        for file in files:
            with _opened(file) as tensors:
                for name in tensors.keys():  # noqa: SIM118 (it is no mapping)
                    view = tensors.get_slice(name)
                    shape = tuple(view.get_shape())
                    self.entries[name] = Entry(file, view.get_dtype(), shape, name)

    def get(self, name: str) -> Tensor:
        """Read a tensor as it is stored.

        Raises:
            LoraError: there is none of this name, or its file cannot be read.
        """
        # Opened anew each time: pages of a mapped file count as this process's memory until
        # the mapping is gone, and a model's worth of them would add up.
        entry = self.entries[name]
        with _opened(entry.file) as tensors:
            found: Tensor = tensors.get_tensor(entry.stored)
            return found

    def get_finite(self, name: str) -> Tensor:
        """Read a tensor as float32.

        Raises:
            LoraError: also if it has a NaN or an infinity, or is not of a float dtype.
        """
        entry = self.entries[name]
        if entry.dtype not in FLOATS:
            raise LoraError(
                f"{entry.file}: {entry.stored} is of dtype {entry.dtype}, which is quantized or no float; "
                "give a checkpoint in float32, float16 or bfloat16"
            )
        tensor = self.get(name).float()
        if not finite(tensor):
            raise LoraError(f"{entry.file}: {entry.stored} has NaN or infinite values")
        return tensor

    def under(self, names: Mapping[str, str]) -> Tensors:
        """Return the same tensors by other names: the new name -> the present one."""
        found = Tensors([])
        found.entries = {new: self.entries[name] for new, name in names.items()}
        return found


class Held(Tensors):
    """Tensors that are in memory already, of a file in another format."""

    def __init__(self, file: Path, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors
        self.entries = {
            name: Entry(file, NAMES.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape), name)
            for name, tensor in tensors.items()
        }

    def get(self, name: str) -> Tensor:
        return self._tensors[name]


def finite(tensor: Tensor) -> Tensor:
    """Whether all values of a tensor of floats are finite: a flag, where the tensor is.

    The smallest and the largest value tell: either is NaN where any value is. One pass over the memory
    and no copy. A sum in float64 makes a copy of twice to four times the size first, and on a CPU takes
    25 times as long.
    """
    if tensor.numel() == 0:
        return torch.ones((), dtype=torch.bool, device=tensor.device)
    if tensor.dtype.itemsize < 2:
        tensor = tensor.float()  # of 8 bits, which PyTorch cannot compare
    return torch.stack(tensor.detach().aminmax()).isfinite().all()


def not_finite(tensors: Tensors) -> str | None:
    """Name the first tensor that has NaN or infinite values, and its file.

    Raises:
        LoraError: a tensor cannot be read.
    """
    for name, entry in tensors.entries.items():
        tensor = tensors.get(name)
        if tensor.is_floating_point() and not finite(tensor):
            return f"{entry.file}: {entry.stored} has NaN or infinite values"
    return None


def open_checkpoint(folder: Path) -> Tensors:
    """Open the tensors that transformers reads for a model, by the names that its files give them.

    Raises:
        LoraError: there are none, one is missing or damaged, or transformers reads something else
            than safetensors.
    """
    files, named = weight_files(folder)
    tensors = Tensors(files)
    if lost := sorted(named.keys() - tensors.entries.keys()):
        raise LoraError(
            f"{folder / named[lost[0]]} has no {lost[0]}, though {folder}'s index says so"
        )
    return tensors


def weight_files(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """Find the files that transformers' ``from_pretrained`` reads, in its order.

    That is the file that the config's ``transformers_weights`` names; else `SINGLE`, even if there is
    an `INDEX` beside it; else every file that the index names, with all tensors that are in them.

    Returns:
        the files, and the index's ``weight_map``: empty where none is read.

    Raises:
        LoraError: there are none, one is missing, or transformers would read something else.
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
        name = next((n for n in (SINGLE, INDEX) if (folder / n).is_file()), None)
    if name is None:
        if pickles := sorted(file.name for file in folder.glob("pytorch_model*.bin")):
            raise LoraError(
                f"{folder} has its weights in a pickle, {pickles[0]}; load it with transformers and "
                "save it again, which writes safetensors"
            )
        raise LoraError(
            f"there is no {folder / SINGLE}; give a folder with a model as safetensors files"
        )
    if not str(name).endswith(".index.json"):
        return [_existing(folder / str(name), "config.json")], {}
    shards = read_json(folder / str(name)).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise LoraError(f"{folder / str(name)} has no weight_map")
    return [_existing(folder / shard, str(name)) for shard in sorted(set(shards.values()))], shards


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        LoraError: it is not there, or is none.
    """
    try:
        found = json.loads(file.read_text())
    except OSError as error:
        raise LoraError(f"{file} cannot be read ({_reason(error)})") from error
    except (ValueError, RecursionError) as error:
        raise LoraError(f"{file} is no JSON ({error})") from error
    if not isinstance(found, dict):
        raise LoraError(f"{file} holds no JSON object")
    return found


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object, keys in order.

    Raises:
        LoraError: it cannot be written.
    """
    with writing(file):
        file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


@contextmanager
def new_folder(path: Path, *, force: bool = False) -> Iterator[Path]:
    """Make a folder that appears at ``path`` only when it is complete and on the disk.

    What the body writes goes into a hidden folder beside ``path``, which takes its place by a
    rename at the end; when the body fails, whatever the reason, it is removed.

    Args:
        path: the folder to make; its parents are made too.
        force: replace a folder that is there, if it holds a model or an adapter.

    Raises:
        LoraError: there is something at ``path`` that may not be replaced, or it cannot be
            written.
    """
    path = path.resolve()
    occupied = _check_free(path, force=force)
    part = path.with_name(f".{path.name}.{uuid4().hex[:8]}.part")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            part.mkdir()
        yield part
        with writing(path):
            for file in part.iterdir():
                sync(file)
            sync(part)
            if occupied:
                # Two renames: there is no portable way to swap two folders in one.
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
            sync(path.parent)
    except LoraError as error:
        # It is about the folder that was to be; nobody knows the hidden one.
        raise LoraError(str(error).replace(str(part), str(path))) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Make a file that appears at ``path`` only when it is complete; see `new_folder`."""
    part = path.with_name(f".{path.name}.{uuid4().hex[:8]}.part")
    try:
        yield part
        with writing(path):
            sync(part)
            part.replace(path)
            sync(path.parent)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def writing(what: object) -> Iterator[None]:
    """Turn an `OSError` into the sentence that ``what`` cannot be written."""
    try:
        yield
    except OSError as error:
        raise LoraError(
            f"{what} cannot be written ({_reason(error)}); nothing was left behind"
        ) from error


class Writer:
    """Writes a safetensors file tensor by tensor, which the library itself cannot.

    The format (https://huggingface.co/docs/safetensors): eight bytes, little endian, with the
    header's length; the header, JSON padded with spaces; the tensors' bytes without gaps. Shapes and
    dtypes are all the header needs, so it can be written first.
    """

    def __init__(self, file: Path, layout: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
        """Open the file and write its header.

        Args:
            file: where to write.
            layout: the dtype, as the format names it, and the shape of each tensor.
        """
        self._file = file
        # Wide dtypes first keeps every tensor aligned without gaps.
        order = sorted(layout, key=lambda name: (-_bytes(layout[name][0]), name))
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        self._offsets: dict[str, tuple[int, int]] = {}
        at = 0
        for name in order:
            dtype, shape = layout[name]
            end = at + torch.Size(shape).numel() * _bytes(dtype)
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
            self._offsets[name] = (at, end)
            at = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._start = 8 + len(text)
        with writing(file):
            self._stream: IO[bytes] = file.open("wb")
        with writing(file):
            self._stream.write(len(text).to_bytes(8, "little") + text)

    def write(self, name: str, tensor: Tensor) -> None:
        """Write a tensor in its place; its dtype and shape are what the layout said."""
        at, end = self._offsets.pop(name)
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        assert data.nbytes == end - at, name  # noqa: S101 (the header is written already)
        with writing(f"{self._file}: {name}"):
            self._stream.seek(self._start + at)
            self._stream.write(data.data)
            # Else a full disk would only show later, with another tensor's name.
            self._stream.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            with writing(self._file):
                self._stream.close()
        except LoraError:
            if not kind:
                raise  # else it repeats what `write` said, without the tensor's name
        assert kind or not self._offsets, self._offsets  # noqa: S101 (a hole would read as zeros)


def sync(path: Path) -> None:
    """Wait until a file or a folder's listing is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """Open a safetensors file; the library gives its handle no type."""
    try:
        with safe_open(file, framework="pt") as tensors:
            yield tensors
    except (SafetensorError, OSError) as error:
        raise LoraError(f"{file} cannot be read ({_reason(error)}); fetch it again") from error


def _existing(file: Path, index: str) -> Path:
    if not file.is_file():
        raise LoraError(f"there is no {file}, which {index} names; fetch it again")
    return file


def _check_free(path: Path, *, force: bool) -> bool:
    """Return whether there is a folder to replace."""
    if not path.exists():
        return False
    try:
        if not any(path.iterdir()):
            return False
    except OSError as error:
        raise LoraError(f"{path} cannot be the output folder ({_reason(error)})") from error
    if not force:
        raise LoraError(f"{path} is there and not empty; name another folder, or use --force")
    if not any((path / name).is_file() for name in CONFIGS):
        raise LoraError(f"{path} holds neither a model nor an adapter, so --force spares it")
    return True


def _bytes(dtype: str) -> int:
    """Return the bytes that one value takes."""
    bits = "".join(c for c in dtype.partition("_")[0] if c.isdigit())
    return 1 if dtype == "BOOL" else int(bits) // 8


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
