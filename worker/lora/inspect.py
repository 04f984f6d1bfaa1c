"""Describe an adapter: ranks, targets, norms, and whether the batching engine supports it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from worker.lora import LoraError, lowrank
from worker.lora.adapter import (
    PICKLE_WEIGHTS_NAME,
    SAFETENSORS_WEIGHTS_NAME,
    batching_unsupported_reasons,
    open_adapter,
    read_pickle,
)
from worker.lora.files import new_file
from worker.lora.safetensors_writer import SafetensorsWriter
from worker.lora.tensors import DTYPE_NAMES


@dataclass(frozen=True)
class Layer:
    """An adapter's factors of one layer."""

    name: str
    #: (out, in)
    shape: tuple[int, int]
    rank: int
    alpha: float
    scaling: float
    #: Frobenius norm of scaling · B A, which is added to the layer's weights.
    norm: float


@dataclass(frozen=True)
class Description:
    """What an adapter's config and tensors say."""

    base: str
    ranks: list[int]
    alphas: list[float]
    scalings: list[float]
    targets: list[str]
    layers: list[Layer]
    #: Names of the base's tensors that the adapter replaces.
    replaced: list[str]
    parameters: int
    #: Size of `file`.
    bytes: int
    dtypes: list[str]
    #: Name of the file that has the tensors.
    file: str
    #: Why the batching engine does not support the adapter; empty if it does.
    unsupported_reasons: list[str]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def inspect(folder: Path) -> Description:
    """Describe an adapter. All factors are read once; B A is not computed.

    Raises:
        LoraError: it is missing or damaged, or config and tensors contradict each other.
    """
    adapter = open_adapter(folder)
    layers = []
    for module, factors in adapter.factors.items():
        b, a = adapter.get(module)
        norm = abs(factors.scaling) * lowrank.norm_of_product(b, a)
        layers.append(
            Layer(module, factors.shape, factors.rank, factors.alpha, factors.scaling, norm)
        )
    entries = adapter.tensors.entries
    file = folder / (
        SAFETENSORS_WEIGHTS_NAME
        if (folder / SAFETENSORS_WEIGHTS_NAME).is_file()
        else PICKLE_WEIGHTS_NAME
    )
    return Description(
        base=str(adapter.config.get("base_model_name_or_path") or ""),
        ranks=sorted({layer.rank for layer in layers}),
        alphas=sorted({layer.alpha for layer in layers}),
        scalings=sorted({layer.scaling for layer in layers}),
        targets=sorted({layer.name.rpartition(".")[2] for layer in layers}),
        layers=layers,
        replaced=sorted(adapter.replaced),
        parameters=sum(math.prod(entry.shape) for entry in entries.values()),
        bytes=file.stat().st_size,
        dtypes=sorted({entry.dtype for entry in entries.values()}),
        file=file.name,
        unsupported_reasons=batching_unsupported_reasons(adapter.config, entries),
    )


def convert(folder: Path) -> Path:
    """Write a pickled adapter's tensors, bit for bit, as a safetensors file beside the pickle.

    Returns:
        the new file, which PEFT prefers to the pickle.

    Raises:
        LoraError: the pickle is missing or damaged, a safetensors file exists, or it cannot be
            written.
    """
    file = folder / SAFETENSORS_WEIGHTS_NAME
    if file.exists():
        raise LoraError(f"{file} already exists")
    if not (folder / PICKLE_WEIGHTS_NAME).is_file():
        raise LoraError(f"there is no {PICKLE_WEIGHTS_NAME} in {folder}")
    tensors = read_pickle(folder / PICKLE_WEIGHTS_NAME)
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPE_NAMES:
            raise LoraError(
                f"{folder / PICKLE_WEIGHTS_NAME}: {name} has dtype {tensor.dtype}, which is not a float"
            )
    layout = {name: (DTYPE_NAMES[t.dtype], tuple(t.shape)) for name, t in tensors.items()}
    with new_file(file) as part, SafetensorsWriter(part, layout) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)
    return file
