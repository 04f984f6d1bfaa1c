"""`test_kernels` runs this in a process of its own, where Triton interprets its kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.unit.engine.cuda.test_four_bit import CODES, matrix
from worker.bench.four_bit import four_bit
from worker.engine.attention.paged_batch import PagedBatch
from worker.engine.cuda import four_bit_kernels, kernels, lora_weights, torch_ops
from worker.engine.cuda.kernels import attention
from worker.engine.cuda.lora_weights import StackedProjections
from worker.engine.kv.paged_cache import PagedKVCache
from worker.engine.lora.factors import LoRAFactors, Projection

# NumPy warns of what a GPU computes silently: 0 / 0 in the rows of a tile beyond its tokens, which are
# not stored, and uninitialized memory of padding tokens.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

CONTEXT = 120
HIDDEN = 40
#: Each sequence's adapter, its first position in the step, and its number of tokens. Decoding sequences
#: come first; a position of -1 is padding.
TOKENS = [(0, 110, 1), (1, 3, 1), (2, 70, 1), (-1, -1, 1), (1, 20, 37), (2, 0, 5), (0, 63, 2)]
DECODING = 4


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Split even short contexts, one of them into splits of two iterations each."""
    monkeypatch.setattr(attention, "SPLIT_KEYS", 16)
    monkeypatch.setattr(attention, "MAX_SPLITS", 4)
    monkeypatch.setattr(attention, "DECODE_CONFIG", (16, 4, 2))


