"""``python -m tests.acceptance.echo_worker``: a worker where PyTorch is not installed.

Its engine is a fake that repeats prompts: an engine elsewhere, reached over a network, needs no PyTorch
in the worker either.
"""

from __future__ import annotations

import sys
import time

#: Packages whose import fails.
for package in ("torch", "transformers", "peft"):
    sys.modules[package] = None  # type: ignore[assignment]  # None makes the import fail

from collections.abc import Callable

from jobs import logs, settings
from jobs.use_cases.workers import Runtime
from worker import main
from worker.engine.interface import Completion, Engine, FinishReason, Generation, Request


class EchoEngine:
    """An engine that returns the prompt's first word."""

    name = "echo"
    max_num_seqs = 2
    max_model_len = 4096

    def submit(self, request: Request) -> Generation:
        generation = Generation(request)
        text = request.prompt.split()[0]
        generation.emit(text)
        generation.finish(
            Completion(
                text=text,
                deltas=[text],
                prompt_tokens=1,
                output_tokens=1,
                finish_reason=FinishReason.STOP,
                max_output_tokens=1,
                first_token_at=time.monotonic(),
            )
        )
        return generation

    def close(self) -> None:
        pass


def make_engine(register: Callable[[Runtime], None]) -> tuple[Engine, Runtime]:
    runtime = Runtime(description={"engine": "echo"}, context=4096, tokenizer="{}")
    register(runtime)
    return EchoEngine(), runtime


if __name__ == "__main__":
    logs.configure("text", "worker")
    sys.exit(main.run(settings.load(), make_engine, time.monotonic()))
