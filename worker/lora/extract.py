"""Extract an adapter from a base and a fine-tune of it, layer by layer."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor

from worker.lora import LoraError, extraction_checks, lowrank
from worker.lora.adapter import CONFIG_NAME, PREFIX, SAFETENSORS_WEIGHTS_NAME
from worker.lora.extraction_report import ExtractionReport, GroupReport, LayerReport
from worker.lora.files import new_folder, write_json
from worker.lora.layout import Layout, classify_parameters, compare, meta_model, open_model
from worker.lora.lowrank import Target
from worker.lora.safetensors_writer import SafetensorsWriter
from worker.lora.tensors import DTYPE_NAMES, FLOAT_DTYPES, Tensors

DEFAULT_RANK = 64
#: Called before each layer with its name, the number of layers done, and the total.
Progress = Callable[[str, int, int], None]


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
    progress: Progress | None = None,
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
        keep: which of ``embeddings``, ``head`` and ``norms`` to store whole if they differ.
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
    extraction_checks.check_output(out, base, tuned)
    with new_folder(out, force=force) as folder:
        models = _open(base, tuned, keep, target, alpha, ignore_tokenizer=ignore_tokenizer)
        extraction = _Extraction(
            base=models.base,
            tuned=models.tuned,
            target=target,
            dtype=_saved_dtype(models, dtype),
            device=device or torch.device("cpu"),
            exact=exact,
            seed=seed,
        )
        layers, tensors = extraction.run(models.layout.linear, progress)
        rest, kept = _compare_rest(models, keep, extraction.dtype)
        tensors |= kept
        config = _adapter_config(layers, alpha, base_name or str(base), sorted(tensors))
        _write(folder, tensors, config)
    return ExtractionReport(
        layers=layers,
        rest=rest,
        parameters=sum(tensor.numel() for tensor in tensors.values()),
        bytes=sum(tensor.nbytes for tensor in tensors.values()),
        seconds=time.perf_counter() - start,
        warnings=models.warnings,
    )


@dataclass(frozen=True)
class _Models:
    """The tensors of a base and of a fine-tune of it."""

    base: Tensors
    tuned: Tensors
    #: Of both.
    layout: Layout
    #: About differences that an adapter does not have.
    warnings: list[str]


def _open(
    base: Path,
    tuned: Path,
    keep: Collection[str],
    target: Target,
    alpha: float | None,
    *,
    ignore_tokenizer: bool,
) -> _Models:
    """Open two models, and check that an adapter of their difference can be made. Arguments and errors are `extract`'s."""
    model = meta_model(base)
    layout = classify_parameters(model)
    if not layout.linear:
        raise LoraError(f"{base / 'config.json'} describes a model without linear layers")
    warnings = compare(base, tuned, ignore_tokenizer=ignore_tokenizer)
    weights = open_model(base, model), open_model(tuned, model)
    warnings += extraction_checks.check_heads((base, tuned), weights, keep, layout)
    base_tensors, tuned_tensors = (checkpoint.tensors for checkpoint in weights)
    extraction_checks.check_shapes(base_tensors, tuned_tensors, layout)
    extraction_checks.check_target(target, alpha, layout)
    extraction_checks.check_experts(*weights, layout)
    return _Models(base_tensors, tuned_tensors, layout, warnings)


def _saved_dtype(models: _Models, dtype: torch.dtype | None) -> torch.dtype:
    """Return the dtype of the adapter: by default that of the fine-tune."""
    if dtype is None:
        dtype = FLOAT_DTYPES[models.tuned.entries[next(iter(models.layout.linear))].dtype]
    return torch.float32 if dtype == torch.float64 else dtype


def _write(folder: Path, tensors: Mapping[str, Tensor], config: dict[str, Any]) -> None:
    """Write an adapter in PEFT's format."""
    header = {name: (DTYPE_NAMES[t.dtype], tuple(t.shape)) for name, t in tensors.items()}
    with SafetensorsWriter(folder / SAFETENSORS_WEIGHTS_NAME, header) as file:
        for name, tensor in tensors.items():
            file.write(name, tensor)
    write_json(folder / CONFIG_NAME, config)


@dataclass(frozen=True)
class _Extraction:
    """Two models, and how the differences of their linear layers are approximated."""

    base: Tensors
    tuned: Tensors
    target: Target
    #: The dtype to save.
    dtype: torch.dtype
    #: The device to compute on.
    device: torch.device
    exact: bool
    seed: int

    def run(
        self, names: Collection[str], progress: Progress | None
    ) -> tuple[list[LayerReport], dict[str, Tensor]]:
        """Approximate layers; return a report of each, and the adapter's tensors by name."""
        layers: list[LayerReport] = []
        tensors: dict[str, Tensor] = {}
        for name in names:
            if progress:
                progress(name, len(layers), len(names))
            layer, b, a = self._layer(name)
            layers.append(layer)
            module = PREFIX + name.removesuffix(".weight")
            tensors[f"{module}.lora_A.weight"], tensors[f"{module}.lora_B.weight"] = a, b
        return layers, tensors

    def _layer(self, name: str) -> tuple[LayerReport, Tensor, Tensor]:
        """Approximate a layer; return a report, B and A in the dtype to save."""
        start = time.perf_counter()
        d = self.tuned.get_finite(name).to(self.device) - self.base.get_finite(name).to(self.device)
        target = self.target
        if min(d.shape) == 1 and target.rank is not None:
            target = replace(target, rank=1)
        approximation = lowrank.approximate(d, target, seed=self.seed, exact_only=self.exact)
        b = approximation.b.to(self.dtype).contiguous()
        a = approximation.a.to(self.dtype).contiguous()
        if not (b.isfinite().all() and a.isfinite().all()):
            raise LoraError(
                f"{self.tuned.entries[name].file}: the difference in {name} is too large for "
                f"{DTYPE_NAMES[self.dtype]}; use another --dtype"
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


def _compare_rest(
    models: _Models, keep: Collection[str], dtype: torch.dtype
) -> tuple[list[GroupReport], dict[str, Tensor]]:
    """Compare what is no linear layer; return a report of each kind that differs, and the tensors to store whole."""
    layout = models.layout
    rest = []
    tensors: dict[str, Tensor] = {}
    for kind, names in layout.groups.items():
        group = _compare_group(kind, names, models, keep=_is_kept(kind, keep, layout))
        if group.tensors:
            rest.append(group)
        if group.kept:
            tensors |= {PREFIX + name: _cast(models.tuned, name, dtype) for name in names}
    if layout.tied and any(group.kind == "embeddings" and group.kept for group in rest):
        # PEFT copies a module that it replaces, so the head would stay tied to the base's embeddings.
        (embeddings,) = layout.groups["embeddings"]
        tensors[f"{PREFIX}lm_head.weight"] = tensors[PREFIX + embeddings]
    return rest, tensors


def _compare_group(kind: str, names: list[str], models: _Models, *, keep: bool) -> GroupReport:
    squares = []
    for name in names:
        d = models.tuned.get_finite(name) - models.base.get_finite(name)
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
