"""Makes an adapter from a model and a fine-tune of it, layer by layer."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor

from worker.lora import LoraError, lowrank
from worker.lora.adapter import CONFIG, PREFIX, WEIGHTS
from worker.lora.files import (
    FLOATS,
    NAMES,
    Tensors,
    Writer,
    new_folder,
    write_json,
)
from worker.lora.layout import Layout, Weights, compare, describe, open_model, skeleton
from worker.lora.lowrank import Target

#: What can be kept beside the linear layers.
KEEP = ("embeddings", "head", "norms")
DEFAULT_RANK = 64


@dataclass(frozen=True)
class Layer:
    """What became of one linear layer's difference D. Errors are shares of |D|, squared in kept."""

    name: str
    #: (out, in)
    shape: tuple[int, int]
    rank: int
    #: |D|, Frobenius.
    norm: float
    #: 1 - error².
    kept: float
    #: |D - B A| / |D|, measured on the factors as they are saved.
    error: float
    #: No factors of this rank have a smaller error.
    best_error_at_least: float
    #: Whether the factors come from a full decomposition and not from a sketch.
    exact: bool
    seconds: float

    @property
    def excess(self) -> float | None:
        """How much the error may be above the best, relatively; None where the best may be 0."""
        best = self.best_error_at_least
        return max(self.error / best - 1, 0.0) if best > 0 else None


@dataclass(frozen=True)
class Rest:
    """What became of the differences in tensors that are no linear layers."""

    #: embeddings, head, norms, biases or other.
    kind: str
    #: How many tensors differ.
    tensors: int
    #: Frobenius norm of their difference.
    norm: float
    kept: bool


@dataclass(frozen=True)
class Report:
    """An extraction, for people and programs."""

    layers: list[Layer]
    rest: list[Rest]
    #: Parameters and bytes of the adapter's tensors.
    parameters: int
    bytes: int
    seconds: float
    warnings: list[str]

    @property
    def norm(self) -> float:
        """Norm of all layers' differences together."""
        return math.hypot(*(layer.norm for layer in self.layers))

    @property
    def error(self) -> float:
        """What all layers lack together, as a share of `norm`."""
        lost = math.hypot(*(layer.error * layer.norm for layer in self.layers))
        return lost / self.norm if lost else 0.0

    def to_json(self) -> dict[str, Any]:
        return {
            "layers": [{**asdict(layer), "excess_at_most": layer.excess} for layer in self.layers],
            "rest": [asdict(rest) for rest in self.rest],
            "total": {
                "norm": self.norm,
                "kept": 1 - self.error**2,
                "error": self.error,
                "parameters": self.parameters,
                "bytes": self.bytes,
                "seconds": self.seconds,
            },
            "warnings": self.warnings,
        }


