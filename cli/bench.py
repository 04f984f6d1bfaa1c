"""`helixq bench`: measurements against a baseline in the same run."""

from __future__ import annotations

import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.errors import ExpectedError
from cli.outputs import check_picture

if TYPE_CHECKING:
    from worker.bench.engine import Model
    from worker.engine.interface import Engine

#: About 100 M parameters, with adapters of 2.5% each.
_SMALL = {"hidden": 768, "layers": 12, "rank": 16}
#: The maximum number of tokens of prompt and output together.
CONTEXT = 1024
#: Prompt lengths in tokens, for the speed by text length.
LENGTHS = (64, 256, 512, 1024, 2048)


def _numbers(_: click.Context, option: click.Parameter, value: str) -> list[int]:
    try:
        numbers = [int(part) for part in value.split(",")]
    except ValueError as error:
        raise click.BadParameter(
            f"{value!r} is not a list of numbers such as 1,64", param=option
        ) from error
    if min(numbers) < 1:
        raise click.BadParameter("each number must be at least 1", param=option)
    return numbers


@click.group()
def bench() -> None:
    """Run benchmarks, each against a baseline."""


@bench.command()
@click.option(
    "--mergekit",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The program mergekit-extract-lora (default: from the PATH).",
)
@click.option("--rank", type=click.IntRange(min=1), default=64, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON.")
def lora(mergekit: Path | None, rank: int, seed: int, as_json: bool) -> None:
    """Extract adapters from layers of Mistral-7B's sizes: HelixQ, with --exact, and mergekit.

    Install mergekit in a separate environment:
    python3 -m venv mk && mk/bin/pip install mergekit
    """
    from worker.bench import lora as module

    program = mergekit or shutil.which("mergekit-extract-lora")
    if program is None:
        raise ExpectedError(
            "the baseline mergekit-extract-lora is not on the PATH: install mergekit in a "
            "separate environment, and pass the program with --mergekit"
        )
    extractors = [
        module.helixq_extractor(),
        module.helixq_extractor("--exact"),
        module.mergekit(Path(program)),
    ]
    with tempfile.TemporaryDirectory(prefix="helixq-bench-") as folder:
        results = module.run(
            Path(folder),
            extractors,
            rank=rank,
            seed=seed,
            on_progress=lambda text: click.echo(f"{text} …", err=True),
        )
    if as_json:
        output = {"machine": machine(), "rank": rank, "results": [r.to_json() for r in results]}
        click.echo(json.dumps(output, indent=2))
        return
    baseline = results[-1]
    click.echo(f"Rank {rank}, one decoder layer of Mistral-7B's sizes; {machine()}.\n")
    click.echo("| program | seconds | times as fast | peak memory | error, all layers | by layer |")
    click.echo("|---|---|---|---|---|---|")
    for result in results:
        low, high = min(result.errors.values()), max(result.errors.values())
        click.echo(
            f"| `{result.name}` | {result.seconds:.1f} | {baseline.seconds / result.seconds:.1f} "
            f"| {result.peak_bytes / 1e9:.2f} GB | {result.error:.4%} | {low:.4%}–{high:.4%} |"
        )


@bench.command()
@click.option(
    "--model",
    "which",
    type=click.Choice(["demo", "synthetic-100m", "synthetic-7b"]),
    default="demo",
    show_default=True,
    help="The demo model, or random weights.",
)
@click.option("--jobs", type=click.IntRange(min=1), default=64, show_default=True)
@click.option(
    "--reference-jobs",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="The number of these jobs that run on the reference engine, too.",
)
@click.option("--slots", default="1,64", show_default=True, callback=_numbers, metavar="N,N,…")
@click.option(
    "--max-output-tokens",
    type=click.IntRange(min=1),
    help="Per stage (default: 64; 256 for the demo).",
)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also measure speed by text length, and plot both (.svg, .png, .pdf).",
)
@click.option(
    "--llama-server",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Also measure this llama-server of llama.cpp (on a CPU, for each number of slots).",
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON.")
def engine(
    which: str,
    jobs: int,
    reference_jobs: int,
    slots: list[int],
    max_output_tokens: int | None,
    device: str,
    plot: Path | None,
    llama_server: Path | None,
    seed: int,
    as_json: bool,
) -> None:
    """Run whole jobs on the batching engine and on the reference engine.

    --llama-server needs the package gguf: pip install gguf
    """
    import torch
    from transformers import AutoTokenizer

    from jobs.pipeline import Sampling
    from jobs.settings import DEMO_CHECKPOINT
    from worker.bench import curves
    from worker.bench import engine as module
    from worker.engine.interface import EngineError
    from worker.engine.threads import run_in_fresh_thread

    def on_progress(text: str) -> None:
        click.echo(f"{text} …", err=True)

    if plot:
        check_picture(plot)
    if llama_server and device != "cpu":
        raise ExpectedError("--llama-server runs on a CPU only: leave --device out")
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    demo = module.Model.of(DEMO_CHECKPOINT)
    tokenizer: Any = AutoTokenizer.from_pretrained(demo.base)
    with tempfile.TemporaryDirectory(prefix="helixq-bench-") as folder:
        if which == "demo":
            questions = _demo_questions(jobs)
            model, limit = demo, max_output_tokens or 256
        else:
            big = which == "synthetic-7b"
            sizes = {"hidden": 4096, "layers": 32, "rank": 64} if big else _SMALL
            create = partial(
                module.synthetic,
                Path(folder),
                demo.base,
                **sizes,
                dtype=dtype,
                device=torch.device(device),
                seed=seed,
            )
            model = run_in_fresh_thread(create)
            questions = module.questions(tokenizer, jobs, 64, seed)
            limit = max_output_tokens or 64
        try:
            results = module.run(
                model,
                questions=questions,
                reference_jobs=reference_jobs,
                slots=slots,
                sampling=Sampling(max_output_tokens=limit, seed=seed),
                context=CONTEXT,
                dtype=dtype,
                device=torch.device(device),
                bare=which != "demo",
                make_other=_llama(llama_server, model, tokenizer) if llama_server else None,
                on_progress=on_progress,
            )
        except EngineError as error:
            raise ExpectedError(str(error)) from error
        if plot:
            points = curves.by_length(
                model,
                LENGTHS,
                context=LENGTHS[-1] + curves.NEW + 1,
                dtype=dtype,
                device=torch.device(device),
                seed=seed,
                on_progress=on_progress,
            )
            curves.draw(plot, results, points)
    if as_json:
        output = {"machine": machine(), "model": which, "results": [r.to_json() for r in results]}
        click.echo(json.dumps(output, indent=2))
        return
    baseline = results[0]
    click.echo(f"{which}, {jobs} jobs, up to {limit} new tokens a stage; {machine()}.\n")
    click.echo(
        "| engine | at once | jobs an hour | times the reference | new tokens a second | times "
        "| first token | of the limit |"
    )
    click.echo("|---|---|---|---|---|---|---|---|")
    for r in results:
        click.echo(
            f"| {r.engine} | {r.at_once} | {r.jobs_an_hour:,.0f} "
            f"| {r.jobs_an_hour / baseline.jobs_an_hour:.1f} | {r.tokens_a_second:,.0f} "
            f"| {r.tokens_a_second / baseline.tokens_a_second:.1f} "
            f"| {f'{r.first_token * 1000:.0f} ms' if r.first_token else '–'} "
            f"| {f'{r.share_of_limit:.0%}' if r.share_of_limit else '–'} |"
        )


def _llama(program: Path, model: Model, tokenizer: Any) -> Callable[[int], Engine]:
    """Return a function that starts llama.cpp's server with a number of slots."""
    try:
        from worker.bench.llama import LlamaServer
    except ModuleNotFoundError as error:
        raise ExpectedError(
            f"--llama-server needs the package {error.name}: pip install gguf"
        ) from error

    def start(slots: int) -> Engine:
        return LlamaServer(program, model, tokenizer, max_model_len=CONTEXT, max_num_seqs=slots)

    return start


@bench.command()
@click.option("--jobs", type=click.IntRange(min=1), default=256, show_default=True)
@click.option("--reference-jobs", type=click.IntRange(min=1), default=16, show_default=True)
@click.option("--at-once", type=click.IntRange(min=1), default=64, show_default=True)
@click.option("--max-output-tokens", type=click.IntRange(min=1), default=256, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON.")
def service(
    jobs: int, reference_jobs: int, at_once: int, max_output_tokens: int, seed: int, as_json: bool
) -> None:
    """Run whole jobs through `helixq up`, over HTTP, and on the reference engine alone."""
    import torch

    from cli import service_bench
    from jobs.pipeline import Sampling
    from jobs.settings import DEMO_CHECKPOINT
    from worker.bench import engine as module

    questions = _demo_questions(jobs)

    def on_progress(text: str) -> None:
        click.echo(f"{text} …", err=True)

    on_progress(f"answering {reference_jobs} questions by the reference engine")
    sampling = Sampling(max_output_tokens=max_output_tokens, seed=seed)
    baseline = module.run_reference(
        module.Model.of(DEMO_CHECKPOINT),
        questions[:reference_jobs],
        sampling,
        torch.float32,
        torch.device("cpu"),
    )
    with tempfile.TemporaryDirectory(prefix="helixq-bench-") as folder:
        seconds, tokens = service_bench.run(
            Path(folder),
            questions,
            at_once=at_once,
            max_output_tokens=max_output_tokens,
            seed=seed,
            on_progress=on_progress,
        )
    rows = [
        ("reference engine alone", 1, baseline.jobs_an_hour, baseline.tokens_a_second),
        ("service", at_once, jobs / seconds * 3600, tokens / seconds),
    ]
    if as_json:
        keys = ("program", "at_once", "jobs_an_hour", "tokens_a_second")
        results = [dict(zip(keys, row, strict=True)) for row in rows]
        click.echo(json.dumps({"machine": machine(), "results": results}, indent=2))
        return
    click.echo(f"demo, {jobs} jobs, up to {max_output_tokens} new tokens a stage; {machine()}.\n")
    click.echo("| program | at once | jobs an hour | times the reference | new tokens a second |")
    click.echo("|---|---|---|---|---|")
    for name, count, rate, speed in rows:
        times = rate / baseline.jobs_an_hour
        click.echo(f"| {name} | {count} | {rate:,.0f} | {times:.1f} | {speed:,.0f} |")


@bench.command()
@click.option("--jobs", type=click.IntRange(min=1), default=30, show_default=True)
@click.option("--max-output-tokens", type=click.IntRange(min=1), default=256, show_default=True)
@click.option("--old", type=click.IntRange(min=1), default=100_000, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON.")
def idle(jobs: int, max_output_tokens: int, old: int, seed: int, as_json: bool) -> None:
    """Measure the latency that an idle service adds to a job, and a sweep, on SQLite.

    The engine alone and the service answer each question in turn. The sweep runs over --old
    ended jobs, and over none.
    """
    import statistics

    from cli import idle_bench

    def on_progress(text: str) -> None:
        click.echo(f"{text} …", err=True)

    questions = _demo_questions(jobs + 1)
    with tempfile.TemporaryDirectory(prefix="helixq-bench-") as name:
        folders = [Path(name) / part for part in ("service", "none", "old")]
        for folder in folders:
            folder.mkdir()
        times = idle_bench.jobs(
            folders[0],
            questions,
            max_output_tokens=max_output_tokens,
            seed=seed,
            on_progress=on_progress,
        )
        on_progress(f"sweeping {old} ended jobs")
        sweeps = [idle_bench.sweep(folders[1], 0), idle_bench.sweep(folders[2], old)]
    seconds = {
        "engine_alone": statistics.median(engine_alone for engine_alone, _ in times),
        "service": statistics.median(served for _, served in times),
        "machinery": statistics.median(served - engine_alone for engine_alone, served in times),
        "sweep_without_history": sweeps[0],
        "sweep": sweeps[1],
    }
    if as_json:
        click.echo(json.dumps({"machine": machine(), "jobs": jobs, "seconds": seconds}, indent=2))
        return
    click.echo(f"demo, {jobs} jobs one at a time; {machine()}.\n")
    click.echo("| median | ms |")
    click.echo("|---|---|")
    for text, key in (
        ("a job's three stages, the engine alone", "engine_alone"),
        ("a job from stored to answered, the service", "service"),
        ("difference: what the service adds", "machinery"),
        ("an idle sweep, no history", "sweep_without_history"),
        (f"an idle sweep, {old:,} ended jobs", "sweep"),
    ):
        click.echo(f"| {text} | {seconds[key] * 1000:.2f} |")


@bench.command()
@click.option(
    "--readers", "count", type=click.IntRange(min=1, max=200), default=200, show_default=True
)
@click.option("--pieces", type=click.IntRange(min=0), default=1000, show_default=True)
@click.option("--seconds", type=click.FloatRange(min=0.1), default=10.0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON.")
def readers(count: int, pieces: int, seconds: float, as_json: bool) -> None:
    """Measure what live readers of event streams cost the web: --readers, against one.

    Every job gets ten messages a second. In the last case, each text already has --pieces deltas.
    """
    from cli import readers_bench

    cases = [(1, 1, 0), (count, count, 0), (count, 1, 0), (count, 1, pieces)]
    with tempfile.TemporaryDirectory(prefix="helixq-bench-") as folder:
        results = readers_bench.run(
            Path(folder),
            cases,
            seconds=seconds,
            on_progress=lambda text: click.echo(f"{text} …", err=True),
        )
    if as_json:
        output = {"machine": machine(), "results": [asdict(result) for result in results]}
        click.echo(json.dumps(output, indent=2))
        return
    click.echo(f"{seconds:g} seconds each, ten messages a second of each job; {machine()}.\n")
    click.echo(
        "| readers | jobs | deltas before | messages | processor ms a message | times one reader "
        "| delay, median | 99 of 100 |"
    )
    click.echo("|---|---|---|---|---|---|---|---|")
    for r in results:
        click.echo(
            f"| {r.readers} | {r.jobs} | {r.before:,} | {r.messages:,} | {r.cost * 1000:.3f} "
            f"| {r.cost / results[0].cost:.2f} | {r.median_delay * 1000:.1f} ms "
            f"| {r.late_delay * 1000:.1f} ms |"
        )


@bench.command()
@click.option("--jobs", type=click.IntRange(min=1), default=256, show_default=True)
@click.option("--idle-jobs", type=click.IntRange(min=1), default=20, show_default=True)
@click.option("--at-once", type=click.IntRange(min=1), default=64, show_default=True)
@click.option(
    "--file",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("docs/benchmarks.json"),
    show_default=True,
    help="The file of the recorded figures.",
)
@click.option("--record", is_flag=True, help="Record the figures of this run.")
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON.")
def track(jobs: int, idle_jobs: int, at_once: int, file: Path, record: bool, as_json: bool) -> None:
    """Measure an idle job and many jobs at once, and compare with the recorded figures."""
    from cli import track_bench

    if idle_jobs >= jobs:
        raise click.UsageError("--idle-jobs should be less than --jobs")
    recorded = track_bench.Figures.read(file)
    with tempfile.TemporaryDirectory(prefix="helixq-bench-") as folder:
        now = track_bench.measure(
            Path(folder),
            _demo_questions(jobs),
            idle_jobs=idle_jobs,
            at_once=at_once,
            machine=machine(),
            on_progress=lambda text: click.echo(f"{text} …", err=True),
        )
    if as_json:
        output = {"now": asdict(now), "recorded": asdict(recorded) if recorded else None}
        click.echo(json.dumps(output, indent=2))
    else:
        click.echo(track_bench.table(now, recorded))
    if record:
        now.write(file)


def _demo_questions(count: int) -> list[str]:
    """Return held-out questions with the longest numbers, half sums and half products."""
    from jobs.settings import DEMO_CHECKPOINT

    lines = (DEMO_CHECKPOINT.parent / "held_out.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    questions = [
        str(row["question"]) for row in rows if row["kind"] in ("sums/3+3", "products/2×2")
    ]
    return [questions[i * len(questions) // count % len(questions)] for i in range(count)]


def machine() -> str:
    """Return the description of this machine: cores and processor."""
    names: dict[str, Any] = {}
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = dict(line.split(":", 1) for line in lines if ":" in line)
    except OSError:  # Not Linux.
        pass
    name = next((v.strip() for k, v in names.items() if k.startswith("model name")), "")
    return f"{os.cpu_count()} cores, {name or platform.processor() or platform.machine()}"
