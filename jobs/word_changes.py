"""How much of a text's words another text changed."""

from __future__ import annotations

from difflib import SequenceMatcher

#: The maximum product of the numbers of words that are compared exactly.
EXACT = 250_000


def changed_share(before: str, after: str) -> float:
    """Return which share of the words of two texts has no counterpart in the other, from 0 to 1.

    Words are separated by white space. 0 means that both have the same words in the same order, and 1 that
    nothing of ``before`` is in ``after``. Of long texts, very frequent words are compared only beside others.
    """
    old, new = before.split(), after.split()
    total = len(old) + len(new)
    if old == new:
        return 0.0
    start = _equal_words(old, new)
    old, new = old[start:], new[start:]
    end = _equal_words(old[::-1], new[::-1])
    old, new = old[: len(old) - end], new[: len(new) - end]
    matcher = SequenceMatcher(None, old, new, autojunk=len(old) * len(new) > EXACT)
    equal = start + end + sum(block.size for block in matcher.get_matching_blocks())
    return 1 - 2 * equal / total


def _equal_words(old: list[str], new: list[str]) -> int:
    """Return how many words two lists have in common at their beginning."""
    pairs = zip(old, new, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(old), len(new)))
