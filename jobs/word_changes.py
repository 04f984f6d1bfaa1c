"""How much of a text's words another text changed, and which."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from typing import NamedTuple

#: The maximum product of the numbers of words that are compared exactly.
EXACT = 250_000
#: The maximum sum of these products in one comparison of texts. What is beyond it counts as changed.
BUDGET = 8 * EXACT
#: How many times the words of both texts may be looked through for anchors in one comparison. There are texts in which
#: each time finds only one, and leaves almost all words to the next.
MAX_LOOKS = 20

#: A word with the white space after it. At the start of a text, white space is a word of its own.
_WORD = re.compile(r"\S+\s*|\s+")


class Change(NamedTuple):
    """A passage of two texts. All passages together give both texts."""

    #: Whether the passage has the same words in both texts.
    equal: bool
    before: str
    after: str


def changed_share(before: str, after: str) -> float:
    """Return which share of the words of two texts has no counterpart in the other, from 0 to 1.

    Words are separated by white space. 0 means that both have the same words in the same order, and 1 that
    nothing of ``before`` is in ``after``. Long texts are compared as in `changes`, in as little time.
    """
    old, new = before.split(), after.split()
    if old == new:
        return 0.0
    equal = sum(size for _, _, size in _blocks(old, new))
    return 1 - 2 * equal / (len(old) + len(new))


def changes(before: str, after: str) -> list[Change]:
    """Return the passages in which two texts have the same words, and those between them.

    Long texts are first aligned by the words that each of them has exactly once (Bram Cohen's patience
    diff), and compared exactly between those, up to `BUDGET` and `MAX_LOOKS`. So the time is bounded: two unlike
    texts of 20,000 words take less than a second.
    """
    old, new = _WORD.findall(before), _WORD.findall(after)
    old_keys, new_keys = ([word.strip() for word in words] for words in (old, new))
    found: list[Change] = []
    at_old = at_new = 0
    for start_old, start_new, size in [
        *_blocks(old_keys, new_keys),
        (len(old), len(new), 0),
    ]:
        if start_old > at_old or start_new > at_new:
            removed, added = old[at_old:start_old], new[at_new:start_new]
            found.append(Change(False, "".join(removed), "".join(added)))
        at_old, at_new = start_old + size, start_new + size
        if size:
            kept = "".join(old[start_old:at_old]), "".join(new[start_new:at_new])
            found.append(Change(True, *kept))
    return found


def _blocks(old: list[str], new: list[str]) -> list[tuple[int, int, int]]:
    """Return the passages of equal words: where they begin in each list, and how many words they have."""
    budget = BUDGET
    looks = MAX_LOOKS * (len(old) + len(new))
    blocks: list[tuple[int, int, int]] = []

    def add(at_old: int, at_new: int, size: int) -> None:
        if blocks:
            last_old, last_new, last_size = blocks[-1]
            if (last_old + last_size, last_new + last_size) == (at_old, at_new):
                blocks[-1] = (last_old, last_new, last_size + size)
                return
        blocks.append((at_old, at_new, size))

    # Passages that are still to be compared, the first one last.
    left = [(0, len(old), 0, len(new))]
    while left:
        low_old, high_old, low_new, high_new = left.pop()
        start = _equal_words(old[low_old:high_old], new[low_new:high_new])
        if start:
            add(low_old, low_new, start)
            low_old, low_new = low_old + start, low_new + start
        if low_old == high_old or low_new == high_new:
            continue
        end = _equal_words(old[low_old:high_old][::-1], new[low_new:high_new][::-1])
        if end:
            # The equal end becomes a passage of its own, which will be found equal from its start.
            left.append((high_old - end, high_old, high_new - end, high_new))
            left.append((low_old, high_old - end, low_new, high_new - end))
            continue
        product = (high_old - low_old) * (high_new - low_new)
        if product <= min(EXACT, budget):
            budget -= product
            part = SequenceMatcher(None, old[low_old:high_old], new[low_new:high_new], False)
            for block in part.get_matching_blocks()[:-1]:
                add(low_old + block.a, low_new + block.b, block.size)
            continue
        looks -= high_old - low_old + high_new - low_new
        if looks < 0:
            continue
        anchors = _anchors(old, new, (low_old, high_old), (low_new, high_new))
        if anchors:
            ends = [*anchors[1:], (high_old, high_new)]
            pieces = [
                (a_old, b_old, a_new, b_new)
                for (a_old, a_new), (b_old, b_new) in zip(anchors, ends, strict=True)
            ]
            first = (low_old, anchors[0][0], low_new, anchors[0][1])
            left.extend(reversed([first, *pieces]))
    return blocks


def _anchors(
    old: Sequence[str], new: Sequence[str], in_old: tuple[int, int], in_new: tuple[int, int]
) -> list[tuple[int, int]]:
    """Return places of words that both passages have exactly once, ascending in both."""
    places_old, places_new = (
        dict(_once(words, *bounds)) for words, bounds in ((old, in_old), (new, in_new))
    )
    pairs = [(at, places_new[word]) for word, at in places_old.items() if word in places_new]
    return _longest_ascending(pairs)


def _once(words: Sequence[str], low: int, high: int) -> Iterator[tuple[str, int]]:
    counts = Counter(words[low:high])
    return ((words[at], at) for at in range(low, high) if counts[words[at]] == 1)


def _longest_ascending(pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the longest subsequence whose second numbers ascend too, by patience sorting."""
    tops: list[int] = []
    piles: list[int] = []
    previous: list[int] = []
    for index, (_, value) in enumerate(pairs):
        pile = bisect_left(tops, value)
        previous.append(piles[pile - 1] if pile else -1)
        if pile == len(tops):
            tops.append(value)
            piles.append(index)
        else:
            tops[pile], piles[pile] = value, index
    chain = []
    index = piles[-1] if piles else -1
    while index >= 0:
        chain.append(pairs[index])
        index = previous[index]
    return chain[::-1]


def _equal_words(old: Sequence[str], new: Sequence[str]) -> int:
    """Return how many words two lists have in common at their beginning."""
    pairs = zip(old, new, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(old), len(new)))
