"""``python -m tests.acceptance.storm.worker FOLDER SECONDS worker``: a worker of a storm.

The program as it is, but its clock is off by SECONDS, its engine is as slow as that of `tests.acceptance.paced`, and it
fails once at each question with `BREAKS` in it. What has failed is noted in FOLDER, for all workers. It kills itself at
each question with `KILLS` in it.
"""

from __future__ import annotations

import hashlib
import importlib
import itertools
import os
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path

from jobs.pipeline import Role

#: The word of a question at which the engine fails once: in the second stage.
BREAKS = "breaks"
#: The word of a question whose second stage kills each worker that runs it, and what such a worker prints before.
KILLS, KILLED = "kills", "killed by a question"
#: How many pieces of the text there are then, unless it is shorter: some of them have been published.
PIECES = 12


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


def die_at_some_questions() -> None:
    """Have the second stage of some questions kill the process, in the middle of its text."""
    from worker.engine.batching.engine import BatchingEngine
    from worker.engine.interface import EngineError, Generation, Request

    submit = BatchingEngine.submit

    def pass_on_and_die(generation: Generation, passed_on: Generation) -> None:
        for piece in itertools.islice(generation, PIECES):
            passed_on.emit(piece)
        if not generation.cancelled:
            print(KILLED, file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            passed_on.finish(generation.result())
        except EngineError as error:
            passed_on.finish(error)

    def submit_and_die(self: BatchingEngine, request: Request) -> Generation:
        generation = submit(self, request)
        if request.role != Role.CRITIC or KILLS not in request.prompt:
            return generation
        # It never ends by itself: short texts kill, too.
        passed_on = Generation(request)
        passed_on.cancel = generation.cancel  # type: ignore[method-assign]  # on purpose
        threading.Thread(target=pass_on_and_die, args=(generation, passed_on), daemon=True).start()
        return passed_on

    BatchingEngine.submit = submit_and_die  # type: ignore[method-assign]  # on purpose


if __name__ == "__main__":
    folder = Path(sys.argv.pop(1))
    importlib.import_module("tests.acceptance.shifted_clock")  # It takes its argument, too.
    from cli.__main__ import run
    from tests.acceptance import paced

    paced.arrange()
    fail_once(folder)
    die_at_some_questions()
    run()
