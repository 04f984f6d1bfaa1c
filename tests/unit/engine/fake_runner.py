"""A fake model runner, whose tokens depend only on a sequence and a position."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from worker.engine.batching.model_runner import ModelRunnerOutput
from worker.engine.batching.scheduler_output import SchedulerOutput
from worker.engine.batching.sequence import Sequence
from worker.engine.kv.row_manager import RowManager

#: The tokens of every text, over and over.
CYCLE = (300, 301, 302, 303, 304, 305, 306)


def token_at(sequence: Sequence, position: int) -> int:
    """Return the token that is sampled at a position of a sequence's output."""
    return CYCLE[(len(sequence.prompt_token_ids) + position) % len(CYCLE)]


def text_of(sequence: Sequence, num_tokens: int) -> list[int]:
    return [token_at(sequence, position) for position in range(num_tokens)]


@dataclass
class FakeStep:
    """A launched step."""

    output: ModelRunnerOutput
    error: Exception | None

    @property
    def sampled_sequences(self) -> list[Sequence]:
        return self.output.sequences

    def get_output(self) -> ModelRunnerOutput:
        if self.error:
            raise self.error
        return self.output


@dataclass
class FakeRunner:
    """Samples `token_at`; faults are functions of a step that return an error or None."""

    kv: RowManager
    async_scheduling: bool = False
    cuda_graphs: bool = False
    #: The fault of a step when it is launched, and when it is read.
    launch_fault: Callable[[SchedulerOutput], Exception | None] = lambda _: None
    read_fault: Callable[[SchedulerOutput], Exception | None] = lambda _: None
    #: Whether the logits at a position of a sequence's output are finite.
    is_finite: Callable[[Sequence, int], bool] = lambda _sequence, _position: True
    kv_cache_tokens: int = 0
    #: Steps that were launched.
    launched: list[SchedulerOutput] = field(default_factory=list)

    def launch(self, output: SchedulerOutput) -> FakeStep:
        if error := self.launch_fault(output):
            raise error
        self.launched.append(output)
        self.kv.take_copies()
        self.kv.take_rows_to_zero()
        sampled = [*output.decodes, *(c.sequence for c in output.prefills if c.is_last)]
        positions = [
            (s, len(s.output_token_ids) + i)
            for s in sampled
            for i in range(1 + len(s.draft_token_ids))
        ]
        token_ids = [token_at(*position) for position in positions]
        finite = [self.is_finite(*position) for position in positions]
        return FakeStep(ModelRunnerOutput(sampled, token_ids, finite), self.read_fault(output))

    def compute_logits(self, output: SchedulerOutput) -> Tensor:
        raise NotImplementedError

    def discard_uncomputed(self, sequence: Sequence) -> None:
        pass
