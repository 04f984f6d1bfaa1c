"""Repeated texts are drafted, and only where drafts are likely to be accepted."""

from __future__ import annotations

import random

from worker.engine.speculative.drafter import MAX_DRAFT_TOKENS, MAX_NGRAM_SIZE, Drafter

PHRASE = [5, 9, 2, 7, 1, 8, 3, 6, 4]


def write(drafter: Drafter, tokens: list[int], *, adapter: int = 0) -> None:
    drafter.observe(adapter, tokens, len(tokens), generated=True)


def test_a_repeated_phrase_is_drafted() -> None:
    drafter = Drafter(num_adapters=1)
    for _ in range(3):
        write(drafter, PHRASE)
    assert drafter.propose(0, PHRASE[:3], max_tokens=4, threshold=0.01) == PHRASE[3:7]
    assert drafter.propose(0, PHRASE[:3], max_tokens=0, threshold=0.01) == []
    assert drafter.propose(0, [2, 5, 1], max_tokens=4, threshold=0.01) == []


def test_a_phrase_of_the_prompt_is_drafted() -> None:
    drafter = Drafter(num_adapters=1)
    drafter.observe(0, PHRASE, len(PHRASE), generated=False)
    assert drafter.propose(0, PHRASE[:3], max_tokens=MAX_DRAFT_TOKENS, threshold=0.01) == PHRASE[3:]


def test_adapters_have_separate_tables() -> None:
    drafter = Drafter(num_adapters=2)
    for _ in range(3):
        write(drafter, PHRASE, adapter=1)
    assert drafter.propose(0, PHRASE[:3], max_tokens=4, threshold=0.01) == []


def test_random_texts_are_not_drafted() -> None:
    drafter = Drafter(num_adapters=1)
    rng = random.Random(0)
    noise = rng.choices(range(20), k=20_000)
    write(drafter, noise)
    starts = range(0, len(noise) - MAX_NGRAM_SIZE, 50)
    proposed = [
        drafter.propose(0, noise[i : i + MAX_NGRAM_SIZE][:2], max_tokens=4, threshold=0.3)
        for i in starts
    ]
    assert not any(proposed)


def test_only_likely_tokens_are_drafted() -> None:
    """The token after a pair is always the same, and the one after that is random."""
    drafter = Drafter(num_adapters=1)
    rng = random.Random(0)
    text = [token for _ in range(2000) for token in (1, 2, 3, rng.choice((4, 5)))]
    write(drafter, text)
    assert drafter.propose(0, [9, 1, 2], max_tokens=4, threshold=0.8) == [3]
    assert len(drafter.propose(0, [9, 1, 2], max_tokens=4, threshold=0.2)) >= 2
