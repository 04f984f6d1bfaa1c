"""Steps of a few shapes, each recorded once as a CUDA graph and replayed.

A step is hundreds of small kernels, and to launch them one by one takes the host longer than the device
takes to run them. A graph launches all of them at once, and does again exactly what was recorded, with
what its input holds by then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

#: What a step gives: tensors that stay where they are on the device.
Results = tuple[Tensor, Tensor]
#: Computes a step from its input.
Step = Callable[[Tensor], Results]
#: Records a step for an input, and returns what computes its results from whatever the input holds.
Record = Callable[[Step, Tensor], Callable[[], Results]]


class CudaGraphs:
    """Records steps as CUDA graphs; all share their memory, since one runs at a time."""

    def __init__(self) -> None:
        self._pool: Any = None
        self._aside: Any = None

    def __call__(self, step: Step, inputs: Tensor) -> Callable[[], Results]:
        """Record a step.

        Args:
            step: launches the same kernels whatever the input holds, and waits for none.
            inputs: on the device; read again at each replay.

        Returns:
            replays the step on the current stream, and returns its results, which the next replay of
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
                results = step(inputs)
            self._pool = graph.pool()

        def replay() -> Results:
            graph.replay()
            return results

        return replay


def recorder_for(device: torch.device) -> Record | None:
    """Return how steps are recorded on a device; None if not at all."""
    return CudaGraphs() if device.type == "cuda" else None
