"""Adds an adapter to its base: a full checkpoint in the base's own sharding."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from worker.lora import LoraError
from worker.lora.adapter import Adapter, open_adapter, unmergeable
from worker.lora.files import (
    FLOATS,
    NAMES,
    Entry,
    Tensors,
    Writer,
    new_folder,
    open_checkpoint,
    read_json,
    write_json,
    writing,
)

#: What a merged checkpoint takes over from the base's folder beside the weights.
_COPIED = ("*.json", "*.model", "*.txt", "*.jinja")
_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Merged:
    """What was merged."""

    #: Linear layers that got their B A.
    layers: int
    #: Tensors that the adapter replaced as a whole.
    replaced: int
    tensors: int
    bytes: int
    seconds: float


def merge(
    base: Path,
    adapter: Path,
    out: Path,
    *,
    dtype: torch.dtype | None = None,
    force: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> Merged:
    """Write W + scaling · B A for every layer the adapter has, and the base's other tensors.

    The sum is made in float32 and rounded once. Memory: one tensor at a time.

    Args:
        base, adapter: folders.
        out: the merged model's folder; it appears when it is complete.
        dtype: of all float tensors; by default each keeps the base's.
        force: replace an adapter or model that is in ``out``.
        progress: told each tensor's name when it begins, how many are done and how many there are.

    Raises:
        LoraError: the adapter cannot be merged exactly or is for another base, a tensor is
            damaged, or the output cannot be written.
    """
    start = time.perf_counter()
    for folder in (base, adapter):
        if out.resolve() == folder.resolve():
            raise LoraError(f"{out} is an input; the output needs a folder of its own")
    with new_folder(out, force=force) as folder:
        ours, theirs = open_checkpoint(base), open_adapter(adapter)
        config = read_json(base / "config.json")
        _check(base, ours, theirs, tied=bool(config.get("tie_word_embeddings")))
        _copy(base, folder)
        if dtype is not None:
            for key in ("dtype", "torch_dtype"):
                if key in config:
                    config[key] = str(dtype).removeprefix("torch.")
            write_json(folder / "config.json", config)
        size = done = 0
        for shard in sorted({entry.file for entry in ours.entries.values()}):
            entries = {name: e for name, e in ours.entries.items() if e.file == shard}
            layouts = {n: (_saved_as(e, dtype), e.shape) for n, e in entries.items()}
            with Writer(folder / shard.name, layouts) as file:
                for name in entries:
                    if progress:
                        progress(name, done, len(ours.entries))
                    tensor = _merged(name, ours, theirs, layouts[name][0])
                    file.write(name, tensor)
                    size += tensor.nbytes
                    done += 1
        if (base / _INDEX).is_file():
            index = read_json(base / _INDEX)
            index["metadata"] = {**(index.get("metadata") or {}), "total_size": size}
            write_json(folder / _INDEX, index)
    return Merged(
        layers=len(theirs.factors),
        replaced=len(theirs.replaced),
        tensors=done,
        bytes=size,
        seconds=time.perf_counter() - start,
    )


def _merged(name: str, ours: Tensors, theirs: Adapter, dtype: str) -> Tensor:
    """Return a tensor as the merged checkpoint stores it."""
    module = name.removesuffix(".weight")
    if module in theirs.factors and name != module:
        b, a = theirs.get(module)
        scaling = theirs.factors[module].scaling
        found = torch.addmm(ours.get_finite(name), b, a, alpha=scaling)
    elif name in theirs.replaced:
        found = theirs.tensors.get_finite(theirs.replaced[name])
    else:
        found = ours.get(name)
        if dtype == ours.entries[name].dtype:
            return found  # bit for bit, whatever it is
    rounded = found.to(FLOATS[dtype])
    if not rounded.isfinite().all():
        raise LoraError(
            f"{ours.entries[name].file}: {name} is too large for {dtype}; use another --dtype"
        )
    return rounded


def _saved_as(entry: Entry, dtype: torch.dtype | None) -> str:
    return NAMES[dtype] if dtype is not None and entry.dtype in FLOATS else entry.dtype


def _check(base: Path, ours: Tensors, theirs: Adapter, *, tied: bool) -> None:
    """Make sure that the merge is exact and that every tensor of the adapter has its place."""
    if reasons := unmergeable(theirs.config, theirs.tensors.entries):
        raise LoraError(f"{theirs.folder} cannot be merged: {'; '.join(reasons)}")
    for module, pair in theirs.factors.items():
        entry = ours.entries.get(f"{module}.weight")
        if entry is None:
            raise LoraError(
                f"{theirs.folder} is for another base: {base} has no {module}.weight to add "
                f"{pair.a} to"
            )
        if entry.shape != pair.shape:
            raise LoraError(
                f"{theirs.folder} is for another base: {module}.weight in {entry.file} has the "
                f"shape {entry.shape}, and its adapter {pair.shape}"
            )
    embeddings, head = (
        next((name for name in theirs.replaced if name.endswith(f"{part}.weight")), None)
        for part in ("embed_tokens", "lm_head")
    )
    if tied and (embeddings or head):
        both = [theirs.tensors.get(theirs.replaced[x]) for x in (embeddings, head) if x]
        if len(both) < 2 or not torch.equal(*both):
            raise LoraError(
                f"{theirs.folder} cannot be merged: {base} ties its head to its embeddings, and "
                "the adapter replaces them by different ones"
            )
        if head and head not in ours.entries:
            del theirs.replaced[head]
    for name, key in theirs.replaced.items():
        replaced = ours.entries.get(name)
        if replaced is None or replaced.shape != theirs.tensors.entries[key].shape:
            raise LoraError(
                f"{theirs.folder} is for another base: {key} has no place of its shape in {base}"
            )


def _copy(base: Path, folder: Path) -> None:
    """Copy config, tokenizer and the like."""
    for pattern in _COPIED:
        for file in base.glob(pattern):
            if file.is_file():
                with writing(folder / file.name):
                    shutil.copyfile(file, folder / file.name)
