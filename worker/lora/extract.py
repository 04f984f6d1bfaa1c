"""Extract an adapter from a base and a fine-tune of it, layer by layer."""

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
from worker.lora.adapter import CONFIG_NAME, PREFIX, SAFETENSORS_WEIGHTS_NAME
from worker.lora.files import (
    DTYPE_NAMES,
    FLOAT_DTYPES,
    SafetensorsWriter,
    Tensors,
    new_folder,
    write_json,
)
from worker.lora.layout import Layout, Weights, classify_parameters, compare, meta_model, open_model
from worker.lora.lowrank import Target

#: Kinds of parameters that an adapter can store whole, beside the factors of linear layers.
KEEPABLE = ("embeddings", "head", "norms")
DEFAULT_RANK = 64


@dataclass(frozen=True)
class LayerReport:
    """How well B A approximates a linear layer's difference D. Errors are relative to |D|."""

    name: str
    #: (out, in)
    shape: tuple[int, int]
    rank: int
    #: |D|, the Frobenius norm.
    norm: float
    #: 1 - error².
    kept: float
    #: |D - B A| / |D|, measured on the saved factors.
    error: float
    #: A lower bound of the error of any factors of this rank.
    best_error_at_least: float
    #: Whether the factors come from a full decomposition, not from a sketch.
    exact: bool
    seconds: float

    @property
    def excess(self) -> float | None:
        """An upper bound of how far the error is above the best, as a share of the best.

        None if the best may be 0.
        """
        best = self.best_error_at_least
        return max(self.error / best - 1, 0.0) if best > 0 else None


@dataclass(frozen=True)
class GroupReport:
    """The differences in parameters that are not linear layers, by kind."""

    #: embeddings, head, norms, biases or other.
    kind: str
    #: Number of tensors that differ.
    tensors: int
    #: Frobenius norm of their difference.
    norm: float
    #: Whether the adapter stores the fine-tune's tensors.
    kept: bool


@dataclass(frozen=True)
class ExtractionReport:
    """The result of an extraction, in numbers."""

    layers: list[LayerReport]
    rest: list[GroupReport]
    #: Number of parameters, and bytes, of the adapter's tensors.
    parameters: int
    bytes: int
    seconds: float
    warnings: list[str]

    @property
    def norm(self) -> float:
        """Frobenius norm of all layers' differences."""
        return math.hypot(*(layer.norm for layer in self.layers))

    @property
    def error(self) -> float:
        """Error of all layers, as a share of `norm`."""
        error = math.hypot(*(layer.error * layer.norm for layer in self.layers))
        return error / self.norm if error else 0.0

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
) -> ExtractionReport:
    """Write an adapter that approximates ``tuned`` on ``base`` as well as its rank allows.

    Memory holds one layer at a time, and the adapter.

    Args:
        base, tuned: folders with a model as safetensors files.
        out: the adapter's folder. It appears when it is complete.
        target: the rank, or the share of each layer's squared difference to keep.
        alpha: PEFT's ``lora_alpha``; by default each layer's rank, so that the adapter applies the
            difference once.
        base_name: the base's name in the adapter's config; ``base`` by default.
        keep: which of `KEEPABLE` to store whole if they differ.
        dtype: the adapter's dtype; by default that of ``tuned``.
        device: the device to compute on; the CPU by default.
        exact: decompose every layer fully.
        seed: seed of the sketches.
        force: replace an adapter or model in ``out``.
        ignore_tokenizer: do not compare vocabularies.
        progress: called before each layer with its name, the number of layers done, and the total.

    Raises:
        LoraError: the models are incompatible, a tensor is damaged, the rank is too large for a layer,
            or the output cannot be written.
    """
    start = time.perf_counter()
    _check_output(out, base, tuned)
    with new_folder(out, force=force) as folder:
        model = meta_model(base)
        layout = classify_parameters(model)
        if not layout.linear:
            raise LoraError(f"{base / 'config.json'} describes a model without linear layers")
        warnings = compare(base, tuned, ignore_tokenizer=ignore_tokenizer)
        weights = open_model(base, model), open_model(tuned, model)
        warnings += _check_heads((base, tuned), weights, keep, layout)
        base_tensors, tuned_tensors = (checkpoint.tensors for checkpoint in weights)
        _check_shapes(base_tensors, tuned_tensors, layout)
        _check_target(target, alpha, layout)
        _check_experts(*weights, layout)
        saved_dtype = dtype or FLOAT_DTYPES[tuned_tensors.entries[next(iter(layout.linear))].dtype]
        if saved_dtype == torch.float64:
            saved_dtype = torch.float32
        layers: list[LayerReport] = []
        tensors: dict[str, Tensor] = {}
        for name in layout.linear:
            if progress:
                progress(name, len(layers), len(layout.linear))
            module = PREFIX + name.removesuffix(".weight")
            layer, b, a = _extract_layer(
                name,
                base_tensors,
                tuned_tensors,
                target,
                saved_dtype,
                device or torch.device("cpu"),
                exact,
                seed,
            )
            layers.append(layer)
            tensors[f"{module}.lora_A.weight"], tensors[f"{module}.lora_B.weight"] = a, b
        rest = []
        for kind, names in layout.groups.items():
            group = _compare_group(
                kind, names, base_tensors, tuned_tensors, keep=_is_kept(kind, keep, layout)
            )
            if group.tensors:
                rest.append(group)
            if group.kept:
                tensors |= {
                    PREFIX + name: _cast(tuned_tensors, name, saved_dtype) for name in names
                }
        if layout.tied and any(group.kind == "embeddings" and group.kept for group in rest):
            # PEFT copies a module that it replaces, so the head would stay tied to the base's embeddings.
            (embeddings,) = layout.groups["embeddings"]
            tensors[f"{PREFIX}lm_head.weight"] = tensors[PREFIX + embeddings]
        header = {name: (DTYPE_NAMES[t.dtype], tuple(t.shape)) for name, t in tensors.items()}
        with SafetensorsWriter(folder / SAFETENSORS_WEIGHTS_NAME, header) as file:
            for name, tensor in tensors.items():
                file.write(name, tensor)
        config = _adapter_config(layers, alpha, base_name or str(base), sorted(tensors))
        write_json(folder / CONFIG_NAME, config)
    return ExtractionReport(
        layers=layers,
        rest=rest,
        parameters=sum(tensor.numel() for tensor in tensors.values()),
        bytes=sum(tensor.nbytes for tensor in tensors.values()),
        seconds=time.perf_counter() - start,
        warnings=warnings,
    )


