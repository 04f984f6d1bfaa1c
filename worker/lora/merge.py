"""Merge an adapter into its base: a full checkpoint with the base's shards."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from worker.lora import LoraError
from worker.lora.adapter import mismatched_base, open_adapter
from worker.lora.files import CONFIG_NAMES, explain_write_errors, new_folder, read_json, write_json
from worker.lora.layout import Weights, classify_parameters, meta_model, open_model
from worker.lora.peft_merge import PeftMerger
from worker.lora.safetensors_writer import SafetensorsWriter
from worker.lora.tensors import DTYPE_NAMES, FLOAT_DTYPES, TensorInfo
from worker.lora.weight_files import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, weight_files

#: Files that are copied from the base's folder, beside the weights.
_COPIED_PATTERNS = ("*.json", "*.model", "*.txt", "*.jinja")
#: Called before each tensor with its name, the number of tensors done, and the total.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class MergeReport:
    """The result of a merge, in numbers."""

    #: Modules that the adapter changed: linear layers and embeddings.
    layers: int
    #: Tensors that the adapter replaced.
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
    progress: Progress | None = None,
) -> MergeReport:
    """Write the base's tensors as they are after PEFT's ``merge_and_unload``.

    Layers are merged in float32 and rounded once. Other tensors are written bit for bit. Memory holds
    one layer at a time.

    Args:
        base, adapter: folders.
        out: the merged model's folder. It appears when it is complete.
        base_name: the base's name, to compare with the adapter's config; ``base`` by default.
        dtype: dtype of all float tensors; by default each keeps the base's.
        force: replace an adapter or model in ``out``.
        progress: called before each tensor with its name, the number of tensors done, and the total.

    Raises:
        LoraError: the adapter cannot be merged exactly or is for another base, a tensor is
            damaged, or the output cannot be written.
    """
    start = time.perf_counter()
    for folder in (base, adapter):
        if out.resolve() == folder.resolve():
            raise LoraError(f"{out} is an input; use another folder for the output")
    with new_folder(out, force=force) as folder:
        model = meta_model(base)
        weights, opened_adapter = open_model(base, model), open_adapter(adapter)
        layout = classify_parameters(model)  # before PEFT changes the model's layers
        merger = PeftMerger(base, model, weights, opened_adapter)
        if layout.tied:
            _check_tied(base, adapter, merger, (layout.groups["embeddings"][0], "lm_head.weight"))
        _copy(base, folder)
        _write_config(base, folder, dtype)
        tensors, size = _write_weights(base, folder, weights, merger, dtype, progress)
    given_base = base_name or str(base)
    warnings = []
    if named_base := mismatched_base(opened_adapter.config, given_base, base):
        warnings.append(
            f"the adapter's config names the base {named_base}, and it was merged into {given_base}"
        )
    return MergeReport(
        layers=len(merger.modules),
        replaced=len(merger.replaced),
        tensors=tensors,
        bytes=size,
        seconds=time.perf_counter() - start,
        warnings=warnings,
    )


def _write_config(base: Path, folder: Path, dtype: torch.dtype | None) -> None:
    """Write the base's config with the dtype of the merged model, if one is given."""
    config = read_json(base / "config.json")
    config.pop("transformers_weights", None)
    if dtype is not None:
        for key in ("dtype", "torch_dtype"):
            if key in config:
                config[key] = str(dtype).removeprefix("torch.")
    write_json(folder / "config.json", config)


def _write_weights(
    base: Path,
    folder: Path,
    weights: Weights,
    merger: PeftMerger,
    dtype: torch.dtype | None,
    progress: Progress | None,
) -> tuple[int, int]:
    """Write the merged tensors in the base's shards; return their number and their bytes."""
    # Tied parameters are stored once, under one of their names.
    stored = {entry.stored_name: (name, entry) for name, entry in weights.tensors.entries.items()}
    files = _file_names(base)
    size = done = 0
    for source, target in files.items():
        shard = {s: (name, e) for s, (name, e) in stored.items() if e.file == source}
        header = {s: (_stored_dtype(e, dtype), e.shape) for s, (_, e) in shard.items()}
        with SafetensorsWriter(folder / target, header) as file:
            for s, (name, _) in shard.items():
                if progress:
                    progress(name, done, len(stored))
                tensor = _merged_tensor(name, weights, merger, header[s][0])
                file.write(s, tensor)
                size += tensor.nbytes
                done += 1
    if list(files.values()) != [SAFE_WEIGHTS_NAME]:
        shards = {s: files[entry.file] for s, (_, entry) in stored.items()}
        write_json(
            folder / SAFE_WEIGHTS_INDEX_NAME,
            {"metadata": {"total_size": size}, "weight_map": shards},
        )
    return done, size


def _merged_tensor(name: str, weights: Weights, merger: PeftMerger, dtype: str) -> Tensor:
    """Return a tensor as the merged checkpoint stores it."""
    entry = weights.tensors.entries[name]
    if merger.changes(name):
        tensor = merger.get(name)
    else:
        tensor = weights.tensors.get(name)
        if entry.dtype in FLOAT_DTYPES and not tensor.isfinite().all():
            raise LoraError(f"{entry.file}: {entry.stored_name} has NaN or infinite values")
        if dtype == entry.dtype:
            return tensor  # bit for bit
    rounded = tensor.to(FLOAT_DTYPES[dtype])
    if not rounded.isfinite().all():
        raise LoraError(
            f"{entry.file}: {entry.stored_name} is too large for {dtype}; use another --dtype"
        )
    return rounded


def _check_tied(base: Path, adapter: Path, merger: PeftMerger, names: tuple[str, str]) -> None:
    """Check that tied head and embeddings are equal after the merge."""
    changed = [name for name in names if merger.changes(name)]
    if not changed or (len(changed) == 2 and torch.equal(*map(merger.get, names))):
        return
    raise LoraError(
        f"{adapter} cannot be merged: {base} ties its head to its embeddings, and the adapter makes "
        "them different"
    )


def _file_names(base: Path) -> dict[Path, str]:
    """Return the base's weight files, and the name of the merged model's file for each."""
    files, weight_map = weight_files(base)
    if not weight_map:
        return {files[0]: SAFE_WEIGHTS_NAME}
    # A shard may be in a subfolder.
    return {file: "-".join(file.relative_to(base).parts) for file in files}


def _stored_dtype(entry: TensorInfo, dtype: torch.dtype | None) -> str:
    return DTYPE_NAMES[dtype] if dtype is not None and entry.dtype in FLOAT_DTYPES else entry.dtype


def _copy(base: Path, folder: Path) -> None:
    """Copy the tokenizer, the generation config and similar files."""
    for pattern in _COPIED_PATTERNS:
        for file in base.glob(pattern):
            if (
                file.is_file()
                and not file.name.endswith(".index.json")
                and file.name not in CONFIG_NAMES
            ):
                with explain_write_errors(folder / file.name):
                    shutil.copyfile(file, folder / file.name)
