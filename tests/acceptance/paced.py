"""``python -m tests.acceptance.paced worker``: a worker that is slow and needs little of the processor.

The program as it is, but each step of the engine begins with a pause, as if a large model ran on a GPU.
Texts that never end would otherwise take a processor for as long as a test waits for something else.
"""

from __future__ import annotations

import time
from typing import Any

from cli.main import main

#: Seconds before each step: a text gets up to 50 tokens a second. A step computes for a few milliseconds.
PAUSE = 0.02


def arrange() -> None:
    """Have each step begin with a pause."""
    from worker.engine.batching.step import StepExecutor

    execute = StepExecutor.execute

    def pause_and_execute(self: StepExecutor, output: Any) -> None:
        time.sleep(PAUSE)  # stands for a GPU's computation
        execute(self, output)

    StepExecutor.execute = pause_and_execute  # type: ignore[method-assign]  # on purpose


if __name__ == "__main__":
    arrange()
    main()
