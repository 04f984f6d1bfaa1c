"""Confidence intervals and tests, compared with published numbers and exact sums."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.evaluation.statistics import Paired, Share, compare, share


def test_wilsons_interval_is_the_published_one() -> None:
    """Newcombe, Statistics in Medicine 17 (1998), table I: 81 of 263, 15 of 148, 0 of 20."""
    for hits, total, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605)):
        assert Share(hits, total).interval == pytest.approx((low, high), abs=5e-5)
    assert Share(0, 20).interval == pytest.approx((0, 0.1611), abs=5e-5)


def test_mcnemars_test_is_the_binomial_sum() -> None:
    exact = 2 * sum(math.comb(12, k) for k in range(3)) / 2**12
    assert Paired(mended=10, spoilt=2, total=50).p_value == pytest.approx(exact)
    assert Paired(mended=2, spoilt=10, total=50).p_value == pytest.approx(exact)
    assert Paired(mended=0, spoilt=0, total=50).p_value == 1


def test_the_paired_interval_is_the_published_one() -> None:
    """Bonett and Price's formula, computed by hand: 9 corrected and 2 worsened of 98."""
    reach = 1.959964 * math.sqrt((0.10 + 0.03 - 0.07**2) / 100)
    paired = Paired(mended=9, spoilt=2, total=98)
    assert paired.difference == pytest.approx(7 / 98)
    assert paired.interval == pytest.approx((0.07 - reach, 0.07 + reach), abs=1e-6)


def test_empty_counts_give_nan() -> None:
    empty = share([])
    assert math.isnan(empty.value)
    assert all(math.isnan(bound) for bound in empty.interval)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_the_change_is_the_difference_of_the_shares(pairs: list[tuple[bool, bool]]) -> None:
    before, after = [b for b, _ in pairs], [a for _, a in pairs]
    change = compare(before, after)
    assert change.difference == pytest.approx(share(after).value - share(before).value)
    low, high = change.interval
    assert -1 <= low <= high <= 1
    assert compare(after, before).p_value == pytest.approx(change.p_value)
    share_after = share(after)
    assert 0 <= share_after.interval[0] <= share_after.value + 1e-12
    assert share_after.value - 1e-12 <= share_after.interval[1] <= 1
