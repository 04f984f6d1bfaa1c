"""A fake of an engine that waits for the test."""

from __future__ import annotations

from queue import Queue

from worker.engine.interface import Completion, FinishReason, Generation, Request


class HeldEngine:
    """A fake of an engine: its generations end when the test says so."""

    name = "held"
    max_num_seqs = 2
    max_model_len = 4096

    def __init__(self) -> None:
        self.generations: Queue[Generation] = Queue()

    def submit(self, request: Request) -> Generation:
        generation = Generation(request)
        self.generations.put(generation)
        return generation

    def close(self) -> None:
        pass


def finish(generation: Generation) -> None:
    reason = FinishReason.CANCELLED if generation.cancelled else FinishReason.STOP
    generation.finish(Completion("Yes.", ["Yes."], 3, 2, reason, 1024, None))
