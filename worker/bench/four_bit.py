"""Products with 4-bit weights on a GPU, compared with 16-bit weights and with bitsandbytes.

``python -m worker.bench.four_bit`` prints a line of JSON for each measurement. It needs PyTorch and Triton
alone; bitsandbytes is measured if it is installed. The sizes are those of Mistral-7B's layers. Each time is
that of a CUDA graph over so many copies of the weight that none is in the cache when it is read again, as
with a model's layers.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from worker.engine.cuda.four_bit import QUANT_BLOCK, FourBitWeight

#: (in, out) of q, k and v, of the attention's output, of gate and up, and of down.
SHAPES = ((4096, 6144), (4096, 4096), (4096, 28672), (14336, 4096))
ROWS = (1, 4, 16, 32, 64, 128, 256)
#: Bytes of weights that a graph reads: more than the cache's size.
READ = 2**28
REPEATS = 10
#: bitsandbytes' codes: a sign, an exponent of two bits and a mantissa of one; quantiles of the normal
#: distribution.
_MAGNITUDES = (0.0, 1 / 192, 2 / 3, 1.0, 1 / 3, 1 / 2, 1 / 6, 1 / 4)
FP4 = (*_MAGNITUDES, *(-value for value in _MAGNITUDES))
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


def quantize(weight: Tensor, code: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Quantize a matrix as bitsandbytes does: each weight to the nearest value of a code.

    Args:
        weight: (out, in); in a multiple of 64.
        code: 16 values.

    Returns:
        two weights in each byte, (out * in / 2, 1) uint8, and the scales of the blocks, float32.
    """
    blocks = weight.float().view(-1, QUANT_BLOCK)
    absmax = blocks.abs().amax(dim=1)
    values, order = torch.tensor(code, device=weight.device).sort()
    nearest = torch.bucketize(blocks / absmax[:, None], (values[1:] + values[:-1]) / 2)
    codes = order[nearest].to(torch.uint8).view(-1, 2)
    return codes[:, :1] << 4 | codes[:, 1:], absmax


def four_bit(weight: Tensor, code: Sequence[float] = FP4) -> FourBitWeight:
    """Quantize a matrix, in the layout of the kernels."""
    packed, absmax = quantize(weight, code)
    shape = (weight.shape[0], weight.shape[1])
    return FourBitWeight.pack(packed, absmax, torch.tensor(code), shape, QUANT_BLOCK)


def _microseconds(functions: Sequence[Callable[[], object]]) -> float:
    """Return the microseconds of each function in a CUDA graph of all; the minimum of several runs."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch has no types there
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # compiles, which cannot be captured
        functions[0]()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for function in functions:
            function()
    times: list[float] = []
    for _ in range(REPEATS):
        start: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch has no types there
        end: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch has no types there
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1000 / len(functions))
    return min(times)


def _copies(size: int) -> int:
    return max(2, -(-READ // size))


def _print(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


def _check(dtype: torch.dtype) -> None:
    """Print the kernels' error relative to float64, and whether a row depends on the others."""
    from worker.engine.cuda import four_bit_kernels as kernels

    for name, code in (("fp4", FP4), ("nf4", NF4)):
        torch.manual_seed(0)
        weight = four_bit(torch.randn(1024, 4096, device="cuda"), code)
        x = torch.randn(64, 4096, device="cuda", dtype=dtype)
        exact = weight.dequantize(torch.float32).double()
        expected = x.double() @ exact.T
        bits = weight.words[..., None].view(torch.uint8).permute(1, 0, 3, 2)
        codes = torch.stack([bits >> 4, bits & 15], dim=-1).view(1024, -1, QUANT_BLOCK)
        twin = (weight.code[codes.int()] * weight.scales.T[..., None]).flatten(1)
        same = torch.equal(twin.to(dtype), weight.dequantize(dtype))
        for tiles in kernels.TILE_CONFIGS:
            output = kernels.multiply(x, weight, config=tiles)
            error = (output - expected).norm() / expected.norm()
            independent = [
                torch.equal(kernels.multiply(x[:rows], weight, config=tiles), output[:rows])
                for rows in (1, 2, 7, 16, 17, 33)
            ]
            _print(
                check=name,
                dtype=str(dtype),
                config=asdict(tiles),
                relative_error=float(error),
                of_16_bit=float((x @ exact.T.to(dtype) - expected).norm() / expected.norm()),
                rows_independent=all(independent),
                dequantized_exactly=same,
            )


def _measure(
    inputs: int, outputs: int, rows: Sequence[int], chosen: Sequence[int], dtype: torch.dtype
) -> None:
    from worker.engine.cuda import four_bit_kernels as kernels

    torch.manual_seed(0)
    plain = torch.randn(outputs, inputs, device="cuda", dtype=dtype)
    first = four_bit(plain)
    size = first.words.nbytes + first.scales.nbytes
    weights = [
        FourBitWeight(first.words.clone(), first.scales.clone(), first.code, first.values)
        for _ in range(_copies(size))
    ]
    plains = [plain.clone() for _ in range(_copies(plain.nbytes))]
    for count in rows:
        x = torch.randn(count, inputs, device="cuda", dtype=dtype)
        sizes = {"in": inputs, "out": outputs, "rows": count}
        base = _microseconds([partial(nn.functional.linear, x, weight) for weight in plains])
        _print(**sizes, way="cublas", us=base, gb_s=plain.nbytes / base / 1e3)
        for number in chosen:
            tiles = kernels.TILE_CONFIGS[number]
            us = _microseconds(
                [partial(kernels.multiply, x, weight, config=tiles) for weight in weights]
            )
            _print(**sizes, way=f"tiles {number}", us=us, gb_s=size / us / 1e3, times=base / us)
        us = _microseconds([partial(_dequantized, x, weight) for weight in weights])
        _print(**sizes, way="dequantize", us=us, times=base / us)
        if importlib.util.find_spec("bitsandbytes"):
            us = _microseconds(_bitsandbytes(x, plains))
            _print(**sizes, way="bitsandbytes", us=us, times=base / us)


def _dequantized(x: Tensor, weight: FourBitWeight) -> Tensor:
    return nn.functional.linear(x, weight.dequantize(x.dtype))


def _bitsandbytes(x: Tensor, plains: Sequence[Tensor]) -> list[Callable[[], object]]:
    bitsandbytes = importlib.import_module("bitsandbytes")

    functions: list[Callable[[], object]] = []
    for plain in plains:
        packed, state = bitsandbytes.functional.quantize_4bit(plain, quant_type="fp4")
        functions.append(partial(bitsandbytes.matmul_4bit, x, packed, quant_state=state))
    return functions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument(
        "--tiles", type=int, nargs="+", default=(0, 1, 2, 3), help="indices in `TILE_CONFIGS`"
    )
    parser.add_argument("--dtype", choices=["bfloat16", "float16"], default="bfloat16")
    parser.add_argument(
        "--check", action="store_true", help="check the results and measure nothing"
    )
    options = parser.parse_args()
    dtype: torch.dtype = getattr(torch, options.dtype)
    _print(device=torch.cuda.get_device_name(), torch=torch.__version__, dtype=options.dtype)
    with torch.inference_mode():
        _check(dtype)
        for inputs, outputs in () if options.check else SHAPES:
            _measure(inputs, outputs, options.rows, options.tiles, dtype)


if __name__ == "__main__":
    main()
