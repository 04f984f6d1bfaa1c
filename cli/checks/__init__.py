"""The checks of `helixq doctor`, a module for each subject. Each yields what it found; none changes anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from cli.checks import (
    broker,
    data,
    database,
    gpu,
    log_key,
    metrics,
    model,
    traces,
    web,
    workers,
)
from cli.checks.findings import Findings, Level, Result
from cli.errors import explain
from jobs.settings import Settings

#: In the order in which they are shown.
CHECKS: dict[str, Callable[[Settings], Findings]] = {
    "data": data.check,
    "database": database.check,
    "redis": broker.check,
    "log": log_key.check,
    "model": model.check,
    "gpu": gpu.check,
    "worker": workers.check,
    "web": web.check,
    "metrics": metrics.check,
    "traces": traces.check,
}
#: Those that are left out if the database cannot be used.
NEED_DATABASE = {"log", "worker"}


def run(settings: Settings, skipped: tuple[str, ...]) -> Iterator[Result]:
    """Run the checks that are not skipped; yield what they find as they find it.

    What needs the database is left out if that cannot be used.
    """
    yield Result("settings", Level.OK, "all settings are valid")
    has_database = True
    for name, check in CHECKS.items():
        if name in skipped or (name in NEED_DATABASE and not has_database):
            continue
        try:
            for finding in check(settings):
                yield Result(name, finding.level, finding.message)
        except Exception as problem:  # noqa: BLE001 (a check that fails must not hide the others)
            message = explain(problem) or f"the check failed ({type(problem).__name__}: {problem})"
            yield Result(name, Level.ERROR, message)
            has_database &= name != "database"
