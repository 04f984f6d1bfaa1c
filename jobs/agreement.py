"""How far reviewers agree, beyond agreement by chance.

Both measures are 1 if all agree, and 0 if they agree no more often than by chance. scikit-learn and the package
`krippendorff` have them too; the first is large, and the second is under the GPL.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence


def cohen_kappa(pairs: Sequence[tuple[Hashable, Hashable]]) -> float | None:
    """Return Cohen's kappa of two reviewers, who rated the same jobs.

    J. Cohen: A coefficient of agreement for nominal scales. Educational and Psychological Measurement 20
    (1960), 37 to 46.

    Args:
        pairs: the ratings of each job by the first and by the second reviewer.

    Returns:
        None if there are no pairs, or if both reviewers gave all jobs the same rating, so that chance alone
        makes them agree.
    """
    if not pairs:
        return None
    count = len(pairs)
    observed = sum(first == second for first, second in pairs) / count
    firsts, seconds = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    expected = sum(firsts[value] * seconds[value] for value in firsts) / count**2
    if expected == 1:
        return None
    return (observed - expected) / (1 - expected)


def krippendorff_alpha(units: Sequence[Sequence[int]]) -> float | None:
    """Return Krippendorff's alpha of any number of reviewers, for ratings that have an order.

    K. Krippendorff: Computing Krippendorff's Alpha-Reliability (2011), section C and the ordinal metric of
    section E. https://repository.upenn.edu/handle/20.500.14332/2043

    Args:
        units: the ratings of each job, whoever gave them. Jobs with fewer than two are ignored.

    Returns:
        None if no job has two ratings, or if all ratings are the same.
    """
    pairable = [unit for unit in units if len(unit) > 1]
    totals: Counter[int] = Counter(value for unit in pairable for value in unit)
    if len(totals) < 2:
        return None
    count = totals.total()
    distance = _ordinal(totals)
    observed = 0.0
    for unit in pairable:
        ratings = Counter(unit)
        within = sum(ratings[a] * ratings[b] * squared for (a, b), squared in distance.items())
        observed += within / (len(unit) - 1)
    expected = sum(totals[a] * totals[b] * squared for (a, b), squared in distance.items())
    return 1 - (count - 1) * observed / expected


def _ordinal(totals: Mapping[int, int]) -> dict[tuple[int, int], float]:
    """Return the squared distance of each pair of different values: by how many ratings lie between them."""
    values = sorted(totals)
    distance = {}
    for i, low in enumerate(values):
        for j in range(i + 1, len(values)):
            high = values[j]
            between = sum(totals[value] for value in values[i : j + 1])
            squared = (between - (totals[low] + totals[high]) / 2) ** 2
            distance[low, high] = distance[high, low] = squared
    return distance
