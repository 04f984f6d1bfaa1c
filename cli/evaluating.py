"""`helixq eval`: compare actor and regenerator, and adapters and three full models."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.errors import ExpectedError
from cli.fields import Command, Fields, json_fields
from cli.outputs import check_package, check_picture, check_writable
from jobs.pipeline import DEFAULT_SYSTEM, MAX_SEED, Role, Sampling

if TYPE_CHECKING:  # importing torch takes seconds
    from jobs.settings import Settings
    from worker.checkpoints.discovery import Checkpoints
    from worker.evaluation.forms import Form
    from worker.evaluation.measure import Measurement
    from worker.evaluation.report import Report
    from worker.evaluation.task import Task

#: The demo's held-out questions, and how to parse its texts.
DEMO_TASK = Path(__file__).parent.parent / "demo" / "held_out.jsonl"
DEMO_ANSWER = r"\d+ [+*] \d+ = \d+(?=\.)|I cannot answer that"
DEMO_APPROVAL = r"it is right:|nothing to correct"


@dataclass(frozen=True)
class Options:
    """The command line's options."""

    task: Path | None
    answer: str | None
    approval: str | None
    full: dict[Role, Path]
    ranks: tuple[int, ...]
    limit: int | None
    system: str
    sampling: Sampling
    batch: int
    fields: Fields | None
    transcripts: Path | None
    markdown: Path | None
    plot: Path | None


def run(settings: Settings, options: Options) -> None:
    """Run the evaluation, print the report, and write the output files.

    Raises:
        jobs.errors.UserError: an input is invalid, or an output file cannot be written.
    """
    check_package("scipy")
    _check(options)
    report = _measure(settings, options)
    if options.transcripts:
        forms = {"adapters": report.adapters, "full": report.full}
        lines = [
            json.dumps({"form": name, **transcript.describe()}, ensure_ascii=False)
            for name, measurement in forms.items()
            if measurement is not None
            for transcript in measurement.transcripts
        ]
        options.transcripts.write_text("\n".join([*lines, ""]), encoding="utf-8")
    if options.markdown:
        report.write_into(options.markdown)
    if options.plot:
        report.plot(options.plot)
    if options.fields:
        options.fields.print(report.describe())
    else:
        click.echo(report.markdown())


def _check(options: Options) -> None:
    """Fail now, not after an hour, if an output file cannot be written."""
    if options.ranks and not options.full:
        raise ExpectedError("--ranks extracts adapters from full models: name them with --full")
    for file in filter(None, (options.transcripts, options.markdown)):
        check_writable(file)
    if options.plot:
        check_picture(options.plot)


def _measure(settings: Settings, options: Options) -> Report:
    from worker.checkpoints.discovery import find_checkpoints
    from worker.evaluation import forms
    from worker.evaluation.report import Report

    task = _task(options)
    checkpoints = find_checkpoints(settings)
    adapters = _measured(forms.Adapters(checkpoints), task, options)
    full = None
    if options.full:
        full = _measured(forms.FullModels(checkpoints, options.full), task, options)
    ranks = {}
    for rank in sorted(set(options.ranks)):
        with tempfile.TemporaryDirectory(prefix="helixq-eval-") as folder:
            extracted = _extract(checkpoints, options.full, rank, Path(folder))
            extracted_checkpoints = find_checkpoints(
                settings.model_copy(update={"adapters": extracted})
            )
            form = forms.Adapters(extracted_checkpoints, f"adapters of rank {rank}")
            ranks[rank] = _measured(form, task, options)
    return Report(adapters, full, ranks)


