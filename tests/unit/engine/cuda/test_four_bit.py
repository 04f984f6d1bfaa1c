"""4-bit layers: the format, and the plain computation on a CPU. `kernels_interpreted` has their kernels."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from worker.bench.four_bit import FP4, NF4, four_bit, quantize
from worker.engine.cuda.four_bit import QUANT_BLOCK, FourBitLinear, unsupported_reason
from worker.engine.cuda.four_bit_lookup import lookup_table
from worker.engine.interface import EngineError

CODES = {"fp4": FP4, "nf4": NF4}


def matrix(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def layer(weight: Tensor, code: tuple[float, ...], bias: Tensor | None = None) -> Any:
    """A layer of bitsandbytes, as far as `FourBitLinear` reads it."""
    packed, absmax = quantize(weight, code)
    state = SimpleNamespace(
        absmax=absmax,
        code=torch.tensor(code),
        shape=weight.shape,
        blocksize=QUANT_BLOCK,
        nested=False,
    )
    linear: Any = nn.Module()
    linear.weight = nn.Parameter(packed, requires_grad=False)
    linear.weight.quant_state = state
    linear.bias = None if bias is None else nn.Parameter(bias)
    linear.out_features = len(weight)
    return linear


def spelled_out(weight: Tensor, code: tuple[float, ...]) -> Tensor:
    """Dequantize a matrix weight by weight."""
    packed, absmax = quantize(weight, code)
    nibbles = [nibble for byte in packed.flatten().tolist() for nibble in (byte >> 4, byte & 15)]
    values = torch.tensor([code[nibble] for nibble in nibbles])
    return (values.view(-1, QUANT_BLOCK) * absmax[:, None]).view_as(weight)


@pytest.mark.parametrize("code", CODES.values(), ids=CODES)
def test_weights_are_decoded_from_their_bits(code: tuple[float, ...]) -> None:
    weight = matrix(6, 256)
    assert torch.equal(four_bit(weight, code).dequantize(torch.float32), spelled_out(weight, code))


def test_fused_layers_give_their_outputs_side_by_side() -> None:
    weights = [matrix(rows, 256, seed) for seed, rows in enumerate((8, 4, 2))]
    bias = torch.arange(4.0)
    layers = [layer(w, FP4, b) for w, b in zip(weights, (None, bias, None), strict=True)]
    joined = FourBitLinear.fuse(layers)
    x = matrix(5, 256, 9)
    parts = [nn.functional.linear(x, spelled_out(w, FP4)) for w in weights]
    parts[1] = parts[1] + bias
    assert (joined.in_features, joined.out_features) == (256, 14)
    torch.testing.assert_close(joined(x), torch.cat(parts, dim=1))
    torch.testing.assert_close(joined(x[None]), torch.cat(parts, dim=1)[None])


def test_factors_of_8_bits_are_resolved() -> None:
    quantized = layer(matrix(96, 256), NF4)
    state = quantized.weight.quant_state
    expected = FourBitLinear.fuse([quantized]).weight.scales
    inner = torch.linspace(-1, 1, 256)
    state.offset = state.absmax.mean()
    blocks = (state.absmax - state.offset).split(256)
    state.state2 = SimpleNamespace(
        code=inner, absmax=torch.stack([block.abs().max() for block in blocks]), blocksize=256
    )
    scaled = [block / top for block, top in zip(blocks, state.state2.absmax, strict=True)]
    state.absmax = torch.bucketize(torch.cat(scaled), (inner[1:] + inner[:-1]) / 2).to(torch.uint8)
    state.nested = True
    quantized = FourBitLinear.fuse([quantized]).weight.scales
    assert (quantized - expected).abs().max() <= state.state2.absmax.max() / 255 + 1e-6


def test_what_cannot_be_laid_out_is_named() -> None:
    assert unsupported_reason(layer(matrix(4, 256), FP4)) is None
    assert unsupported_reason(nn.Linear(4, 4))
    narrow = layer(matrix(4, 64), FP4)
    with pytest.raises(EngineError, match=r"\(4, 64\)"):
        FourBitLinear.fuse([narrow])
    with pytest.raises(EngineError, match="different"):
        FourBitLinear.fuse([layer(matrix(4, 128), FP4), layer(matrix(4, 128), NF4)])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("code", CODES.values(), ids=CODES)
def test_a_lookup_table_is_exact_to_16_bits(code: tuple[float, ...], dtype: torch.dtype) -> None:
    table = lookup_table(tuple(torch.tensor(code).tolist()), dtype)
    error = (table.values.double() / table.factor - torch.tensor(code, dtype=torch.float64)).abs()
    relative = (error / torch.tensor(code).abs().clamp(min=1e-9)).max()
    assert relative <= (1e-7 if code is FP4 else torch.finfo(dtype).eps / 3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("code", CODES.values(), ids=CODES)
def test_the_instructions_look_up_each_code(code: tuple[float, ...], dtype: torch.dtype) -> None:
    """They are run here one by one, as the PTX manual defines them."""
    table = lookup_table(code, dtype)
    values = [value & 0xFFFF for value in table.values.view(torch.int16).tolist()]
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        codes = torch.randint(16, (8,), generator=generator).tolist()
        word = sum(four_bits << 4 * i for i, four_bits in enumerate(codes))
        registers = run(table.instructions, word)
        for pair in range(4):
            first, second = codes[2 * pair + 1], codes[2 * pair]
            assert registers[f"${pair}"] == values[first] | values[second] << 16


def run(instructions: str, word: int) -> dict[str, int]:
    registers = {"$4": word}

    def value(operand: str) -> int:
        return registers[operand] if operand in registers else int(operand, 0)

    for name, operands in re.findall(r"^(\w+)\.[bu]32 (.*);$", instructions, re.MULTILINE):
        to, *inputs = operands.split(", ")
        x = [value(operand) for operand in inputs]
        match name:
            case "and":
                result = x[0] & x[1]
            case "shr":
                result = x[0] >> x[1]
            case "lop3":
                assert x[3] == 0xEA, "the table of (a & b) | c"
                result = x[0] & x[1] | x[2]
            case "prmt":
                choice = x[0].to_bytes(4, "little") + x[1].to_bytes(4, "little")
                picked = [x[2] >> 4 * i & 15 for i in range(4)]
                assert max(picked) < 8, "otherwise a sign would be repeated"
                result = int.from_bytes(bytes(choice[i] for i in picked), "little")
        registers[to] = result
    return registers


@pytest.mark.parametrize("rows", [16, 64])
def test_weights_are_dequantized_in_registers(rows: int) -> None:
    """Compiled for an H100, which takes none: a detour by shared memory would cost much speed."""
    triton = pytest.importorskip("triton")
    compiler = pytest.importorskip("triton.backends.compiler")
    from worker.engine.cuda import four_bit_kernels as kernels

    code = lookup_table(FP4, torch.bfloat16)
    constants: dict[str, Any] = {
        "num_groups": 8,
        "block_n": 64,
        "block_m": rows,
        "stages": 4,
        "bias": None,
    }
    constants |= {"instructions": code.instructions}
    pointers = {"x": "*bf16", "words": "*i16", "scales": "*fp32", "values": "*fp32", "out": "*fp32"}
    types = pointers | {"inverse_factor": "fp32"}
    types |= {"num_rows": "i32", "out_features": "i32", "x_stride": "i32"}
    names = kernels._multiply_kernel.arg_names
    aligned = [name for name in types if name not in ("inverse_factor", "num_rows")]
    source = triton.compiler.ASTSource(
        fn=kernels._multiply_kernel,
        signature={name: types.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    options = {"num_warps": 4, "num_stages": 4, "enable_fp_fusion": True}
    target = compiler.GPUTarget("cuda", 90, 32)
    kernel = triton.compile(source, target=target, options=options)
    # Shared memory has packed weights, activations and scales; the loop stores nothing there.
    assert "wgmma" in kernel.asm["ptx"]
    assert "prmt" in kernel.asm["ptx"]
    loop = kernel.asm["ttgir"].split("scf.for")[1].split("scf.yield")[0]
    assert "local_alloc" not in loop
    assert "local_store" not in loop


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("kind", ["fp4", "nf4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bitsandbytes_layers_are_read(kind: str, double: bool, dtype: torch.dtype) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    weight = matrix(96, 256).to(dtype)
    quantized = bitsandbytes.nn.Linear4bit(
        256, 96, bias=False, compute_dtype=dtype, compress_statistics=double, quant_type=kind
    )
    quantized.load_state_dict({"weight": weight})
    quantized.to("cpu")  # quantizes
    linear = FourBitLinear.fuse([quantized])
    state = quantized.weight.quant_state
    expected = bitsandbytes.functional.dequantize_4bit(quantized.weight.data, state)
    assert torch.equal(linear.weight.dequantize(expected.dtype), expected)
    if not double and dtype is torch.float32:  # in 16 bits, some weights are exactly halfway
        own = four_bit(weight, CODES[kind])
        assert torch.equal(own.dequantize(expected.dtype), expected)
