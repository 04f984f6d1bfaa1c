"""`helixq bench engine`: jobs an hour of the batching engine, against the reference engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.bench import common
from cli.bench.busy import busy_processes
from cli.errors import ExpectedError
from cli.fields import Command, Fields, json_fields
from cli.outputs import check_picture

if TYPE_CHECKING:
    import torch

    from worker.bench.engine import Result
    from worker.bench.models import Model
    from worker.engine.interface import Engine

#: Models with random weights. The adapters of the small one have 2.5% of its parameters each.
_SIZES = {
    "synthetic-100m": {"hidden": 768, "layers": 12, "rank": 16},
    "synthetic-7b": {"hidden": 4096, "layers": 32, "rank": 64},
}
#: The maximum number of tokens of prompt and output together.
CONTEXT = 1024
#: Prompt lengths in tokens, for the speed by text length.
LENGTHS = (64, 256, 512, 1024, 2048)


@click.command(cls=Command)
@click.option(
    "--model",
    "which",
    type=click.Choice(["demo", *_SIZES]),
    default="demo",
    show_default=True,
    help="The demo model, or random weights.",
)
@common.count_option("--jobs", 64, "The number of jobs.")
@common.count_option(
    "--reference-jobs", 8, "The number of these jobs that run on the reference engine, too."
)
@click.option(
    "--slots",
    default="1,64",
    show_default=True,
    callback=common.numbers,
    metavar="N,N,…",
    help="Numbers of sequences that the batching engine decodes at once, each measured.",
)
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
@common.count_option(
    "--busy", 0, "Processes that compute meanwhile, for a machine that is shared.", minimum=0
)
@common.seed_option
@json_fields(("machine", "model", "busy", "results"))
def engine(
    which: str,
    jobs: int,
    reference_jobs: int,
    slots: list[int],
    max_output_tokens: int | None,
    device: str,
    plot: Path | None,
    llama_server: Path | None,
    busy: int,
    seed: int,
    fields: Fields | None,
) -> None:
    """Compare the batching engine with the reference engine.

    --llama-server needs the package gguf: pip install gguf
    """
    import torch
    from transformers import AutoTokenizer

    from jobs.pipeline import Sampling
    from jobs.settings import DEMO_CHECKPOINT
    from worker.bench import curves, models
    from worker.bench.engine import run
    from worker.engine.interface import EngineError

    if plot:
        check_picture(plot)
    if llama_server and device != "cpu":
        raise ExpectedError("--llama-server runs on a CPU only: leave --device out")
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    demo = models.Model.of(DEMO_CHECKPOINT)
    tokenizer: Any = AutoTokenizer.from_pretrained(demo.base)
    with common.temporary_folder() as folder, busy_processes(busy):
        if which == "demo":
            questions = common.demo_questions(jobs)
            model, limit = demo, max_output_tokens or 256
        else:
            model = _synthetic(which, folder, demo.base, dtype, torch.device(device), seed)
            questions = models.questions(tokenizer, jobs, 64, seed)
            limit = max_output_tokens or 64
        try:
            results = run(
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
                on_progress=common.show_progress,
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
                on_progress=common.show_progress,
            )
            curves.draw(plot, results, points)
    if fields:
        output = {
            "machine": common.machine(),
            "model": which,
            "busy": busy,
            "results": [r.to_json() for r in results],
        }
        fields.print(output)
        return
    click.echo(
        f"{which}, {jobs} jobs, up to {limit} new tokens a stage; {common.machine()}{_beside(busy)}.\n"
    )
    _print_table(results)


def _synthetic(
    which: str, folder: Path, tokenizer: Path, dtype: torch.dtype, device: torch.device, seed: int
) -> Model:
    """Create a model with random weights: ``synthetic-100m`` or ``synthetic-7b``."""
    from worker.bench import models
    from worker.engine.threads import run_in_fresh_thread

    return run_in_fresh_thread(
        partial(
            models.synthetic,
            folder,
            tokenizer,
            **_SIZES[which],
            dtype=dtype,
            device=device,
            seed=seed,
        )
    )


def _print_table(results: Sequence[Result]) -> None:
    """Print a row for each engine. The first one is the reference engine."""
    baseline = results[0]
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


def _beside(busy: int) -> str:
    return f"; processes that compute beside it: {busy}" if busy else ""


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