def _task(options: Options) -> Task:
    from worker.evaluation import task

    if options.task is None:
        answer, approval = options.answer or DEMO_ANSWER, options.approval or DEMO_APPROVAL
        loaded = task.load(DEMO_TASK, answer=answer, approval=approval)
    else:
        loaded = task.load(options.task, answer=options.answer, approval=options.approval)
    if options.limit is None:
        return loaded
    # Taken evenly from the whole file, so that all kinds are included.
    total = len(loaded.questions)
    count = min(options.limit, total)
    return replace(
        loaded, questions=tuple(loaded.questions[i * total // count] for i in range(count))
    )


def _measured(form: Form, task: Task, options: Options) -> Measurement:
    from tqdm import tqdm

    from worker.evaluation.measure import measure

    # Three texts a question; nothing is shown where standard error is no terminal.
    total = 3 * len(task.questions)
    with tqdm(total=total, desc=form.name, unit="text", disable=None, leave=False) as bar:

        def tick(role: Role) -> Any:
            bar.set_postfix_str(role)
            return bar.update

        return measure(
            form,
            task,
            system=options.system,
            sampling=options.sampling,
            batch=options.batch,
            tick=tick,
        )


def _extract(
    checkpoints: Checkpoints, full: dict[Role, Path], rank: int, folder: Path
) -> dict[Role, str]:
    """Extract an adapter for each role into ``folder``; return the adapters' folders."""
    from worker.lora.extract import extract
    from worker.lora.lowrank import Target

    for role, tuned in full.items():
        extract(checkpoints.base.path, tuned, folder / role, target=Target(rank=rank))
    return {role: str(folder / role) for role in full}


def _full(_context: click.Context, _option: click.Parameter, value: str | None) -> dict[Role, Path]:
    if value is None:
        return {}
    from jobs.setting_values import by_role

    try:
        folders = {role: Path(folder).expanduser() for role, folder in by_role(value).items()}
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    for role, folder in folders.items():
        if not (folder / "config.json").is_file():
            raise click.BadParameter(f"{role}: there is no config.json in {folder}")
    return folders


def _ranks(_context: click.Context, _option: click.Parameter, value: str | None) -> tuple[int, ...]:
    try:
        ranks = tuple(int(rank) for rank in value.split(",")) if value else ()
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not a list of numbers such as 4,8,16") from error
    if any(rank < 1 for rank in ranks):
        raise click.BadParameter("a rank must be at least 1")
    return ranks


FILE = click.Path(path_type=Path, dir_okay=False)


@click.command("eval", cls=Command)
@click.argument("task", required=False, type=FILE)
@click.option(
    "--answer",
    metavar="REGEX",
    help="Matches the answer in a text: the last match, or its first group.",
)
@click.option("--approval", metavar="REGEX", help="Matches critiques that approve of the answer.")
@click.option(
    "--full",
    metavar="ROLE=FOLDER,…",
    callback=_full,
    help="Three full models to compare with: actor=…,critic=…,regenerator=….",
)
@click.option(
    "--ranks",
    metavar="N,N,…",
    callback=_ranks,
    help="Also extract adapters of these ranks from the full models, and measure each.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    help="Ask only this many questions, taken evenly from the file.",
)
@click.option("--system", metavar="TEXT", help="System prompt (default: the model card's).")
@click.option(
    "--temperature", type=click.FloatRange(0, 2), default=0, show_default="greedy decoding"
)
@click.option("--max-output-tokens", type=click.IntRange(min=1), default=256, show_default=True)
@click.option(
    "--seed",
    type=click.IntRange(0, MAX_SEED),
    default=0,
    show_default=True,
    help="Seed of the first question; each later one has the next.",
)
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="Number of texts generated together; no text depends on it.",
)
@json_fields(("adapters", "full", "adapters_against_full", "ranks"))
@click.option("--transcripts", type=FILE, help="Write every text to this file, as JSON lines.")
@click.option("--markdown", type=FILE, help="Write the tables into this Markdown file.")
@click.option("--plot", type=FILE, help="Plot them into this file (.svg, .png or .pdf).")
@click.pass_obj
def command(
    settings: Settings,
    /,
    temperature: float,
    max_output_tokens: int,
    seed: int,
    system: str | None,
    **options: Any,
) -> None:
    """Measure what critic and regenerator improve.

    TASK is a file of JSON lines, {"question": …, "answer": …}. An optional "kind" groups the results
    ("sums/long" also counts as "sums"). Without TASK, the demo's held-out questions are used. The
    settings select the models.
    """
    sampling = Sampling(temperature=temperature, max_output_tokens=max_output_tokens, seed=seed)
    run(
        settings,
        Options(system=DEFAULT_SYSTEM if system is None else system, sampling=sampling, **options),
    )
