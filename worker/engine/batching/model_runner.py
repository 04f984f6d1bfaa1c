"""The interface between the engine's loop and what computes its steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from worker.engine.batching.scheduler_output import SchedulerOutput
from worker.engine.batching.sequence import Sequence
from worker.engine.kv.manager import KVCacheManager


@dataclass(frozen=True)
class ModelRunnerOutput:
    """The sampled tokens of a step."""

    #: The sequences that were sampled. Each has one token, and one more for each draft token.
    sequences: list[Sequence]
    #: Sequence by sequence. Ignore those after a rejected draft token.
    sampled_token_ids: list[int]
    #: Whether the logits of each token were finite.
    is_finite: list[bool]


class InFlightStep(Protocol):
    """A launched step."""

    @property
    def sampled_sequences(self) -> list[Sequence]:
        """The sequences that are sampled."""

    def get_output(self) -> ModelRunnerOutput:
        """Wait until the step is computed.

        Raises:
            torch.AcceleratorError: the device is lost.
        """


class ModelRunner(Protocol):
    """Computes steps in the order in which they are launched."""

    #: Whether a step may be launched before the output of the step before is read. Tokens that are not
    #: read yet are `worker.engine.batching.sequence.PENDING_TOKEN`, and there are no drafts.
    async_scheduling: bool

    @property
    def kv(self) -> KVCacheManager:
        """Manages the KV cache that steps are computed in."""

    @property
    def kv_cache_tokens(self) -> int:
        """Capacity of the KV cache, in tokens of all sequences together."""

    @property
    def cuda_graphs(self) -> bool:
        """Whether decode steps are CUDA graphs."""

    def launch(self, output: SchedulerOutput) -> InFlightStep:
        """Start a step.

        Raises:
            torch.OutOfMemoryError: no token of the step counts as computed.
        """

    def compute_logits(self, output: SchedulerOutput) -> Tensor:
        """Compute a step without sampling.

        Returns:
            logits after the last token of each sampled sequence, in the order of the step:
            (sequences, vocabulary), on the device.
        """

    def discard_uncomputed(self, sequence: Sequence) -> None:
        """Discard keys and values that were stored beyond a sequence's computed tokens."""
