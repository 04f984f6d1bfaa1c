"""Looks up codes of 4 bits in registers: eight of them in some twenty instructions.

A GPU's `prmt` selects four bytes out of eight by three bits each, as they are in a packed word. Two of
them, and a third that chooses between the two, look up four codes in a table of 16 bytes; values of 16 bits
take two tables. Kernels for other 4-bit formats do the same (FLUTE, Guo et al. 2024, has the table in
shared memory instead).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

#: Number of factors that are tried for a table: between powers of two, where rounding differs.
NUM_FACTORS = 1024


@dataclass(frozen=True)
class LookupTable:
    """The 16 values of a code in 16 bits."""

    #: (16,): about ``factor`` times the code's values.
    values: Tensor
    factor: float
    #: PTX that looks up codes: see `_instructions`.
    instructions: str


@functools.cache
def lookup_table(code: tuple[float, ...], dtype: torch.dtype) -> LookupTable:
    """Return a code's values in 16 bits, times the factor with the smallest rounding error.

    fp4's factor is 1.5, with which all its values are exact.

    Args:
        code: the 16 values.
        dtype: bfloat16 or float16.
    """
    exact = torch.tensor(code, dtype=torch.float64)
    factors = 1 + torch.arange(NUM_FACTORS, dtype=torch.float64) / NUM_FACTORS
    scaled = factors[:, None] * exact
    error = ((scaled.to(dtype) - scaled).abs() / scaled.abs().clamp(min=1e-30)).amax(dim=1)
    factor = float(factors[error.argmin()])
    values = (exact * factor).to(dtype)
    return LookupTable(values, factor, _instructions(values))


def _instructions(values: Tensor) -> str:
    """Return PTX that looks up the eight codes of a word.

    The word is ``$4``. Its codes in bits 4 - 7 and 0 - 3, in this order, give the two values in ``$0``,
    those in bits 12 - 15 and 8 - 11 in ``$1``, and so on. The table is part of the text and not an
    operand: the compiler moves an operation past a load only if it has no other operand.

    Args:
        values: (16,), of 16 bits.
    """
    bits = [value & 0xFFFF for value in values.view(torch.int16).tolist()]
    high, low = ([_word(bits[i : i + 4], shift) for i in range(0, 16, 4)] for shift in (8, 0))
    lines = [
        ".reg .b32 three, fourth, a, b, high, low;",
        "and.b32 three, $4, 0x77777777;",
        "shr.u32 fourth, $4, 1;",
        # A selector for each byte: its index in `a` or, where the fourth bit is set, in `b`.
        "lop3.b32 fourth, fourth, 0x44444444, 0x32103210, 0xEA;",
    ]
    for half in range(2):
        if half:
            lines += ["shr.u32 three, three, 16;", "shr.u32 fourth, fourth, 16;"]
        for name, words in (("high", high), ("low", low)):
            lines += [
                f"prmt.b32 a, {words[0]:#x}, {words[1]:#x}, three;",
                f"prmt.b32 b, {words[2]:#x}, {words[3]:#x}, three;",
                f"prmt.b32 {name}, a, b, fourth;",
            ]
        lines += [
            f"prmt.b32 ${2 * half}, low, high, 0x4051;",
            f"prmt.b32 ${2 * half + 1}, low, high, 0x6273;",
        ]
    return "\n".join(["{", *lines, "}"])


def _word(values: list[int], shift: int) -> int:
    """Pack one byte of each of four values into a word: bits ``shift … shift + 7``."""
    return sum((value >> shift & 0xFF) << 8 * i for i, value in enumerate(values))
