"""Measures an idle job and many jobs at once, and compares them with the recorded figures."""

from __future__ import annotations

import datetime as dt
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from cli.bench import measure_idle, measure_service
from cli.errors import ExpectedError

MAX_OUTPUT_TOKENS = 256
#: Rows of the table: name, unit, field, and the factor from the field to the unit.
ROWS = (
    ("idle job, the engine alone", "ms", "idle_engine", 1000),
    ("idle job, the service", "ms", "idle_service", 1000),
    ("jobs an hour, many at once", "", "jobs_an_hour", 1),
)


@dataclass(frozen=True)
class Figures:
    """The measurements of one run on the demo's model."""

    date: str
    machine: str
    #: Seconds of a job's three stages on the engine alone, and of the job in the service (medians).
    idle_engine: float
    idle_service: float
    #: Of the service with 64 jobs at once.
    jobs_an_hour: float

    @classmethod
    def read(cls, file: Path) -> Self | None:
        """Read figures from a file; None if there is no file.

        Raises:
            ExpectedError: the file has another content.
        """
        if not file.exists():
            return None
        try:
            fields: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            return cls(**fields)
        except (ValueError, TypeError) as error:
            raise ExpectedError(f"{file} was not written by `--record`: {error}") from error

    def write(self, file: Path) -> None:
        file.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


def measure(
    folder: Path,
    questions: Sequence[str],
    *,
    idle_jobs: int,
    at_once: int,
    machine: str,
    on_progress: Callable[[str], object] = lambda _: None,
) -> Figures:
    """Answer some questions one at a time, and all of them at once.

    Args:
        folder: an empty folder, for the services' data.
        questions: for the jobs at once; the first of them are the idle jobs.
        idle_jobs: the number of jobs to run one at a time.
        at_once: slots of the engine.
        machine: the description of the machine.
        on_progress: called with a description of the next step.
    """
    idle_folder, busy_folder = folder / "idle", folder / "busy"
    idle_folder.mkdir()
    busy_folder.mkdir()
    times = measure_idle.jobs(
        idle_folder,
        questions[: idle_jobs + 1],
        max_output_tokens=MAX_OUTPUT_TOKENS,
        seed=0,
        on_progress=on_progress,
    )
    seconds, _ = measure_service.run(
        busy_folder,
        questions,
        at_once=at_once,
        max_output_tokens=MAX_OUTPUT_TOKENS,
        seed=0,
        on_progress=on_progress,
    )
    return Figures(
        date=dt.datetime.now(dt.UTC).date().isoformat(),
        machine=machine,
        idle_engine=statistics.median(engine for engine, _ in times),
        idle_service=statistics.median(service for _, service in times),
        jobs_an_hour=len(questions) / seconds * 3600,
    )


def table(now: Figures, recorded: Figures | None) -> str:
    """Return the figures as a Markdown table."""
    lines = ["| | now | recorded | now / recorded |", "|---|---|---|---|"]
    for name, unit, field, scale in ROWS:
        value = getattr(now, field) * scale
        before = getattr(recorded, field) * scale if recorded else None
        old = "–" if before is None else f"{before:,.0f} {unit}".strip()
        ratio = f"{value / before:.2f}" if before else "–"
        lines.append(f"| {name} | {f'{value:,.0f} {unit}'.strip()} | {old} | {ratio} |")
    lines.append("")
    for name, figures in (("now", now), ("recorded", recorded)):
        if figures:
            lines.append(f"{name}: {figures.date}, {figures.machine}")
    return "\n".join(lines)
