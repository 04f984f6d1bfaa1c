"""How well a job's words match a query: a number that depends on the job and the query alone.

It is BM25 (Robertson and Zaragoza, 2009) without the rarity of words in the collection and with a fixed mean
length: with those, each new job would change the order, and pages would repeat jobs or leave them out. All jobs
that are ranked have all words of the query, so that rarity matters only between the sides of an ``OR``.
"""

from __future__ import annotations

from jobs.search.query import Node, needle, phrases
from jobs.search.words import BREAK

#: BM25's parameters: how fast more occurrences count less, and how much long texts are discounted.
SATURATION = 1.2
DISCOUNT = 0.75
MEAN_LENGTH = 2000
#: The weight of an occurrence in the question; one in an output has the weight 1.
QUESTION = 3
#: Scores are integers, so that they can be part of a cursor.
SCALE = 1_000_000


def score(query: Node, sequence: str) -> int:
    """Return the score of a job, higher for a better match.

    Args:
        query: what was searched.
        sequence: the job's words, the question's first, with a space around each.
    """
    norm = 1 - DISCOUNT + DISCOUNT * len(sequence) / MEAN_LENGTH
    question = sequence.partition(f" {BREAK} ")[0] + " "
    total = 0.0
    for phrase in dict.fromkeys(phrases(query)):
        text = needle(phrase)
        count = sequence.count(text) + (QUESTION - 1) * question.count(text)
        total += count / (count + SATURATION * norm)
    return round(total * SCALE)
