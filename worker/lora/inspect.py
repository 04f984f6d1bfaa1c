"""Says what an adapter is, how large its effect on each layer, and who can use it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from worker.lora import LoraError, lowrank
from worker.lora.adapter import PICKLE, WEIGHTS, open_adapter, read_pickle, refusals
from worker.lora.files import NAMES, Writer, new_file


@dataclass(frozen=True)
class Layer:
    name: str
    #: (out, in)
    shape: tuple[int, int]
    rank: int
    alpha: float
    scaling: float
    #: Frobenius norm of scaling · B A, which the adapter adds to the layer's weights.
    norm: float


@dataclass(frozen=True)
class Description:
    base: str
    ranks: list[int]
    alphas: list[float]
    scalings: list[float]
    targets: list[str]
    layers: list[Layer]
    #: Tensors of the base that are replaced.
    replaced: list[str]
    parameters: int
    #: Of the file with the tensors.
    bytes: int
    dtypes: list[str]
    file: str
    #: Why the engine that stacks adapters cannot take it; empty if it can.
    refusals: list[str]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def inspect(folder: Path) -> Description:
    """Describe an adapter; every pair of factors is read once, none is multiplied out.

    Raises:
        LoraError: it is missing, damaged or contradicts itself.
    """
    adapter = open_adapter(folder)
    layers = []
    for module, pair in adapter.factors.items():
        b, a = adapter.get(module)
        norm = abs(pair.scaling) * lowrank.norm_of_product(b, a)
        layers.append(Layer(module, pair.shape, pair.rank, pair.alpha, pair.scaling, norm))
    entries = adapter.tensors.entries
    file = folder / (WEIGHTS if (folder / WEIGHTS).is_file() else PICKLE)
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
        refusals=refusals(adapter.config, entries),
    )


def convert(folder: Path) -> Path:
    """Write a pickled adapter's tensors, bit for bit, as a safetensors file beside the pickle.

    Returns:
        the new file, which every loader prefers; the pickle stays.

    Raises:
        LoraError: there is no pickle or it is damaged, there are safetensors already, or the
            file cannot be written.
    """
    file = folder / WEIGHTS
    if file.exists():
        raise LoraError(f"{file} is there already")
    if not (folder / PICKLE).is_file():
        raise LoraError(f"there is no {PICKLE} in {folder}")
    tensors = read_pickle(folder / PICKLE)
    for name, tensor in tensors.items():
        if tensor.dtype not in NAMES:
            raise LoraError(f"{folder / PICKLE}: {name} is of dtype {tensor.dtype}, no float")
    layout = {name: (NAMES[t.dtype], tuple(t.shape)) for name, t in tensors.items()}
    with new_file(file) as part, Writer(part, layout) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)
    return file
