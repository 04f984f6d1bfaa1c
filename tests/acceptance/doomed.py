"""``python -m tests.acceptance.doomed POINT worker``: a process that kills itself at one point.

The program as it is, but that one function of it ends in SIGKILL: nothing of this is in the
product, and nothing between the point and the end can clean up.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from cli.main import main
from jobs.pipeline import Role

#: The index of the stage in which the process dies, at the points that have one.
POSITION = 1
ROLE = Role.CRITIC


def die() -> None:
    print("dying", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def before(owner: Any, name: str, when: Callable[..., bool] = lambda *_: True) -> None:
    """Kill the process instead of the call."""
    original = getattr(owner, name)

    def wrapped(*arguments: Any, **options: Any) -> Any:
        if when(*arguments):
            die()
        return original(*arguments, **options)

    setattr(owner, name, wrapped)


def after(owner: Any, name: str, when: Callable[..., bool]) -> None:
    """Kill the process right after the call."""
    original = getattr(owner, name)

    def wrapped(*arguments: Any, **options: Any) -> Any:
        result = original(*arguments, **options)
        if when(*arguments):
            die()
        return result

    setattr(owner, name, wrapped)


def _sequences(plan: Any, part: str) -> list[Any]:
    return plan.decodes if part == "decode" else [c.sequence for c in plan.prefills]


def _arrange(point: str) -> None:
    from jobs import batch_input
    from jobs.queue import Publisher
    from jobs.use_cases import batch_answers, batch_validation, deliveries, stages
    from worker import local_engine
    from worker.engine.batching.step import StepExecutor
    from worker.stage_runner import StageRunner

    warm_up = local_engine.WARM_UP_PROMPT

    def computes(part: str) -> Callable[..., bool]:
        return lambda _, plan: any(
            s.generation.request.role == ROLE and s.generation.request.prompt != warm_up
            for s in _sequences(plan, part)
        )

    def records(position: int) -> Callable[..., bool]:
        return lambda _, claim, __: claim.stage.index == position

    def answers(_database: Any, _batch: str, _runner: str, results: list[Any], *_: Any) -> bool:
        return bool(results)

    match point:
        case "committed":
            before(Publisher, "publish")
        case "popped":
            before(StageRunner, "run")
        case "prefill":
            before(StepExecutor, "_launch", computes("prefill"))
        case "decode":
            before(StepExecutor, "_launch", computes("decode"))
        case "generated":
            before(stages, "record", records(POSITION))
        case "recorded":
            after(stages, "record", records(POSITION))
        case "done":
            after(stages, "record", records(2))
        case "validated":
            batch_input.PIECE_LINES = 10
            after(batch_validation, "record_piece", lambda *_: True)
        case "submitted":
            before(Publisher, "publish")
        case "answered":
            before(batch_answers, "record_lines", answers)
        case "written":
            after(batch_answers, "record_lines", answers)
        case "webhook_sent":
            before(deliveries, "record")
        case _:
            raise SystemExit(f"{point} is no point of a job's life")


if __name__ == "__main__":
    _arrange(sys.argv.pop(1))
    main()
