"""``python -m tests.acceptance.storm.worker FOLDER SECONDS worker``: a worker of a storm.

The program as it is, but its clock is off by SECONDS, its engine is as slow as that of `tests.acceptance.paced`, and it
fails once at each question with `BREAKS` in it. What has failed is noted in FOLDER, for all workers.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from contextlib import suppress
from pathlib import Path

from jobs.pipeline import Role

#: The word of a question at which the engine fails once: in the second stage.
BREAKS = "breaks"


def fail_once(folder: Path) -> None:
    """Have the engine fail at the first attempt of some questions, whichever worker makes it."""
    from worker.engine.batching.engine import BatchingEngine
    from worker.engine.interface import EngineError, Generation, Request

    submit = BatchingEngine.submit

    def is_first(prompt: str) -> bool:
        with suppress(FileExistsError):
            (folder / hashlib.sha256(prompt.encode()).hexdigest()).open("x").close()
            return True
        return False

    def fail_or_submit(self: BatchingEngine, request: Request) -> Generation:
        if request.role == Role.CRITIC and BREAKS in request.prompt and is_first(request.prompt):
            generation = Generation(request)
            generation.finish(EngineError("a test has it fail once"))
            return generation
        return submit(self, request)

    BatchingEngine.submit = fail_or_submit  # type: ignore[method-assign]  # on purpose


if __name__ == "__main__":
    folder = Path(sys.argv.pop(1))
    importlib.import_module("tests.acceptance.shifted_clock")  # It takes its argument, too.
    from cli.__main__ import run
    from tests.acceptance import paced

    paced.arrange()
    fail_once(folder)
    run()
