"""Steps are padded to the smallest captured shape that they fit into."""

from __future__ import annotations

from dataclasses import replace

from worker.engine.batching.batch_shape import BatchShape, shapes_to_capture, smallest_fit

SHAPES = shapes_to_capture(
    num_rows=100, max_kv_len=4096, tile_tokens=16, max_num_batched_tokens=1024
)


def decode_step(num_seqs: int, kv_len: int) -> BatchShape:
    return BatchShape(num_seqs, num_seqs, 0, num_seqs, kv_len)


def test_the_largest_shape_is_captured_first_and_every_decode_step_fits_one() -> None:
    assert SHAPES[0].num_tokens == max(shape.num_tokens for shape in SHAPES)
    assert all(smallest_fit(SHAPES, decode_step(n, 4096)) for n in range(1, 101))
    assert smallest_fit(SHAPES, decode_step(101, 10)) is None


def test_short_sequences_get_a_shape_of_their_own() -> None:
    for kv_len, expected in ((1024, 1024), (1025, 2048), (2049, 4096)):
        shape = smallest_fit(SHAPES, decode_step(17, kv_len))
        assert shape == BatchShape(24, 24, 0, 24, expected)


def test_no_shape_is_captured_twice_where_the_context_is_short() -> None:
    sizes = {"tile_tokens": 16, "max_num_batched_tokens": 64}
    for max_kv_len in (512, 1024, 1536):
        shapes = shapes_to_capture(num_rows=300, max_kv_len=max_kv_len, **sizes)
        assert len(shapes) == len(set(shapes))
        assert max(shape.max_kv_len for shape in shapes) == max_kv_len


def test_a_step_with_prefills_gets_a_shape_with_tiles_and_no_other_does() -> None:
    mixed = BatchShape(10, 60, 4, 12, 100)
    shape = smallest_fit(SHAPES, mixed)
    assert shape is not None
    assert (shape.num_decode_tokens, shape.num_tokens) == (32, 64)
    assert smallest_fit(SHAPES, replace(mixed, num_samples=10 + 17)) is None
    assert smallest_fit([shape], decode_step(10, 100)) is None
