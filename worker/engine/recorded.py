"""Decoding in steps of a few shapes, each of them recorded once and replayed.

On a GPU, a step that only decodes is hundreds of small kernels: to launch them one by one should take
longer than to run them. A CUDA graph launches all of them at once, and does again exactly what was
recorded, with what its input holds by then. So shapes must not depend on who decodes: sequences,
tokens of each and the cache's tokens that are looked at are rounded up to powers of two, and what a
step is about is in one tensor, which goes to the device in one copy.

What fills up may write keys and values where nothing is lost: after the newest token of its row, or
at a row's last position, which no sequence ever computes (its last token is drawn and not read).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from collections.abc import Sequence as Several
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from worker.engine.attention import Group, Layout
from worker.engine.drafting import RIDGE
from worker.engine.forward import LlamaForward
from worker.engine.kv.cache import KVCache
from worker.engine.sequence import Sequence

log = logging.getLogger(__name__)

#: The fewest tokens of a row that are looked at: below it, attention takes no time.
LEAST_REACH = 256

#: Computes a step's scores from its input; both stay where they are on the device.
Step = Callable[[Tensor], Tensor]
#: Records a step for an input, and returns what computes its scores from whatever the input holds.
Record = Callable[[Step, Tensor], Callable[[], Tensor]]


@dataclass(frozen=True)
class Shape:
    """What the steps that one recording serves have in common."""

    #: Sequences, those that fill up included.
    count: int
    #: Tokens of each.
    width: int
    #: Tokens of each row of the cache that are looked at.
    reach: int


class RecordedDecoding:
    """Computes steps in which all sequences decode."""

    def __init__(self, forward: LlamaForward, cache: KVCache, record: Record) -> None:
        """
        Args:
            forward: adds adapters without looking at which they are
                (`worker.engine.adapters.StackedLinear`).
            cache: where keys and values are.
            record: as `CudaGraphs`.
        """
        self._forward = forward
        self._cache = cache
        self._record = record
        self._recordings: dict[Shape, tuple[Tensor, Callable[[], Tensor]]] = {}
        #: Whether recording has failed: it is not tried again.
        self._failed = False

    def widest(self, count: int) -> int:
        """Return how many tokens of each sequence are worth a step: what fills up costs as well."""
        fit = max(1, RIDGE["cuda"] // self._places(count))
        return 1 << (fit.bit_length() - 1)

    @torch.inference_mode()
    def __call__(self, decoding: Several[Sequence]) -> Tensor | None:
        """Compute a step: each sequence's newest token and its draft.

        Args:
            decoding: sequences; what they compute ends before their rows' last positions.

        Returns:
            the scores of each token's successor, (tokens, vocabulary), to be used before the next
            step; None if the step could not be recorded.
        """
        shape = self._shape(decoding)
        whole = shape.count == self._cache.rows
        # A sequence that fills up is at the last position of some row.
        last = self._cache.context - 1
        at_rows = range(shape.count) if whole else [decoding[0].row] * shape.count
        table = [[row, last, 0, *[0] * shape.width] for row in at_rows]
        keep: list[int] = []
        for i, sequence in enumerate(decoding):
            place = sequence.row if whole else i
            ids = sequence.newest
            padding = [0] * (shape.width - len(ids))
            table[place] = [sequence.row, sequence.cached, sequence.adapter, *ids, *padding]
            keep += range(place * shape.width, place * shape.width + len(ids))
        found = self._replay(shape, torch.tensor(table))
        if found is None or keep == list(range(len(found))):
            return found
        return found[torch.tensor(keep, device=found.device)]

    def _shape(self, decoding: Several[Sequence]) -> Shape:
        width = _power(max(len(sequence.newest) for sequence in decoding))
        reach = max(sequence.cached + len(sequence.newest) for sequence in decoding)
        reach = min(self._cache.context, max(LEAST_REACH, _power(reach)))
        return Shape(self._places(len(decoding)), width, reach)

    def _places(self, count: int) -> int:
        """Return how many sequences a step is for; all rows of the cache where that is cheaper.

        Single rows are copied before they are looked at, which is three times the reading; all
        together are looked at where they are.
        """
        count = _power(count)
        return count if 3 * count <= self._cache.rows else self._cache.rows

    def _replay(self, shape: Shape, table: Tensor) -> Tensor | None:
        """Compute a step.

        Args:
            shape: its shape.
            table: row, position, adapter and tokens of each sequence, (count, 3 + width) int64.
        """
        if shape not in self._recordings:
            if self._failed:
                return None
            inputs = table.to(self._cache.device)
            try:
                replay = self._record(lambda inputs: self._compute(shape, inputs), inputs)
            except Exception:
                # All goes on without, slower; if it is the device's fault, the next step will tell.
                log.warning("decoding steps are not recorded any more", exc_info=True)
                self._failed = True
                return None
            self._recordings[shape] = inputs, replay
        inputs, replay = self._recordings[shape]
        inputs.copy_(table)
        return replay()

    def _compute(self, shape: Shape, inputs: Tensor) -> Tensor:
        """Compute all places' scores, (count x width, vocabulary); nothing here may ask the host."""
        rows, at, adapters = inputs[:, :3].T
        ahead = torch.arange(shape.width, device=inputs.device)
        positions = (at[:, None] + ahead).clamp(max=self._cache.context - 1)
        whole = shape.count == self._cache.rows
        group = Group(
            slice(0, positions.numel()),
            # What fills up sees something, too: a mean of nothing is a NaN, which would be stored.
            positions.clamp(max=shape.reach - 1),
            slice(0, shape.count) if whole else rows,
            shape.reach,
        )
        rows, adapters = (x[:, None].expand_as(positions).flatten() for x in (rows, adapters))
        layout = Layout(self._cache, rows, positions.flatten(), [group])
        return self._forward.decode(inputs[:, 3:].flatten(), adapters, layout)


def recorder_for(device: torch.device) -> Record | None:
    """Return how steps are recorded on a device; None if not at all."""
    return CudaGraphs() if device.type == "cuda" else None


def _power(number: int) -> int:
    """Return the smallest power of two that is no smaller."""
    return 1 << (number - 1).bit_length()


class CudaGraphs:
    """Records steps as CUDA graphs; all share their memory, since one runs at a time."""

    def __init__(self) -> None:
        self._pool: Any = None
        self._aside: Any = None

    def __call__(self, step: Step, inputs: Tensor) -> Callable[[], Tensor]:
        """Record a step.

        Args:
            step: launches the same kernels whatever the input holds, and waits for none.
            inputs: on the device; read again at each replay.

        Returns:
            replays the step on the current stream, and returns its scores, which the next replay of
            any step overwrites.
        """
        with torch.cuda.device(inputs.device):  # it need not be the first one
            stream = torch.cuda.current_stream()
            if self._aside is None:
                self._aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch has no types there
            # Kernels are loaded and workspaces allocated when they are first used, which cannot be
            # recorded. The step may run twice: it writes the same.
            self._aside.wait_stream(stream)
            with torch.cuda.stream(self._aside):
                step(inputs)
            stream.wait_stream(self._aside)
            graph = torch.cuda.CUDAGraph()
            # Other threads may go on allocating meanwhile. The outer block sets the stream back even
            # where the recording ends in an error.
            with (
                torch.cuda.stream(stream),
                torch.cuda.graph(
                    graph,
                    pool=self._pool,
                    stream=self._aside,
                    capture_error_mode="thread_local",
                ),
            ):
                scores = step(inputs)
            self._pool = graph.pool()

        def replay() -> Tensor:
            graph.replay()
            return scores

        return replay
