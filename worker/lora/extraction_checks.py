"""Checks before an extraction. Each raises a `LoraError` that says what makes it impossible."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch

from worker.lora import LoraError
from worker.lora.layout import Layout, Weights
from worker.lora.lowrank import Target
from worker.lora.tensors import Tensors


def check_output(out: Path, *inputs: Path) -> None:
    """Check that the output folder is none of the inputs."""
    for folder in inputs:
        if out.resolve() == folder.resolve():
            raise LoraError(f"{out} is an input; use another folder for the output")


def check_shapes(base: Tensors, tuned: Tensors, layout: Layout) -> None:
    """Check that tensors have the same shape in both models, and linear layers the config's."""
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


def check_heads(
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


def check_experts(base: Weights, tuned: Weights, layout: Layout) -> None:
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


def check_target(target: Target, alpha: float | None, layout: Layout) -> None:
    """Check that the rank fits every layer, and that the options fit each other."""
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
