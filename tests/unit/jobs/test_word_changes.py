"""Which words another text changed."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.word_changes import Change, changed_share, changes

TEXTS = st.lists(st.sampled_from(["a ", "b\n", "c", "  d", "é ", "\u202e"]), max_size=12).map(
    "".join
)


def test_equal_words_stay_and_others_are_marked() -> None:
    assert changes("47 * 36 = 1072.", "So 47 * 36 = 1692.") == [
        Change(False, "", "So "),
        Change(True, "47 * 36 = ", "47 * 36 = "),
        Change(False, "1072.", "1692."),
    ]
    assert changes("", "") == []
    assert changes("same  words", "same words\n") == [Change(True, "same  words", "same words\n")]


@given(TEXTS, TEXTS)
def test_all_passages_together_are_both_texts(before: str, after: str) -> None:
    found = changes(before, after)
    assert "".join(change.before for change in found) == before
    assert "".join(change.after for change in found) == after
    assert all(change.before.split() == change.after.split() for change in found if change.equal)
    assert (changed_share(before, after) == 0) == all(change.equal for change in found)


def test_a_share_takes_little_time_where_every_other_word_changed() -> None:
    before, after = (
        " ".join(f"same{i // 2 % 60}" if i % 2 else f"{text}{i}" for i in range(3000))
        for text in ("old", "new")
    )
    started = time.process_time()
    assert 0 < changed_share(before, after) <= 1
    # A hundredth of it is usual.
    assert time.process_time() - started < 1


def test_texts_with_one_anchor_after_the_other_take_little_time() -> None:
    """Without the last word that both texts have once, the one before it is the only one."""
    before, after = (
        " ".join(
            [f"{fill} {fill} x0"]
            + [f"{fill} {fill} x{n} {fill} {fill} x{n - 1}" for n in range(1, 10_000)]
        )
        for fill in ("old", "new")
    )
    started = time.process_time()
    assert 0 < changed_share(before, after) < 1
    # A tenth of it is usual. Each word was looked at for each anchor: 50 s.
    assert time.process_time() - started < 5


@pytest.mark.parametrize("words", [6, 3000, 100_000])
def test_long_texts_are_compared_within_a_bound(words: int) -> None:
    rng = random.Random(3)
    before = [str(rng.randrange(words)) for _ in range(20_000)]
    after = [word if rng.random() < 0.9 else "new" for word in before]
    unlike = rng.sample(before, len(before))
    started = time.process_time()
    for other in (unlike, after):
        found = changes(" ".join(before), " ".join(other))
        assert " ".join(other) == "".join(change.after for change in found)
    # A tenth of it is usual.
    assert time.process_time() - started < 10
    if words > 6:
        assert sum(len(change.after.split()) for change in found if change.equal) > 17_000