def extract(
    base: Path,
    tuned: Path,
    out: Path,
    *,
    target: Target,
    alpha: float | None = None,
    base_name: str | None = None,
    keep: Collection[str] = (),
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    exact: bool = False,
    seed: int = 0,
    force: bool = False,
    ignore_tokenizer: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> Report:
    """Write an adapter that, added to ``base``, comes as near to ``tuned`` as its rank allows.

    Memory: one layer at a time, and the adapter.

    Args:
        base, tuned: folders with a model as safetensors files.
        out: the adapter's folder; it appears when it is complete.
        target: the rank, or the share of each layer's squared difference to keep.
        alpha: by default each layer's rank, so that the adapter applies the difference once.
        base_name: what the adapter's config calls the base; ``base`` by default.
        keep: which of `KEEP` to store whole if they differ.
        dtype: of the adapter; by default that of ``tuned``.
        device: where to compute; the CPU by default.
        exact: decompose every layer fully.
        seed: of the sketches.
        force: replace an adapter or model that is in ``out``.
        ignore_tokenizer: do not compare vocabularies.
        progress: told each layer's name when it begins, how many are done and how many there are.

    Raises:
        LoraError: the models do not go together, a tensor is damaged, the rank is too large for
            a layer, or the output cannot be written.
    """
    start = time.perf_counter()
    _check_places(out, base, tuned)
    with new_folder(out, force=force) as folder:
        model = skeleton(base)
        plan = describe(model)
        if not plan.linear:
            raise LoraError(f"{base / 'config.json'} describes a model without linear layers")
        warnings = compare(base, tuned, ignore_tokenizer=ignore_tokenizer)
        opened = open_model(base, model), open_model(tuned, model)
        warnings += _check_heads((base, tuned), opened, keep, plan)
        ours, theirs = (weights.tensors for weights in opened)
        _check_shapes(ours, theirs, plan)
        _check_target(target, alpha, plan)
        _check_experts(*opened, plan)
        saved = dtype or FLOATS[theirs.entries[next(iter(plan.linear))].dtype]
        if saved == torch.float64:
            saved = torch.float32
        layers: list[Layer] = []
        tensors: dict[str, Tensor] = {}
        for name in plan.linear:
            if progress:
                progress(name, len(layers), len(plan.linear))
            module = PREFIX + name.removesuffix(".weight")
            layer, b, a = _layer(
                name, ours, theirs, target, saved, device or torch.device("cpu"), exact, seed
            )
            layers.append(layer)
            tensors[f"{module}.lora_A.weight"], tensors[f"{module}.lora_B.weight"] = a, b
        rest = []
        for kind, names in plan.groups.items():
            found = _difference(kind, names, ours, theirs, keep=_is_kept(kind, keep, plan))
            if found.tensors:
                rest.append(found)
            if found.kept:
                tensors |= {PREFIX + name: _rounded(theirs, name, saved) for name in names}
        if plan.tied and any(part.kind == "embeddings" and part.kept for part in rest):
            # PEFT copies a module it replaces: the head would stay tied to the base's embeddings.
            (embeddings,) = plan.groups["embeddings"]
            tensors[f"{PREFIX}lm_head.weight"] = tensors[PREFIX + embeddings]
        layouts = {name: (NAMES[t.dtype], tuple(t.shape)) for name, t in tensors.items()}
        with Writer(folder / WEIGHTS, layouts) as file:
            for name, tensor in tensors.items():
                file.write(name, tensor)
        config = _config(layers, alpha, base_name or str(base), sorted(tensors))
        write_json(folder / CONFIG, config)
    return Report(
        layers=layers,
        rest=rest,
        parameters=sum(tensor.numel() for tensor in tensors.values()),
        bytes=sum(tensor.nbytes for tensor in tensors.values()),
        seconds=time.perf_counter() - start,
        warnings=warnings,
    )


def _layer(
    name: str,
    ours: Tensors,
    theirs: Tensors,
    target: Target,
    dtype: torch.dtype,
    device: torch.device,
    exact: bool,
    seed: int,
) -> tuple[Layer, Tensor, Tensor]:
    """Approximate one layer's difference; return B and A as they are to be saved."""
    start = time.perf_counter()
    d = theirs.get_finite(name).to(device) - ours.get_finite(name).to(device)
    if min(d.shape) == 1 and target.rank is not None:
        target = replace(target, rank=1)
    found = lowrank.approximate(d, target, seed=seed, exact_only=exact)
    b, a = found.b.to(dtype).contiguous(), found.a.to(dtype).contiguous()
    if not (b.isfinite().all() and a.isfinite().all()):
        raise LoraError(
            f"{theirs.entries[name].file}: the difference in {name} is too large for "
            f"{NAMES[dtype]}; use another --dtype"
        )
    scale = found.norm or 1.0
    error = lowrank.error(d, b, a) / scale
    layer = Layer(
        name=name,
        shape=(d.shape[0], d.shape[1]),
        rank=found.rank,
        norm=found.norm,
        kept=1 - error**2,
        error=error,
        best_error_at_least=found.best / scale,
        exact=found.exact,
        seconds=time.perf_counter() - start,
    )
    return layer, b.cpu(), a.cpu()


def _difference(kind: str, names: list[str], ours: Tensors, theirs: Tensors, *, keep: bool) -> Rest:
    squares = []
    for name in names:
        d = theirs.get_finite(name) - ours.get_finite(name)
        if d.any():
            squares.append(float(d.double().square().sum()))
    return Rest(kind, len(squares), math.sqrt(sum(squares)), kept=keep and bool(squares))


def _is_kept(kind: str, keep: Collection[str], plan: Layout) -> bool:
    return kind in keep or (plan.tied and kind == "embeddings" and "head" in keep)


def _rounded(tensors: Tensors, name: str, dtype: torch.dtype) -> Tensor:
    tensor = tensors.get_finite(name).to(dtype)
    if not tensor.isfinite().all():
        raise LoraError(
            f"{tensors.entries[name].file}: {name} is too large for {NAMES[dtype]}; use another "
            "--dtype"
        )
    return tensor


def _config(
    layers: list[Layer], alpha: float | None, base_name: str, names: list[str]
) -> dict[str, Any]:
    """Make adapter_config.json; layers whose rank is not the most common one go into patterns."""
    rank = Counter(layer.rank for layer in layers).most_common(1)[0][0]
    odd = {x.name.removesuffix(".weight"): x.rank for x in layers if x.rank != rank}
    whole = {name.split(".")[-2] for name in names if "lora_" not in name}
    config = LoraConfig(
        r=rank,
        # PEFT's type says int; its arithmetic takes either.
        lora_alpha=alpha or rank,  # type: ignore[arg-type]  # (see above)
        rank_pattern=odd,
        # The scaling alpha / rank is then the same in these layers.
        alpha_pattern={name: r * (alpha or rank) / rank for name, r in odd.items()},
        target_modules=[],
        modules_to_save=sorted(whole) or None,
        task_type="CAUSAL_LM",
        base_model_name_or_path=base_name,
        inference_mode=True,
    )
    # PEFT makes a set of it, whose order changes from run to run.
    targets = sorted({layer.name.split(".")[-2] for layer in layers})
    content: dict[str, Any] = config.to_dict()  # type: ignore[no-untyped-call]  # peft has no types there
    return {**content, "target_modules": targets}


def _check_places(out: Path, *inputs: Path) -> None:
    for folder in inputs:
        if out.resolve() == folder.resolve():
            raise LoraError(f"{out} is an input; the output needs a folder of its own")


def _check_shapes(ours: Tensors, theirs: Tensors, plan: Layout) -> None:
    for name in plan.names:
        if name not in ours.entries or name not in theirs.entries:
            continue  # parts of experts, or the head of a model that was saved without it
        mine, other = ours.entries[name], theirs.entries[name]
        if mine.shape != other.shape:
            raise LoraError(
                f"{other.file}: {name} has the shape {_by(other.shape)}, but {_by(mine.shape)} in "
                f"{mine.file}"
            )
    for name, shape in plan.linear.items():
        if (entry := ours.entries[name]).shape != shape:
            raise LoraError(
                f"{entry.file}: {name} has the shape {_by(entry.shape)}, but config.json asks for "
                f"{_by(shape)}"
            )


def _check_heads(
    folders: tuple[Path, Path], opened: tuple[Weights, Weights], keep: Collection[str], plan: Layout
) -> list[str]:
    """Leave the head out if a model was saved without it; return what is to be said of it."""
    said = []
    for folder, weights in zip(folders, opened, strict=True):
        if weights.headless and "head" in keep:
            raise LoraError(
                f"{folder} was saved without its head: there is no {weights.headless[0]} to keep"
            )
        if weights.headless:
            said.append(f"{folder} was saved without its head, which is taken as unchanged")
            plan.groups["head"] = []
    return said


def _check_experts(base: Weights, tuned: Weights, plan: Layout) -> None:
    """Make sure that a mixture's experts are the same: no pair of factors holds their difference."""
    for name in plan.groups.pop("experts"):
        ours, theirs = (sorted(weights.parts.get(name, [name])) for weights in (base, tuned))
        for one, other in zip(ours, theirs, strict=False):
            mine, entry = base.tensors.entries[one], tuned.tensors.entries[other]
            if ours != theirs or mine.shape != entry.shape:
                raise LoraError(
                    f"{entry.file} stores the experts in another form than {mine.file}; save both "
                    "models with the same transformers"
                )
            if not torch.equal(base.tensors.get_finite(one), tuned.tensors.get_finite(one)):
                raise LoraError(
                    f"{entry.file}: {one} differs, but it belongs to an expert of a mixture "
                    f"({name}), which is no linear layer of its own; an adapter of the linear "
                    "layers would lack what was changed there"
                )


def _check_target(target: Target, alpha: float | None, plan: Layout) -> None:
    if target.rank is not None and target.rank < 1:
        raise LoraError(f"the rank {target.rank} is below 1; use --rank 1 or more")
    if target.energy is not None:
        if not 0 < target.energy <= 1:
            raise LoraError(f"--energy {target.energy:g} is no share: use one above 0, up to 1")
        if alpha is not None:
            raise LoraError(
                "--alpha goes with one rank for all layers: use it with --rank, not with --energy"
            )
        return
    # A gate of a single output gets all it can hold.
    several = {name: shape for name, shape in plan.linear.items() if min(shape) > 1}
    name, shape = min(several.items(), key=lambda item: min(item[1]))
    if target.rank and target.rank > min(shape):
        raise LoraError(
            f"the rank {target.rank} is too large for {name}, which is {_by(shape)}: use --rank "
            f"{min(shape)} or less, or --energy"
        )


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "of a single number"