def _extract_layer(
    name: str,
    base: Tensors,
    tuned: Tensors,
    target: Target,
    dtype: torch.dtype,
    device: torch.device,
    exact: bool,
    seed: int,
) -> tuple[LayerReport, Tensor, Tensor]:
    """Approximate a layer's difference; return a report, B and A in the dtype to save."""
    start = time.perf_counter()
    d = tuned.get_finite(name).to(device) - base.get_finite(name).to(device)
    if min(d.shape) == 1 and target.rank is not None:
        target = replace(target, rank=1)
    approximation = lowrank.approximate(d, target, seed=seed, exact_only=exact)
    b = approximation.b.to(dtype).contiguous()
    a = approximation.a.to(dtype).contiguous()
    if not (b.isfinite().all() and a.isfinite().all()):
        raise LoraError(
            f"{tuned.entries[name].file}: the difference in {name} is too large for "
            f"{DTYPE_NAMES[dtype]}; use another --dtype"
        )
    scale = approximation.norm or 1.0
    error = lowrank.error(d, b, a) / scale
    layer = LayerReport(
        name=name,
        shape=(d.shape[0], d.shape[1]),
        rank=approximation.rank,
        norm=approximation.norm,
        kept=1 - error**2,
        error=error,
        best_error_at_least=approximation.min_error / scale,
        exact=approximation.exact,
        seconds=time.perf_counter() - start,
    )
    return layer, b.cpu(), a.cpu()


def _compare_group(
    kind: str, names: list[str], base: Tensors, tuned: Tensors, *, keep: bool
) -> GroupReport:
    squares = []
    for name in names:
        d = tuned.get_finite(name) - base.get_finite(name)
        if d.any():
            squares.append(float(d.double().square().sum()))
    return GroupReport(kind, len(squares), math.sqrt(sum(squares)), kept=keep and bool(squares))


def _is_kept(kind: str, keep: Collection[str], layout: Layout) -> bool:
    return kind in keep or (layout.tied and kind == "embeddings" and "head" in keep)


def _cast(tensors: Tensors, name: str, dtype: torch.dtype) -> Tensor:
    tensor = tensors.get_finite(name).to(dtype)
    if not tensor.isfinite().all():
        raise LoraError(
            f"{tensors.entries[name].file}: {name} is too large for {DTYPE_NAMES[dtype]}; use another "
            "--dtype"
        )
    return tensor


