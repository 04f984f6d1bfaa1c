"""``python -m tests.clients.worker``: a worker whose answers show what reached the model.

Clients are checked against it instead of a language model: it answers at once, and what it says and
when depends on the question alone.

- "What is my name?": the name that an earlier turn of the prompt gave
- a question with "silent": an answer in whose draft nothing comes for `SILENCE` seconds
- a question with "endless": a draft that goes on until the job is cancelled
- any other: "You said: " and the question
"""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Callable, Iterator

from jobs import logs, settings
from jobs.pipeline import Role
from jobs.use_cases.workers import Runtime
from worker import main
from worker.engine.interface import Completion, Engine, FinishReason, Generation, Request
from worker.engine.tokenization.stop_strings import StopStrings

#: Seconds without text: more than the 15 after which a stream sends a comment.
SILENCE = 20.0
#: Seconds between two pieces of a text: the clients see a stream and not a single piece.
PAUSE = 0.01
CONTEXT = 4096

_QUESTION = re.compile(r".*USER: (.*?) \n(?:ASSISTANT: |RESPONSE: )", re.DOTALL)
_NAME = re.compile(r"USER: My name is (\w+)\.")


def answer_to(prompt: str) -> str:
    """Return the answer to the question in a prompt."""
    match = _QUESTION.match(prompt)
    question = match[1] if match else ""
    if question != "What is my name?":
        return f"You said: {question}"
    name = _NAME.search(prompt)
    return f"Your name is {name[1]}." if name else "I do not know your name."


class ScriptedEngine:
    """An engine without a model."""

    name = "scripted"
    max_num_seqs = 64
    max_model_len = CONTEXT

    def submit(self, request: Request) -> Generation:
        generation = Generation(request)
        threading.Thread(target=self._run, args=[generation], daemon=True).start()
        return generation

    def close(self) -> None:
        pass

    def _run(self, generation: Generation) -> None:
        sampling = generation.request.sampling
        limit = sampling.max_output_tokens
        stop = StopStrings(sampling.stop) if sampling.stop else None
        started_at = time.monotonic()
        deltas: list[str] = []
        reason = FinishReason.STOP
        for delta, pause in _pieces(generation.request):
            until = time.monotonic() + pause
            while not generation.cancelled and time.monotonic() < until:
                time.sleep(PAUSE)
            if generation.cancelled:
                reason = FinishReason.CANCELLED
                break
            if len(deltas) == limit:
                reason = FinishReason.LENGTH
                break
            deltas.append(delta if stop is None else stop.push(delta))
            generation.emit(deltas[-1])
            if stop is not None and stop.found:
                break
        if stop is not None and (rest := stop.finish()):
            deltas.append(rest)
            generation.emit(rest)
        generation.finish(
            Completion(
                text="".join(deltas),
                deltas=deltas,
                prompt_tokens=len(generation.request.prompt.split()),
                output_tokens=len(deltas) + (reason is FinishReason.STOP),
                finish_reason=reason,
                max_output_tokens=limit,
                first_token_at=started_at if deltas else None,
            )
        )


def _pieces(request: Request) -> Iterator[tuple[str, float]]:
    """Yield the pieces of a text, each with the seconds that pass before it."""
    answer = answer_to(request.prompt)
    words = ["Say", "less."] if request.role is Role.CRITIC else answer.split(" ")
    drafts = request.role is Role.ACTOR
    for index, word in enumerate(words):
        silent = drafts and index == 1 and "silent" in answer
        yield f" {word}" if index else word, SILENCE if silent else PAUSE
    while drafts and "endless" in answer:
        yield " and on", PAUSE * 5


def make_engine(register: Callable[[Runtime], None]) -> tuple[Engine, Runtime]:
    tokenizer = (settings.DEMO_CHECKPOINT / "base" / "tokenizer.json").read_text(encoding="utf-8")
    runtime = Runtime({"engine": "scripted"}, CONTEXT, tokenizer)
    register(runtime)
    return ScriptedEngine(), runtime


if __name__ == "__main__":
    logs.configure("text", "worker")
    sys.exit(main.run(settings.load(), make_engine, time.monotonic()))
