"""Extraction of adapters by HelixQ and by mergekit, on the linear layers of one decoder layer.

The layers have Mistral-7B's sizes. The fine-tune is synthetic: its differences are sums of random
rank-one matrices whose weights decay by a power law, plus noise, in bfloat16. Real fine-tunes are
similar: a few strong directions, and a tail that no low rank represents.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import MistralConfig, MistralForCausalLM

from jobs.program import PROGRAM
from worker.lora import LoraError
from worker.lora.adapter import open_adapter
from worker.lora.layout import read_layout
from worker.lora.weight_files import open_checkpoint

#: The weight of direction i is i**-DECAY, and the number of directions.
DECAY = 0.7
DIRECTIONS = 1024
#: Root mean square of the entries of the directions' sum, and of the noise as a share of it.
SIZE = 2e-4
FLOOR = 0.3


@dataclass(frozen=True)
class Sizes:
    """Sizes of the model. The defaults are Mistral-7B's."""

    hidden: int = 4096
    intermediate: int = 14336
    heads: int = 32
    kv_heads: int = 8


@dataclass(frozen=True)
class Extractor:
    """A program that extracts an adapter: its name, and its command for base, tuned, out and rank."""

    name: str
    command: Callable[[Path, Path, Path, int], list[str | Path]]


@dataclass(frozen=True)
class Result:
    """The measurement of one program."""

    name: str
    seconds: float
    #: Maximum resident set size in bytes, mapped files included.
    peak_bytes: int
    #: |D - scaling · B A| / |D| over all layers together, read from the saved adapter.
    error: float
    #: The same by layer.
    errors: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def helixq_extractor(*options: str) -> Extractor:
    """Return HelixQ's program with options."""

    def command(base: Path, tuned: Path, out: Path, rank: int) -> list[str | Path]:
        models: list[str | Path] = ["--base", base, "--tuned", tuned, "--out", out]
        helixq = [*PROGRAM, "lora", "extract"]
        return [*helixq, *models, "--rank", str(rank), "--device", "cpu", *options]

    return Extractor(" ".join(("helixq lora extract", *options)), command)


def mergekit(program: Path) -> Extractor:
    """Return mergekit's program, with the same layers and the same rank."""

    def command(base: Path, tuned: Path, out: Path, rank: int) -> list[str | Path]:
        models: list[str | Path] = ["--base-model", base, "--model", tuned, "--out-path", out]
        return [
            program,
            *models,
            "--max-rank",
            str(rank),
            "--exclude-regex",
            "embed_tokens|lm_head",
        ]

    return Extractor("mergekit-extract-lora", command)


def run(
    folder: Path,
    extractors: list[Extractor],
    *,
    rank: int = 64,
    sizes: Sizes | None = None,
    seed: int = 0,
    on_progress: Callable[[str], object] = lambda _: None,
) -> list[Result]:
    """Run each program on the same two models, one after the other.

    Args:
        folder: an empty one; gets the models (two of 0.5 GB at the default sizes) and adapters.
        extractors: the programs.
        rank: of the adapters.
        sizes: of the model.
        seed: of all random numbers.
        on_progress: called with a description of the next step.

    Raises:
        LoraError: a program failed.
    """
    on_progress("making the models")
    base, tuned = _models(folder, sizes or Sizes(), seed)
    results = []
    for i, extractor in enumerate(extractors):
        on_progress(f"running {extractor.name}")
        out = folder / f"adapter-{i}"
        seconds, peak = _timed(extractor, extractor.command(base, tuned, out, rank))
        on_progress(f"measuring what {extractor.name} made")
        norms = dict(_errors(base, tuned, out))
        total = sum(norm**2 for _, norm in norms.values())
        lost = sum(error**2 for error, _ in norms.values())
        errors = {name: error / norm for name, (error, norm) in norms.items()}
        results.append(Result(extractor.name, seconds, peak, (lost / total) ** 0.5, errors))
    return results


def _models(folder: Path, sizes: Sizes, seed: int) -> tuple[Path, Path]:
    torch.manual_seed(seed)
    config = MistralConfig(
        vocab_size=256,
        hidden_size=sizes.hidden,
        intermediate_size=sizes.intermediate,
        num_hidden_layers=1,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.kv_heads,
        dtype="bfloat16",
    )
    model: Any = MistralForCausalLM(config)
    model.to(dtype=torch.bfloat16).save_pretrained(folder / "base")
    for name in read_layout(folder / "base").linear:
        weight = model.get_parameter(name)
        difference = _difference(weight.shape[0], weight.shape[1])
        weight.data = (weight.data.float() + difference).bfloat16()
    model.save_pretrained(folder / "tuned")
    return folder / "base", folder / "tuned"


def _difference(m: int, n: int) -> Tensor:
    k = min(DIRECTIONS, m, n)
    weights = torch.arange(1.0, k + 1) ** -DECAY
    weights *= SIZE / float(weights.square().sum().sqrt())
    return (torch.randn(m, k) * weights) @ torch.randn(k, n) + FLOOR * SIZE * torch.randn(m, n)


def _timed(extractor: Extractor, command: list[str | Path]) -> tuple[float, int]:
    """Run a program to its end; return its seconds, and its peak of resident memory in bytes."""
    start = time.perf_counter()
    try:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    except OSError as error:
        raise LoraError(f"{command[0]} cannot be started ({error.strerror})") from error
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise LoraError(f"{extractor.name} ended with status {process.returncode}; see above")
    return time.perf_counter() - start, usage.ru_maxrss * 1024


def _errors(base: Path, tuned: Path, out: Path) -> Iterator[tuple[str, tuple[float, float]]]:
    """Yield each layer's |D - scaling · B A| and |D|."""
    base_checkpoint, tuned_checkpoint = open_checkpoint(base), open_checkpoint(tuned)
    adapter = open_adapter(out)
    for name in read_layout(base).linear:
        d = tuned_checkpoint.get_finite(name) - base_checkpoint.get_finite(name)
        norm = float(d.double().norm())
        if (pair := adapter.factors.get(name.removesuffix(".weight"))) is not None:
            b, a = adapter.get(name.removesuffix(".weight"))
            d = torch.addmm(d, b, a, alpha=-pair.scaling)
        yield name, (float(d.double().norm()), norm)
