"""`helixq lora`: extract adapters from models, merge them, inspect and convert them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.errors import ExpectedError
from cli.fields import Command, Fields, json_fields

if TYPE_CHECKING:
    import torch

    from jobs.settings import Settings
    from worker.lora.extraction_report import ExtractionReport
    from worker.lora.inspect import Description

DTYPES = ("float32", "float16", "bfloat16")
INSPECT_FIELDS = (
    "base",
    "ranks",
    "alphas",
    "scalings",
    "targets",
    "layers",
    "replaced",
    "parameters",
    "bytes",
    "dtypes",
    "file",
    "unsupported_reasons",
    "digest",
)


def _subset(_: click.Context, option: click.Parameter, value: str) -> list[str]:
    """Parse a comma-separated subset of embeddings, head and norms."""
    parts = [part.strip() for part in value.split(",") if part.strip()]
    if unknown := set(parts) - {"embeddings", "head", "norms"}:
        raise click.BadParameter(
            f"{sorted(unknown)[0]!r} is not one of embeddings, head and norms", param=option
        )
    return parts


@click.command(cls=Command)
@click.option("--base", required=True, metavar="MODEL", help="A folder, or a hub id.")
@click.option("--tuned", required=True, metavar="MODEL", help="A full fine-tune of the base.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The adapter's folder.")
@click.option(
    "--rank", type=int, help="Rank of every layer (default: 64); with --energy, the maximum."
)
@click.option(
    "--energy",
    type=float,
    metavar="SHARE",
    help="The smallest rank that keeps this share of a layer.",
)
@click.option("--alpha", type=float, help="Default: the rank, which applies the difference once.")
@click.option(
    "--keep",
    default="",
    callback=_subset,
    metavar="LIST",
    help="Store whole: embeddings, head, norms.",
)
@click.option(
    "--base-name", metavar="NAME", help="The base's name in the adapter (default: --base)."
)
@click.option(
    "--dtype", type=click.Choice(DTYPES), help="The adapter's dtype (default: that of --tuned)."
)
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    help="Where to compute (default: auto, CUDA if there is a GPU).",
)
@click.option("--exact", is_flag=True, help="Decompose every layer fully instead of sketching it.")
@click.option("--seed", type=int, default=0, help="Seed of the sketches.")
@click.option("--ignore-tokenizer", is_flag=True, help="Accept vocabularies that differ.")
@click.option("--force", is_flag=True, help="Replace the model or adapter in --out.")
@json_fields(("out", "layers", "rest", "total", "warnings"))
def extract(
    base: str,
    tuned: str,
    out: Path,
    rank: int | None,
    energy: float | None,
    alpha: float | None,
    keep: list[str],
    base_name: str | None,
    dtype: str | None,
    device: str,
    fields: Fields | None,
    **options: Any,
) -> None:
    """Extract an adapter from a full fine-tune of a base.

    Each layer gets the best approximation of its rank. The table shows the share of the change
    that is kept, the error, and a lower bound for the error of any adapter of this rank.
    """
    from worker.checkpoints.hub import resolve
    from worker.lora.extract import DEFAULT_RANK
    from worker.lora.extract import extract as extract_adapter
    from worker.lora.lowrank import Target

    if rank is None and energy is None:
        rank = DEFAULT_RANK
    if alpha is not None and rank is not None and energy is None and alpha != rank:
        _warn(
            f"with --alpha {alpha:g} and rank {rank}, the adapter will apply {alpha / rank:g} times "
            "the difference"
        )
    with _progress("extracting") as progress:
        report = extract_adapter(
            resolve(base, "--base"),
            resolve(tuned, "--tuned"),
            out,
            target=Target(rank=rank, energy=energy),
            alpha=alpha,
            base_name=base_name or base,
            keep=keep,
            dtype=_dtype(dtype),
            device=_device(device),
            progress=progress,
            **options,
        )
    for warning in report.warnings:
        _warn(warning)
    if any(rest.kept for rest in report.rest):
        _warn("an adapter that stores whole modules is served one request at a time")
    if fields:
        fields.print({"out": str(out), **report.to_json()})
    else:
        _print(report, out)


@click.command(cls=Command)
@click.option("--base", required=True, metavar="MODEL", help="A folder, or a hub id.")
@click.option("--adapter", required=True, metavar="ADAPTER", help="A folder, or a hub id.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The model's folder.")
@click.option(
    "--dtype", type=click.Choice(DTYPES), help="The model's dtype (default: that of --base)."
)
@click.option("--force", is_flag=True, help="Replace the model or adapter in --out.")
@json_fields(("out", "layers", "replaced", "tensors", "bytes", "seconds", "warnings"))
def merge(
    base: str, adapter: str, out: Path, dtype: str | None, force: bool, fields: Fields | None
) -> None:
    """Merge an adapter into its base, as a full model."""
    from dataclasses import asdict

    from worker.checkpoints.hub import resolve
    from worker.lora.merge import merge as merge_adapter

    with _progress("merging") as progress:
        report = merge_adapter(
            resolve(base, "--base"),
            resolve(adapter, "--adapter"),
            out,
            base_name=base,
            dtype=_dtype(dtype),
            force=force,
            progress=progress,
        )
    for warning in report.warnings:
        _warn(warning)
    if fields:
        fields.print({"out": str(out), **asdict(report)})
        return
    click.echo(
        f"{out}: {report.tensors} tensors, {report.bytes / 1e6:.1f} MB; {report.layers} layers "
        f"merged, {report.replaced} tensors replaced, {report.seconds:.1f} s."
    )


@click.command(cls=Command)
@click.argument("adapters", metavar="[ADAPTER]...", nargs=-1)
@json_fields(("adapter", "file", "converted"))
@click.pass_obj
def convert(settings: Settings, /, adapters: tuple[str, ...], fields: Fields | None) -> None:
    """Convert pickled adapters to safetensors, once.

    ADAPTER is a folder, or a hub id. Without one, those of HELIXQ_ADAPTERS that are hub ids are converted: workers
    load no pickles of the hub. Adapters that have safetensors are left as they are.
    """
    from worker.checkpoints.hub import resolve
    from worker.checkpoints.references import is_hub_id
    from worker.lora import inspect as inspection

    done = []
    for adapter in adapters or sorted(filter(is_hub_id, set(settings.adapters.values()))):
        folder = resolve(adapter, "ADAPTER" if adapters else "HELIXQ_ADAPTERS", pickles=True)
        there = next(iter(sorted(folder.glob("*.safetensors"))), None)
        file = inspection.convert(folder) if there is None else there
        done.append({"adapter": adapter, "file": str(file), "converted": there is None})
        if not fields:
            click.echo(f"{adapter}: {f'wrote {file}' if there is None else 'has safetensors'}")
    if fields:
        fields.print(done)


@click.command(cls=Command)
@click.argument("adapter")
@json_fields(INSPECT_FIELDS)
def inspect(adapter: str, fields: Fields | None) -> None:
    """Show what an adapter holds, and whether it can be batched."""
    from worker.checkpoints import digests
    from worker.checkpoints.hub import resolve
    from worker.lora import inspect as inspection

    folder = resolve(adapter, "ADAPTER", pickles=True)
    description = inspection.inspect(folder)
    digest = f"sha256:{digests.digest(folder)}"
    if fields:
        fields.print({**description.to_json(), "digest": digest})
        return
    for line in _lines(description, digest):
        click.echo(line)


def _lines(description: Description, digest: str) -> Iterator[str]:
    """Yield the lines that describe an adapter."""

    def comma_separated(values: list[Any]) -> str:
        return ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values)

    reasons = description.unsupported_reasons

    yield f"base        {description.base or 'not named'}"
    yield f"rank        {comma_separated(description.ranks)}"
    yield f"alpha       {comma_separated(description.alphas)}"
    yield f"scaling     {comma_separated(description.scalings)}"
    yield f"targets     {comma_separated(description.targets)}"
    if description.replaced:
        yield f"replaces    {comma_separated(description.replaced)}"
    yield f"parameters  {description.parameters:,}"
    yield f"file        {description.file}, {description.bytes / 1e6:.2f} MB, {comma_separated(description.dtypes)}"
    yield f"digest      {digest}"
    yield f"batching    {'no: ' + '; '.join(reasons) if reasons else 'yes'}"
    yield ""
    width = max((len(layer.name) for layer in description.layers), default=5)
    yield f"{'layer':<{width}}  {'shape':>13}  {'rank':>4}  {'scaling':>7}  {'norm':>9}"
    for layer in description.layers:
        shape = f"{layer.shape[0]} x {layer.shape[1]}"
        yield (
            f"{layer.name:<{width}}  {shape:>13}  {layer.rank:>4}  {layer.scaling:>7.4g}  "
            f"{layer.norm:>9.4g}"
        )


def _print(report: ExtractionReport, out: Path) -> None:
    """Print the table of an extraction."""
    names = [layer.name.removesuffix(".weight") for layer in report.layers]
    width = max(map(len, names))
    click.echo(
        f"{'layer':<{width}}  {'shape':>13}  {'rank':>4}  {'norm':>9}  {'kept':>8}  {'error':>8}  "
        f"{'best >=':>8}  {'seconds':>7}"
    )
    for name, layer in zip(names, report.layers, strict=True):
        shape = f"{layer.shape[0]} x {layer.shape[1]}"
        click.echo(
            f"{name:<{width}}  {shape:>13}  {layer.rank:>4}  {layer.norm:>9.4g}  {layer.kept:>8.3%}  "
            f"{layer.error:>8.3%}  {layer.best_error_at_least:>8.3%}  {layer.seconds:>7.2f}"
        )
    click.echo(
        f"{'total':<{width}}  {'':>13}  {'':>4}  {report.norm:>9.4g}  {1 - report.error**2:>8.3%}  "
        f"{report.error:>8.3%}  {'':>8}  {report.seconds:>7.2f}"
    )
    for rest in report.rest:
        outcome = "kept" if rest.kept else "dropped"
        if not rest.kept:
            outcome += {"biases": ": LoRA cannot store biases", "other": ""}.get(
                rest.kind, f" (--keep {rest.kind} stores them)"
            )
        click.echo(f"{rest.kind}: {rest.tensors} differ by a norm of {rest.norm:.4g}: {outcome}.")
    click.echo(f"{out}: {report.parameters:,} parameters, {report.bytes / 1e6:.1f} MB.")


@contextmanager
def _progress(label: str) -> Iterator[Callable[[str, int, int], None]]:
    """Show a progress bar on standard error, if that is a terminal."""
    with click.progressbar(
        length=1, label=label, file=sys.stderr, hidden=not sys.stderr.isatty(), show_pos=True
    ) as bar:

        def show(_: str, done: int, of: int) -> None:
            bar.length = of
            bar.update(done - bar.pos)

        yield show


def _warn(message: str) -> None:
    click.echo(f"Warning: {message}.", err=True)


def _dtype(name: str | None) -> torch.dtype | None:
    from worker.checkpoints.discovery import DTYPES

    return DTYPES[name] if name else None


def _device(name: str) -> torch.device:
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise ExpectedError("--device cuda: PyTorch sees no CUDA device here; use --device cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
