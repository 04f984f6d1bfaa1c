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
from worker.lora.adapter import open_adapter, other_base
from worker.lora.applied import Applied
from worker.lora.files import (
    CONFIGS,
    FLOATS,
    INDEX,
    NAMES,
    SINGLE,
    Entry,
    Writer,
    new_folder,
    read_json,
    weight_files,
    write_json,
    writing,
)
from worker.lora.layout import Weights, describe, open_model, skeleton

#: What a merged checkpoint takes over from the base's folder beside the weights.
_COPIED = ("*.json", "*.model", "*.txt", "*.jinja")


@dataclass(frozen=True)
class Merged:
    """What was merged."""

    #: Modules that the adapter changed: linear layers that got their B A, and embeddings.
    layers: int
    #: Tensors that the adapter holds whole.
    replaced: int
    tensors: int
    bytes: int
    seconds: float
    warnings: list[str]


def merge(
    base: Path,
    adapter: Path,
    out: Path,
    *,
    base_name: str | None = None,
    dtype: torch.dtype | None = None,
    force: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> Merged:
    """Write the base's tensors as they are after PEFT's ``merge_and_unload``.

    Layers are merged in float32 and rounded once; other tensors are written bit for bit. Memory: one
    layer at a time.

    Args:
        base, adapter: folders.
        out: the merged model's folder; it appears when it is complete.
        base_name: what the base is called; ``base`` by default.
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
        model = skeleton(base)
        weights, theirs = open_model(base, model), open_adapter(adapter)
        # PEFT takes the model's layers apart.
        plan = describe(model)
        applied = Applied(base, model, weights, theirs)
        if plan.tied:
            _check_tied(base, adapter, applied, (plan.groups["embeddings"][0], "lm_head.weight"))
        _copy(base, folder)
        config = read_json(base / "config.json")
        config.pop("transformers_weights", None)
        if dtype is not None:
            for key in ("dtype", "torch_dtype"):
                if key in config:
                    config[key] = str(dtype).removeprefix("torch.")
        write_json(folder / "config.json", config)
        # Tied tensors are one tensor on the disk, under one of their names.
        stored = {entry.stored: (name, entry) for name, entry in weights.tensors.entries.items()}
        files = _file_names(base)
        size = done = 0
        for source, target in files.items():
            found = {s: (name, e) for s, (name, e) in stored.items() if e.file == source}
            layouts = {s: (_saved_as(e, dtype), e.shape) for s, (_, e) in found.items()}
            with Writer(folder / target, layouts) as file:
                for s, (name, _) in found.items():
                    if progress:
                        progress(name, done, len(stored))
                    tensor = _merged(name, weights, applied, layouts[s][0])
                    file.write(s, tensor)
                    size += tensor.nbytes
                    done += 1
        if list(files.values()) != [SINGLE]:
            shards = {s: files[entry.file] for s, (_, entry) in stored.items()}
            write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": shards})
    chosen = base_name or str(base)
    warnings = []
    if said := other_base(theirs.config, chosen, base):
        warnings.append(
            f"the adapter's config names the base {said}, and it was merged into {name}"
        )
    return Merged(
        layers=len(applied.modules),
        replaced=len(applied.replaced),
        tensors=done,
        bytes=size,
        seconds=time.perf_counter() - start,
        warnings=warnings,
    )


def _merged(name: str, weights: Weights, applied: Applied, dtype: str) -> Tensor:
    """Return a tensor as the merged checkpoint stores it."""
    entry = weights.tensors.entries[name]
    if applied.changes(name):
        found = applied.get(name)
    else:
        found = weights.tensors.get(name)
        if entry.dtype in FLOATS and not found.isfinite().all():
            raise LoraError(f"{entry.file}: {entry.stored} has NaN or infinite values")
        if dtype == entry.dtype:
            return found  # bit for bit, whatever it is
    rounded = found.to(FLOATS[dtype])
    if not rounded.isfinite().all():
        raise LoraError(
            f"{entry.file}: {entry.stored} is too large for {dtype}; use another --dtype"
        )
    return rounded


def _check_tied(base: Path, adapter: Path, applied: Applied, names: tuple[str, str]) -> None:
    """Make sure that head and embeddings, one tensor on the disk, stay one when merged."""
    changed = [name for name in names if applied.changes(name)]
    if not changed or (len(changed) == 2 and torch.equal(*map(applied.get, names))):
        return
    raise LoraError(
        f"{adapter} cannot be merged: {base} ties its head to its embeddings, and the adapter makes "
        "them different"
    )


def _file_names(base: Path) -> dict[Path, str]:
    """Name the merged model's file for each of the base's."""
    files, named = weight_files(base)
    if not named:
        return {files[0]: SINGLE}
    # A shard may lie in a folder of its own.
    return {file: "-".join(file.relative_to(base).parts) for file in files}


def _saved_as(entry: Entry, dtype: torch.dtype | None) -> str:
    return NAMES[dtype] if dtype is not None and entry.dtype in FLOATS else entry.dtype


def _copy(base: Path, folder: Path) -> None:
    """Copy tokenizer, generation settings and the like."""
    for pattern in _COPIED:
        for file in base.glob(pattern):
            if (
                file.is_file()
                and not file.name.endswith(".index.json")
                and file.name not in CONFIGS
            ):
                with writing(folder / file.name):
                    shutil.copyfile(file, folder / file.name)
