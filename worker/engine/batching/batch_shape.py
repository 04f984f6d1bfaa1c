"""The shapes of paged batches, and which of them are captured as CUDA graphs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

#: Numbers of sequences of captured decode steps; beyond these, at a fixed distance.
CAPTURE_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 80, 96, 112, 128)
CAPTURE_DISTANCE = 32
#: Numbers of decode tokens, and of all tokens, of captured steps that have prefills too.
MIXED_DECODE_SIZES = (32, 64, 128, 256)
MIXED_TOKEN_SIZES = (64, 128, 192, 256, 384, 512, 768, 1024)
#: Prefills that can be sampled in such a step, and tiles beyond those that its tokens fill.
MIXED_EXTRA_SAMPLES, MIXED_EXTRA_TILES = 16, 16
#: Decode steps of sequences up to these lengths are captured separately: their attention needs fewer programs. Twice
#: as many are launched as the longest sequence needs, at most, unless it is shorter than half of the first length.
SHORT_KV_LENS = (1024, 2048)


@dataclass(frozen=True)
class BatchShape:
    """Sizes of a step, padding included. A CUDA graph serves all steps of one shape."""

    #: The number of tokens at the beginning that attend as single queries: decode tokens, and prefill
    #: tokens if there are fewer of those.
    num_decode_tokens: int
    num_tokens: int
    #: Prefill tiles.
    num_tiles: int
    #: Sampled tokens.
    num_samples: int
    #: Greater than the position of every decode token.
    max_kv_len: int

    @property
    def cost(self) -> int:
        """How much a step of this shape computes beside attention, to compare shapes."""
        return 4 * self.num_tokens + 4 * self.num_tiles + 5 * self.num_samples


def shapes_to_capture(
    *, num_rows: int, max_kv_len: int, tile_tokens: int, max_num_batched_tokens: int
) -> list[BatchShape]:
    """Return the shapes that are worth capturing, largest first.

    Args:
        num_rows: maximum number of sequences.
        max_kv_len: maximum length of a sequence.
        tile_tokens: tokens of a prefill tile.
        max_num_batched_tokens: maximum number of tokens of a step with prefills.
    """
    sizes = [n for n in CAPTURE_SIZES if n < num_rows]
    sizes += range(CAPTURE_SIZES[-1] + CAPTURE_DISTANCE, num_rows, CAPTURE_DISTANCE)
    sizes.append(num_rows)
    kv_lens = sorted({min(kv_len, max_kv_len) for kv_len in (*SHORT_KV_LENS, max_kv_len)})
    shapes = [BatchShape(n, n, 0, n, kv_len) for n in sizes for kv_len in kv_lens]
    for n in sorted({min(n, num_rows) for n in MIXED_DECODE_SIZES}):
        for num_tokens in MIXED_TOKEN_SIZES:
            if n < num_tokens <= max_num_batched_tokens:
                num_tiles = -(-(num_tokens - n) // tile_tokens) + MIXED_EXTRA_TILES
                num_samples = n + MIXED_EXTRA_SAMPLES
                shapes.append(BatchShape(n, num_tokens, num_tiles, num_samples, max_kv_len))
    return sorted(shapes, key=lambda s: (s.num_tokens, s.cost, s.max_kv_len), reverse=True)


def smallest_fit(shapes: Iterable[BatchShape], step: BatchShape) -> BatchShape | None:
    """Return the smallest of some shapes that a step fits into; None if there is none."""
    best: BatchShape | None = None
    num_prefill_samples = step.num_samples - step.num_decode_tokens
    for shape in shapes:
        if (
            shape.num_decode_tokens >= step.num_decode_tokens
            and shape.num_tokens >= step.num_tokens
            and bool(shape.num_tiles) == bool(step.num_tiles)
            and shape.num_tiles >= step.num_tiles
            and shape.num_samples - shape.num_decode_tokens >= num_prefill_samples
            and shape.max_kv_len >= step.max_kv_len
            and (best is None or (shape.cost, shape.max_kv_len) < (best.cost, best.max_kv_len))
        ):
            best = shape
    return best
