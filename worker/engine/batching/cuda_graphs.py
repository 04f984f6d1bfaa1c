"""Captures steps as CUDA graphs, and replays them.

A step is hundreds of small kernels, which the host takes longer to launch one by one than the device to
run. A graph launches all of them at once, and runs exactly what was captured, on what its input holds by
then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

#: Outputs of a step: tensors that stay where they are on the device.
StepOutputs = tuple[Tensor, Tensor]
#: Computes a step from its input.
StepFunction = Callable[[Tensor], StepOutputs]
#: Captures a step for an input tensor; returns what replays it on whatever the tensor holds.
Capture = Callable[[StepFunction, Tensor], Callable[[], StepOutputs]]


class CudaGraphCapture:
    """Captures steps as CUDA graphs. They share one memory pool, since one runs at a time."""

    def __init__(self) -> None:
        self._pool: Any = None
        self._side_stream: Any = None

    def __call__(self, step: StepFunction, inputs: Tensor) -> Callable[[], StepOutputs]:
        """Capture a step.

        Args:
            step: launches the same kernels whatever the input holds, and waits for none of them.
            inputs: on the current device; read again at each replay.

        Returns:
            a function that replays the step on the current stream and returns its outputs, which the next
            replay of any step overwrites.
        """
        stream = torch.cuda.current_stream()
        if self._side_stream is None:
            self._side_stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch has no types there
        # Warm up: kernels are loaded and workspaces allocated at their first use, which cannot be captured.
        # The step may run twice: it writes the same.
        self._side_stream.wait_stream(stream)
        with torch.cuda.stream(self._side_stream):
            step(inputs)
        stream.wait_stream(self._side_stream)
        graph = torch.cuda.CUDAGraph()
        # "thread_local": other threads may allocate meanwhile. The outer block restores the stream even if the
        # capture fails.
        with (
            torch.cuda.stream(stream),
            torch.cuda.graph(
                graph,
                pool=self._pool,
                stream=self._side_stream,
                capture_error_mode="thread_local",
            ),
        ):
            outputs = step(inputs)
        self._pool = graph.pool()

        def replay() -> StepOutputs:
            graph.replay()
            return outputs

        return replay


def cuda_graph_capture(device: torch.device) -> Capture | None:
    """Return what captures steps on a device; None without CUDA."""
    return CudaGraphCapture() if device.type == "cuda" else None
