"""A sequence's tokens: what a step computes is that part of prompt and output, wherever it begins and ends."""

from __future__ import annotations

from tests.unit.engine.sequences import sequence


def test_every_part_of_prompt_and_output_has_its_tokens() -> None:
    """After a preemption the output is computed again too, in parts that begin and end anywhere."""
    tokens = list(range(10, 17))
    for length in range(1, 5):
        one = sequence(tokens[:length])
        one.output_token_ids += tokens[length:]
        for start in range(8):
            for end in range(start, 8):
                assert one.slice(start, end) == tokens[start:end], (length, start, end)
        for count in range(1, 10):
            assert one.last(count) == tokens[-count:], (length, count)


def test_a_prompt_that_is_cached_but_for_its_last_token_does_not_decode() -> None:
    """It has no token of its own yet: the first one comes from the logits of the prompt's last."""
    one = sequence([1, 2, 3])
    one.num_computed_tokens = 2
    assert not one.is_decoding
    one.output_token_ids.append(4)
    assert not one.is_decoding
    one.num_computed_tokens = 3
    assert one.is_decoding
    one.draft_token_ids = [5, 6]
    assert one.decode_token_ids == [4, 5, 6]
