"""Measures of agreement give the values that their sources do."""

from __future__ import annotations

import pytest

from jobs.agreement import cohen_kappa, krippendorff_alpha

#: Krippendorff's example of four observers and twelve units, with missing values (2011, section C).
OBSERVERS = (
    "1 2 3 3 2 1 4 1 2 . . .",
    "1 2 3 3 2 2 4 1 2 5 . 3",
    ". 3 3 3 2 3 4 2 2 5 1 .",
    "1 2 3 3 2 4 4 1 2 5 1 .",
)


def test_kappa_of_two_readers_of_grant_proposals() -> None:
    """The usual example: both say yes to 20, both no to 15, and they differ in 5 and 10."""
    pairs = [(1, 1)] * 20 + [(1, 0)] * 5 + [(0, 1)] * 10 + [(0, 0)] * 15
    assert cohen_kappa(pairs) == pytest.approx(0.4)
    assert cohen_kappa([(b, a) for a, b in pairs]) == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("table", "kappa"),
    [(((45, 15), (25, 15)), 0.1304), (((25, 35), (5, 35)), 0.2593)],
)
def test_kappa_with_equal_agreement_and_unequal_margins(
    table: tuple[tuple[int, int], tuple[int, int]], kappa: float
) -> None:
    pairs = [(a, b) for a in (0, 1) for b in (0, 1) for _ in range(table[a][b])]
    assert cohen_kappa(pairs) == pytest.approx(kappa, abs=5e-5)


def test_kappa_is_one_zero_or_undefined() -> None:
    assert cohen_kappa([(1, 1), (0, 0), (-1, -1)]) == 1
    assert cohen_kappa([(1, 1), (1, 0), (0, 1), (0, 0)]) == 0
    assert cohen_kappa([(1, 1), (1, 1)]) is None
    assert cohen_kappa([]) is None


def test_alpha_of_the_published_example() -> None:
    columns = zip(*(row.split() for row in OBSERVERS), strict=True)
    units = [[int(value) for value in column if value != "."] for column in columns]
    assert krippendorff_alpha(units) == pytest.approx(0.815, abs=5e-4)


def test_alpha_is_one_below_zero_or_undefined() -> None:
    assert krippendorff_alpha([[1, 1, 1], [0, 0], [-1, -1, -1]]) == 1
    systematic = krippendorff_alpha([[-1, 1], [1, -1], [-1, 1]])
    assert systematic is not None
    assert systematic < 0
    assert krippendorff_alpha([[1, 1], [1, 1]]) is None
    assert krippendorff_alpha([[1], [0]]) is None
    assert krippendorff_alpha([]) is None
