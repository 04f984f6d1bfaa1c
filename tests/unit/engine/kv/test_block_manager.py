"""Blocks of the KV cache: sharing, reference counts, reuse and allocation."""

from __future__ import annotations

import pytest

from tests.unit.engine.sequences import WEIGHTS, sequence
from worker.engine.batching.sequence import UNALLOCATED, Sequence
from worker.engine.kv.block_manager import BlockManager

SIZE = 4
CONTEXT = 32
#: A prompt of three full blocks and a token.
SYSTEM = list(range(13))


def make(count: int = 100, rows: int = 8) -> BlockManager:
    return BlockManager(count, SIZE, num_rows=rows, max_model_len=CONTEXT, adapter_keys=WEIGHTS)


def computed(blocks: BlockManager, prompt: list[int], adapter: int = 0) -> Sequence:
    """Allocate a prompt and mark it as computed."""
    s = sequence(prompt, adapter=adapter)
    assert blocks.allocate(s)
    blocks.cache_prompt(s, s.num_computed_tokens, prompt[s.num_computed_tokens :])
    s.num_computed_tokens = len(prompt)
    return s


def table(blocks: BlockManager, s: Sequence) -> list[int]:
    return [int(block) for block in blocks.block_tables[s.row] if block]


def test_prompts_with_a_common_prefix_share_blocks() -> None:
    blocks = make()
    first = computed(blocks, SYSTEM)
    second = sequence([*SYSTEM[:10], 90, 91])
    assert blocks.allocate(second)
    assert second.num_computed_tokens == 8
    assert table(blocks, second)[:2] == table(blocks, first)[:2]
    assert not set(table(blocks, second)[2:]) & set(table(blocks, first))
    assert blocks.num_free_blocks == 99 - 4 - 1


def test_prompts_with_different_prefixes_share_no_blocks() -> None:
    blocks = make()
    computed(blocks, SYSTEM)
    different = sequence([90, *SYSTEM[1:]])
    assert blocks.allocate(different)
    assert different.num_computed_tokens == 0


def test_adapters_with_equal_weights_share_blocks() -> None:
    blocks = make()
    computed(blocks, SYSTEM)
    different, same = sequence(SYSTEM, adapter=1), sequence(SYSTEM, adapter=2)
    assert blocks.allocate(different)
    assert blocks.allocate(same)
    assert (different.num_computed_tokens, same.num_computed_tokens) == (0, 12)


def test_the_last_token_of_a_prompt_is_always_computed() -> None:
    blocks = make()
    computed(blocks, SYSTEM[:12])
    repeated, resumed = sequence(SYSTEM[:12]), sequence(SYSTEM[:12])
    resumed.output_token_ids = [5]
    assert blocks.allocate(repeated)
    assert blocks.allocate(resumed)
    assert (repeated.num_computed_tokens, resumed.num_computed_tokens) == (8, 12)


def test_a_chunked_prompt_shares_the_blocks_computed_so_far() -> None:
    blocks = make()
    long = sequence(SYSTEM)
    assert blocks.allocate(long)
    for start, end, cached in ((0, 3, 0), (3, 9, 8), (9, 13, 12)):
        blocks.cache_prompt(long, start, SYSTEM[start:end])
        short = sequence(SYSTEM)
        assert blocks.allocate(short)
        assert short.num_computed_tokens == cached
        blocks.free(short)


def test_new_tokens_are_not_shared() -> None:
    blocks = make()
    first = computed(blocks, SYSTEM[:6])
    first.output_token_ids = [6, 7, 8]
    assert blocks.append_slots(first, 9)
    blocks.free(first)
    second = sequence(SYSTEM)
    assert blocks.allocate(second)
    assert second.num_computed_tokens == 4


def test_blocks_of_finished_sequences_are_reused_until_they_are_needed() -> None:
    blocks = make(count=17)
    blocks.free(computed(blocks, SYSTEM))
    assert blocks.num_free_blocks == 16, "all cached blocks are available"
    fillers = [computed(blocks, [40 + n] * 28) for n in range(2)]
    repeated = sequence(SYSTEM)
    for filler in fillers:
        blocks.free(filler)
    assert blocks.allocate(repeated)
    assert repeated.num_computed_tokens == 8, "a prompt's last blocks are evicted before its first"


def test_all_cached_blocks_can_be_allocated() -> None:
    blocks = make(count=17)
    for n in range(4):
        blocks.free(computed(blocks, [n] * 16))
    sequences = [computed(blocks, [9] * 28), computed(blocks, [8] * 28)]
    assert blocks.num_free_blocks == 2
    assert all(blocks.append_slots(s, 32) for s in sequences)
    assert blocks.num_free_blocks == 0
    assert len({*table(blocks, sequences[0]), *table(blocks, sequences[1])}) == 16
    assert 0 not in {*table(blocks, sequences[0]), *table(blocks, sequences[1])}


def test_damaged_blocks_are_never_shared() -> None:
    """Neither free ones nor those of a sequence that continues."""
    blocks = make()
    damaged = computed(blocks, SYSTEM)
    beside = computed(blocks, SYSTEM)
    shared = table(blocks, beside)
    blocks.free(damaged, invalid_kv=True)
    assert table(blocks, beside) == shared
    after = sequence(SYSTEM)
    assert blocks.allocate(after)
    assert after.num_computed_tokens == 0
    blocks.free(beside, invalid_kv=True)
    blocks.free(after, invalid_kv=True)
    assert blocks.num_free_blocks == 99


def test_a_sequence_that_ends_early_gives_up_the_blocks_that_it_computed_alone() -> None:
    blocks = make()
    computed(blocks, SYSTEM)
    early = computed(blocks, [*SYSTEM[:8], 90, 91, 92, 93, 94])
    blocks.free(early, unverified_kv=True)
    others, same = sequence(SYSTEM), sequence(early.prompt_token_ids)
    assert blocks.allocate(others)
    assert blocks.allocate(same)
    assert (others.num_computed_tokens, same.num_computed_tokens) == (12, 8)


def test_a_failed_allocation_changes_nothing() -> None:
    blocks = make(count=9, rows=2)
    first = computed(blocks, [1] * 20)
    blocks.on_tables_updated()
    waiting = sequence([2] * 12)
    assert not blocks.allocate(waiting), "one block stays free for the running sequence"
    assert (waiting.row, waiting.num_computed_tokens, blocks.num_free_blocks) == (UNALLOCATED, 0, 3)
    second = computed(blocks, [2] * 8)
    before = blocks.block_tables.copy()
    blocks.on_tables_updated()
    assert blocks.append_slots(second, 8)
    assert not blocks.append_slots(second, 17)
    assert blocks.append_slots(first, 24)
    assert not blocks.append_slots(second, 9)
    before[first.row, 5] = blocks.block_tables[first.row, 5]
    assert (blocks.block_tables == before).all()
    assert [len(part) for part in blocks.table_updates()] == [1, 1]


def test_a_single_sequence_may_use_all_blocks() -> None:
    blocks = make(count=9, rows=2)
    only = sequence([1] * 32)
    assert blocks.allocate(only)
    assert blocks.num_free_blocks == 0


def test_without_a_free_row_nothing_is_allocated() -> None:
    blocks = make(rows=1)
    first = computed(blocks, SYSTEM)
    assert not blocks.allocate(sequence(SYSTEM))
    blocks.free(first)
    assert blocks.allocate(sequence(SYSTEM))


def test_a_pool_that_is_too_small_for_a_context_is_refused() -> None:
    with pytest.raises(ValueError, match="8 blocks of 4 tokens are too few for 32 tokens"):
        make(count=8)