@dataclass
class Step:
    """A step and its KV cache."""

    batch: PagedBatch
    cache: PagedKVCache

    @classmethod
    def of(
        cls,
        tokens: list[tuple[int, int, int]],
        decoding: int,
        heads: tuple[int, int, int],
        page: int,
        rows: list[int] | None = None,
    ) -> Step:
        """Make a step of some tokens.

        Args:
            tokens: as `TOKENS`.
            decoding: how many of them decode.
            heads: of queries, of keys, and their size.
            page: tokens of a block.
            rows: of the table, one for each of ``tokens``; the first ones if None.
        """
        queries, shared, size = heads
        config: Any = SimpleNamespace(
            num_key_value_heads=shared,
            num_attention_heads=queries,
            head_dim=size,
            num_hidden_layers=1,
        )
        blocks_per_sequence = -(-CONTEXT // page)
        generator = torch.Generator().manual_seed(1)
        count = len(TOKENS)
        tables = (
            torch.randperm(count * blocks_per_sequence, generator=generator).view(
                count, blocks_per_sequence
            )
            + 1
        )
        device = torch.device("cpu")
        blocks = count * blocks_per_sequence + 1
        cache = PagedKVCache(
            config, num_blocks=blocks, block_size=page, dtype=torch.float32, device=device
        )
        for tensor in (*cache.keys, *cache.values):
            tensor.normal_(generator=generator)
            tensor[0] = torch.nan
        rows = list(range(len(tokens))) if rows is None else rows
        for row, (_, start, length) in zip(rows, tokens, strict=True):
            # Memory beyond a sequence's tokens is uninitialized.
            for position in range(max(start, 0) + length, blocks_per_sequence * page):
                place = tables[row, position // page], slice(None), position % page
                cache.keys[0][place] = cache.values[0][place] = torch.nan
        work = []
        tiles = kernels.prefill_tile_tokens(queries // shared)
        flat: list[tuple[int, int, int]] = []
        for row, (adapter, start, length) in zip(rows, tokens, strict=True):
            if len(flat) >= decoding:
                work += [
                    (len(flat) + at, min(tiles, length - at), row, start + at)
                    for at in range(0, length, tiles)
                ]
            flat += [(adapter, row, start + i) for i in range(length)]
        adapters, of, positions = (column.contiguous() for column in torch.tensor(flat).int().T)
        batch = PagedBatch(
            input_ids=torch.zeros(len(flat), dtype=torch.int64),
            adapter_ids=adapters,
            rows=of,
            positions=positions,
            block_tables=tables.int(),
            num_decode_tokens=decoding,
            max_kv_len=CONTEXT,
            prefill_tiles=torch.tensor(work).int() if work else None,
            tile_tokens=tiles,
        )
        return cls(batch, cache)


def projection(columns: int, into: int, ranks: tuple[int, ...], generator: Any) -> Projection:
    """A layer with an adapter of each rank, or none where the rank is 0."""
    base = nn.Linear(columns, into, bias=False)
    base.weight.data.normal_(std=0.2, generator=generator)
    factors: list[LoRAFactors | None] = [
        (
            torch.randn(rank, columns, generator=generator) * 0.1,
            torch.randn(into, rank, generator=generator) * 0.3,
        )
        if rank
        else None
        for rank in ranks
    ]
    return Projection(base, factors)


@dataclass
class Layer:
    """The weights of a layer, with three adapters of different ranks."""

    heads: tuple[int, int, int]

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        queries, shared, size = self.heads
        half = size // 2

        def of(into: int, ranks: tuple[int, ...], columns: int = HIDDEN) -> Projection:
            return projection(columns, into, ranks, generator)

        self.norm = torch.randn(HIDDEN, generator=generator)
        self.cos, self.sin = torch.randn(2, CONTEXT, half, generator=generator)
        self.qkv = StackedProjections(
            [
                of(queries * size, (8, 0, 70)),
                of(shared * size, (0, 0, 0)),
                of(shared * size, (4, 5, 6)),
            ]
        )
        self.output = StackedProjections([of(HIDDEN, (3, 4, 5), queries * size)])
        self.gate_up = StackedProjections([of(112, (3, 0, 5)), of(112, (30, 7, 5))])

    def run(self, ops: Any, step: Step, x: Tensor, window: int | None = None) -> dict[str, Tensor]:
        """Return the result of each operation, in order."""
        batch, cache = step.batch, step.cache
        normed = ops.rms_norm(x, self.norm, 1e-5)
        queries = ops.rope_and_cache(
            *self.qkv(normed, ops), self.qkv.lora_b, batch, self.cos, self.sin, cache, 0
        )
        scaling = self.heads[2] ** -0.5
        attended = ops.paged_attention(queries, batch, cache, 0, scaling, window)
        product = self.output(attended.flatten(1), ops)
        added = ops.add_residual(x.clone(), *product, self.output.lora_b, batch.adapter_ids)
        gated = ops.silu_and_mul(*self.gate_up(added, ops), self.gate_up.lora_b, batch.adapter_ids)
        return {
            "rms_norm": normed,
            "heads": queries,
            "attend": attended,
            "add": added,
            "swiglu": gated,
            "keys": cache.keys[0][1:],
            "values": cache.values[0][1:],
        }


def inputs(count: int) -> Tensor:
    return torch.randn(count, HIDDEN, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    ("heads", "page", "window"),
    [((4, 2, 16), 16, None), ((6, 2, 24), 8, 40), ((3, 3, 40), 32, 7), ((4, 2, 16), 32, 50)],
    ids=[
        "grouped",
        "windows and sizes that are no powers of two",
        "each its own keys",
        "windows of several splits",
    ],
)
def test_kernels_match_plain_operations(
    heads: tuple[int, int, int], page: int, window: int | None
) -> None:
    layer = Layer(heads)
    steps = [Step.of(TOKENS, DECODING, heads, page) for _ in range(2)]
    x = inputs(len(steps[0].batch.input_ids))
    outputs, expected = (
        layer.run(ops, step, x, window)
        for ops, step in zip((kernels, torch_ops), steps, strict=True)
    )
    filling = steps[0].batch.positions < 0
    assert not outputs["attend"][filling].any()
    for name, tensor in expected.items():
        if name in ("keys", "values"):
            close(outputs[name], tensor, name)
        else:  # queries of padding may have any value that is finite
            assert outputs[name].isfinite().all(), name
            close(outputs[name][~filling], tensor[~filling], name)


def close(actual: Tensor, expected: Tensor, name: str) -> None:
    torch.testing.assert_close(
        actual, expected, rtol=1e-4, atol=1e-5, equal_nan=True, msg=lambda text: f"{name}: {text}"
    )


def test_keys_and_values_are_stored_in_their_slots() -> None:
    heads = (6, 3, 24)
    steps = [Step.of(TOKENS, DECODING, heads, 8) for _ in range(2)]
    generator = torch.Generator().manual_seed(3)
    key, value = torch.randn(2, len(steps[0].batch.input_ids), 3, 24, generator=generator)
    for ops, step in zip((kernels, torch_ops), steps, strict=True):
        ops.reshape_and_cache(key, value, step.batch, step.cache, 0)
    for keys, other_keys in zip(steps[0].cache.keys, steps[1].cache.keys, strict=True):
        assert torch.equal(keys[1:].nan_to_num(9e9), other_keys[1:].nan_to_num(9e9))
    for keys, other_keys in zip(steps[0].cache.values, steps[1].cache.values, strict=True):
        assert torch.equal(keys[1:].nan_to_num(9e9), other_keys[1:].nan_to_num(9e9))


def test_a_tokens_result_does_not_depend_on_the_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bit for bit: a text must not depend on the batch. PyTorch's products are excluded."""
    monkeypatch.setattr(kernels, "use_small_batch_linear", lambda *_: False)
    monkeypatch.setattr(
        lora_weights,
        "linear",
        lambda x, *w: torch.cat([nn.functional.linear(row[None], *w) for row in x]),
    )
    heads = (4, 2, 16)
    layer = Layer(heads)
    crowd = Step.of(TOKENS, DECODING, heads, 16)
    x = inputs(len(crowd.batch.input_ids))
    together = layer.run(kernels, crowd, x)
    ends = torch.tensor([length for *_, length in TOKENS]).cumsum(0).tolist()
    for row, (item, end) in enumerate(zip(TOKENS, ends, strict=True)):
        decoding = int(row < DECODING)
        alone = Step.of([item], decoding, heads, 16, rows=[row])
        own_tokens = slice(end - item[2], end)
        for name, tensor in layer.run(kernels, alone, x[own_tokens]).items():
            if name not in ("keys", "values"):
                assert torch.equal(tensor, together[name][own_tokens]), (name, row)


def test_decoding_a_token_matches_prefilling_it() -> None:
    heads = (4, 2, 16)
    layer = Layer(heads)
    tokens = [(1, 50, 1), (0, 90, 1)]
    steps = [Step.of(tokens, decoding, heads, 16) for decoding in (2, 0)]
    decoded, prefilled = (layer.run(kernels, step, inputs(2), 33) for step in steps)
    for name in ("attend", "add", "swiglu"):
        close(decoded[name], prefilled[name], name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("count", [1, 7, 16])
def test_split_products_add_up(count: int, dtype: torch.dtype) -> None:
    """Columns, rows and the inner dimension all end in the middle of a tile."""
    generator = torch.Generator().manual_seed(4)
    x, weight = (torch.randn(n, 300, generator=generator).to(dtype) for n in (count, 130))
    parts = kernels.small_batch_linear(x, weight)
    assert parts.dtype is torch.float32
    assert len(parts) > 1
    expected = x.double() @ weight.double().T
    torch.testing.assert_close(parts.double().sum(0), expected, rtol=1e-4, atol=1e-3)
    # Each row's sums do not depend on the other rows.
    assert torch.equal(kernels.small_batch_linear(x[-1:], weight)[:, 0], parts[:, -1])


def test_split_and_unsplit_products_give_the_same_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    heads = (4, 2, 16)
    layer = Layer(heads)
    tokens, decoding = TOKENS[:4], 4
    rules: list[Callable[..., bool]] = [lambda *_: True, lambda *_: False]
    outputs = []
    for rule in rules:
        monkeypatch.setattr(kernels, "use_small_batch_linear", rule)
        step = Step.of(tokens, decoding, heads, 16)
        outputs.append(layer.run(kernels, step, inputs(4)))
    for name, tensor in outputs[1].items():
        close(outputs[0][name], tensor, name)


def test_a_step_may_consist_of_padding() -> None:
    """As in the profile run and in captures."""
    heads = (4, 2, 16)
    layer = Layer(heads)
    step = Step.of([(-1, -1, 1)] * 3, 2, heads, 16, rows=[0, 0, 0])
    before = step.cache.keys[0].clone()
    batch = step.batch
    batch.prefill_tiles.zero_()  # type: ignore[union-attr]  # there is some
    outputs = layer.run(kernels, step, inputs(3))
    assert torch.equal(step.cache.keys[0].nan_to_num(9e9), before.nan_to_num(9e9))
    assert not outputs["attend"][:2].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_sampling_kernels_match_plain_operations(dtype: torch.dtype) -> None:
    """Greedy rows, ties, zeros of both signs, and scores that are not finite."""
    generator = torch.Generator().manual_seed(5)
    count, vocabulary, max_top_k = 48, 200, 64
    logits = (torch.randn(count, vocabulary, generator=generator) * 2).to(dtype)
    logits[20:40] = torch.randint(-4, 1, (20, vocabulary), generator=generator).to(dtype)
    logits[20:40, ::3] *= -0.0
    logits[7, 30], logits[8, 3], logits[9, 3:] = torch.nan, torch.inf, -torch.inf
    logits[11] = -torch.inf
    # All bits set: a NaN that is negative.
    logits.view(torch.int16 if dtype.itemsize == 2 else torch.int32)[10, 100] = -1
    temperature = torch.tensor([0.0, 0.75, 1.3]).repeat(16)
    top_k = torch.tensor([1, 5, 50, max_top_k]).repeat_interleave(12)
    noise = torch.randint(-(2**62), 2**62, (count,), generator=generator)
    # Rows of a wider tensor.
    wider = torch.full((count, vocabulary + 3), 99.0, dtype=dtype)
    wider[:, :vocabulary] = logits
    token_ids, is_finite = kernels.sample(
        wider[:, :vocabulary], temperature, top_k, noise, max_top_k
    )
    expected, expected_is_finite = torch_ops.sample(logits, temperature, top_k, noise, max_top_k)
    assert torch.equal(is_finite, expected_is_finite)
    assert is_finite.logical_not().nonzero().flatten().tolist() == [7, 8, 10, 11]
    assert torch.equal(token_ids[is_finite], expected[is_finite])
    # The others are looked up by the step after this one.
    assert ((token_ids >= 0) & (token_ids < vocabulary)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("vocabulary", [2**16, 2**16 + 300])
def test_sort_keys_order_large_vocabularies(vocabulary: int, dtype: torch.dtype) -> None:
    """By scores, then by ids, whether keys are of 32 or of 64 bits."""
    generator = torch.Generator().manual_seed(6)
    logits = (torch.randn(3, vocabulary, generator=generator) * 3).to(dtype)
    logits[1] = torch.randint(-2, 3, (vocabulary,), generator=generator).to(dtype)
    logits[2, 200:] = -torch.inf
    greedy, ones = torch.zeros(3), torch.ones(3, dtype=torch.int64)
    found: list[Tensor] = []

    def topk(keys: Tensor, k: int, **_: Any) -> Any:
        found.append(keys)
        return torch.topk(keys, k)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "topk", topk)
        kernels.sample(logits, greedy, ones, ones, 64)
    keys = found[0]
    assert keys.dtype is (
        torch.int32 if dtype.itemsize == 2 and vocabulary <= 2**16 else torch.int64
    )
    order = logits.float().sort(dim=-1, descending=True, stable=True).indices
    assert torch.equal(keys.sort(dim=-1, descending=True).indices, order)


@pytest.mark.parametrize("code", CODES.values(), ids=CODES)
def test_kernels_for_4_bits_match_plain_operations(code: tuple[float, ...]) -> None:
    weight = four_bit(matrix(70, 1024), code)
    exact = weight.dequantize(torch.float32)
    for dtype in (torch.float32, torch.float16):  # to bfloat16 the interpreter cuts off
        assert torch.equal(four_bit_kernels.dequantize(weight, dtype), weight.dequantize(dtype))
    # The interpreter's products are of no use in bfloat16 either.
    x, bias = matrix(33, 1024, 1).half(), matrix(1, 70, 2)[0].half()
    wanted = nn.functional.linear(x.float(), exact, bias.float())
    for parts in (1, 2):
        config = four_bit_kernels.TileConfig(max_programs=2 * parts)
        assert config.num_parts(weight) == parts
        found = four_bit_kernels.multiply(x, weight, bias, config)
        assert found.dtype is torch.float16
        tolerance = 0.5 * torch.finfo(torch.float16).eps
        assert (found - wanted).norm() < tolerance * wanted.norm(), parts
        apart = x.new_empty(5, 2048)[:, :1024].copy_(x[20:25])
        assert torch.equal(four_bit_kernels.multiply(apart, weight, bias, config), found[20:25])
