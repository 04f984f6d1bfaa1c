"""What the engine's loop asks of whoever computes its steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from worker.engine.batching.scheduler import Plan
from worker.engine.batching.sequence import Sequence
from worker.engine.kv.manager import KVCacheManager


@dataclass(frozen=True)
class Drawn:
    """The tokens of a step."""

    #: For whom they were drawn. Each has one, and one more for each token of its draft.
    sequences: list[Sequence]
    #: Of one sequence after the other; those after a wrong draft count for nothing.
    tokens: list[int]
    #: Whether the scores that each was drawn from were numbers.
    sound: list[bool]


class Launched(Protocol):
    """A step on its way."""

    @property
    def drawing(self) -> list[Sequence]:
        """For whom tokens are drawn."""

    def wait(self) -> Drawn:
        """Wait until it is computed.

        Raises:
            torch.AcceleratorError: the device is lost.
        """


class ModelRunner(Protocol):
    """Computes steps, one after the other, in the order in which they are launched."""

    #: Whether a step may be launched before the one before it is read: tokens that were not read yet
    #: are `worker.engine.batching.sequence.PENDING`, and there are no drafts.
    ahead: bool

    @property
    def memory(self) -> KVCacheManager:
        """Hands out the memory that steps are computed in."""

    @property
    def tokens_that_fit(self) -> int:
        """Tokens that keys and values have room for, of all sequences together."""

    def launch(self, plan: Plan) -> Launched:
        """Begin a step.

        Raises:
            torch.OutOfMemoryError: nothing of it counts as computed.
        """

    def score(self, plan: Plan) -> Tensor:
        """Compute a step without drawing.

        Returns:
            the scores of what may follow each drawing sequence, in the plan's order: (sequences,
            vocabulary), on the device.
        """

    def forget(self, sequence: Sequence) -> None:
        """See to it that what was computed of a sequence beyond its cached tokens does no harm."""
