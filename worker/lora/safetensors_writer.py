"""Write safetensors files tensor by tensor."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Self

import torch
from torch import Tensor

from worker.lora import LoraError
from worker.lora.files import explain_write_errors


class SafetensorsWriter:
    """Writes a safetensors file tensor by tensor, which the safetensors library cannot do.

    The format (https://huggingface.co/docs/safetensors): the header's length in eight bytes, little
    endian; the header, which is JSON padded with spaces; the tensors' bytes without gaps. The header
    has shapes and dtypes alone, so it can be written first.
    """

    def __init__(self, file: Path, layout: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
        """Open the file and write its header.

        Args:
            file: the file to write.
            layout: for each tensor, the dtype's name in the safetensors format, and the shape.
        """
        self._file = file
        # With wide dtypes first, every tensor is aligned without gaps.
        order = sorted(layout, key=lambda name: (-_itemsize(layout[name][0]), name))
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        self._offsets: dict[str, tuple[int, int]] = {}
        at = 0
        for name in order:
            dtype, shape = layout[name]
            end = at + torch.Size(shape).numel() * _itemsize(dtype)
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
            self._offsets[name] = (at, end)
            at = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._start = 8 + len(text)
        with explain_write_errors(file):
            self._stream: IO[bytes] = file.open("wb")
        with explain_write_errors(file):
            self._stream.write(len(text).to_bytes(8, "little") + text)

    def write(self, name: str, tensor: Tensor) -> None:
        """Write a tensor, which must have the dtype and shape that the layout gives for it."""
        at, end = self._offsets.pop(name)
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        assert data.nbytes == end - at, name  # noqa: S101 (the header is already written)
        with explain_write_errors(f"{self._file}: {name}"):
            self._stream.seek(self._start + at)
            self._stream.write(data.data)
            # A full disk would otherwise be reported for a later tensor.
            self._stream.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error_type: object, *_: object) -> None:
        try:
            with explain_write_errors(self._file):
                self._stream.close()
        except LoraError:
            if not error_type:
                raise  # otherwise `write` has reported it, with the tensor's name
        # A tensor that was not written would read as zeros.
        assert error_type or not self._offsets, self._offsets  # noqa: S101 (a bug, not bad input)


def _itemsize(dtype: str) -> int:
    """Return the bytes of one value."""
    bits = "".join(c for c in dtype.partition("_")[0] if c.isdigit())
    return 1 if dtype == "BOOL" else int(bits) // 8