def _adapter_config(
    layers: list[LayerReport], alpha: float | None, base_name: str, names: list[str]
) -> dict[str, Any]:
    """Return the contents of adapter_config.json.

    Layers whose rank is not the most common one are listed in ``rank_pattern`` and ``alpha_pattern``.
    """
    rank = Counter(layer.rank for layer in layers).most_common(1)[0][0]
    other_ranks = {x.name.removesuffix(".weight"): x.rank for x in layers if x.rank != rank}
    saved_modules = {name.split(".")[-2] for name in names if "lora_" not in name}
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha or rank,  # type: ignore[arg-type]  # PEFT's type is int; any number works
        rank_pattern=other_ranks,
        # So these layers have the same scaling, alpha / rank.
        alpha_pattern={name: r * (alpha or rank) / rank for name, r in other_ranks.items()},
        target_modules=[],
        modules_to_save=sorted(saved_modules) or None,
        task_type="CAUSAL_LM",
        base_model_name_or_path=base_name,
        inference_mode=True,
    )
    # PEFT makes a set of them, whose order differs between runs.
    targets = sorted({layer.name.split(".")[-2] for layer in layers})
    content: dict[str, Any] = config.to_dict()  # type: ignore[no-untyped-call]  # peft has no types there
    return {**content, "target_modules": targets}


def _check_output(out: Path, *inputs: Path) -> None:
    for folder in inputs:
        if out.resolve() == folder.resolve():
            raise LoraError(f"{out} is an input; use another folder for the output")


def _check_shapes(base: Tensors, tuned: Tensors, layout: Layout) -> None:
    for name in layout.names:
        if name not in base.entries or name not in tuned.entries:
            continue  # parts of experts, or the head of a model that was saved without it
        base_entry, tuned_entry = base.entries[name], tuned.entries[name]
        if base_entry.shape != tuned_entry.shape:
            raise LoraError(
                f"{tuned_entry.file}: {name} has the shape {_format_shape(tuned_entry.shape)}, but "
                f"{_format_shape(base_entry.shape)} in {base_entry.file}"
            )
    for name, shape in layout.linear.items():
        if (entry := base.entries[name]).shape != shape:
            raise LoraError(
                f"{entry.file}: {name} has the shape {_format_shape(entry.shape)}, but config.json "
                f"requires {_format_shape(shape)}"
            )


def _check_heads(
    folders: tuple[Path, Path],
    models: tuple[Weights, Weights],
    keep: Collection[str],
    layout: Layout,
) -> list[str]:
    """Leave the head out of ``layout`` if a model was saved without it, and return warnings."""
    warnings = []
    for folder, weights in zip(folders, models, strict=True):
        if weights.missing_head and "head" in keep:
            raise LoraError(
                f"{folder} was saved without its head: there is no {weights.missing_head[0]} to keep"
            )
        if weights.missing_head:
            warnings.append(
                f"{folder} was saved without its head, which is assumed to be unchanged"
            )
            layout.groups["head"] = []
    return warnings


def _check_experts(base: Weights, tuned: Weights, layout: Layout) -> None:
    """Check that a mixture's experts are equal, since LoRA cannot represent their difference."""
    for name in layout.groups.pop("experts"):
        base_parts, tuned_parts = (
            sorted(weights.parts.get(name, [name])) for weights in (base, tuned)
        )
        for base_part, tuned_part in zip(base_parts, tuned_parts, strict=False):
            base_entry = base.tensors.entries[base_part]
            tuned_entry = tuned.tensors.entries[tuned_part]
            if base_parts != tuned_parts or base_entry.shape != tuned_entry.shape:
                raise LoraError(
                    f"{tuned_entry.file} stores the experts in another form than {base_entry.file}; "
                    "save both models with the same version of transformers"
                )
            if not torch.equal(
                base.tensors.get_finite(base_part), tuned.tensors.get_finite(base_part)
            ):
                raise LoraError(
                    f"{tuned_entry.file}: {base_part} differs, but it belongs to an expert of a "
                    f"mixture ({name}), which is not a linear layer; an adapter of linear layers "
                    "cannot represent the change"
                )


def _check_target(target: Target, alpha: float | None, layout: Layout) -> None:
    if target.rank is not None and target.rank < 1:
        raise LoraError(f"the rank {target.rank} is below 1; use --rank 1 or more")
    if target.energy is not None:
        if not 0 < target.energy <= 1:
            raise LoraError(
                f"--energy {target.energy:g} is not a share; use a number above 0 and at most 1"
            )
        if alpha is not None:
            raise LoraError(
                "--alpha needs the same rank in all layers; use it with --rank, not with --energy"
            )
        return
    # A gate with a single output gets rank 1, whatever the target.
    matrices = {name: shape for name, shape in layout.linear.items() if min(shape) > 1}
    name, shape = min(matrices.items(), key=lambda item: min(item[1]))
    if target.rank and target.rank > min(shape):
        raise LoraError(
            f"the rank {target.rank} is too large for {name}, which is {_format_shape(shape)}; use "
            f"--rank {min(shape)} or less, or --energy"
        )


def _format_shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "of a single number"
