"""Guesses of what a text goes on with, taken from what was read and written before.

The texts of a role are alike: set phrases, words out of the question, and a regenerator copies most
of the answer that it rewrites. So tokens are guessed ahead (drafted) and computed in the same step
as the one before them. A token's noise depends on its position alone, so a draft is right if it is
the token that is drawn there anyway: what is kept is the text that would have come without drafts,
in fewer steps (speculative decoding, Leviathan, Kalman and Matias, ICML 2023; the guesses are looked
up, as in Saxena's prompt lookup decoding, 2023).
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

#: Lengths of the contexts that are looked up.
CONTEXTS = (6, 4, 2)
#: Tokens before a guess that it can depend on.
LONGEST = max(CONTEXTS)
#: The most tokens that are drafted for one sequence in one step.
MOST = 7
#: Where counters stop, so that what changes is unlearnt soon.
SURE = 3
#: Entries of the table.
SIZE = 2**20
#: How much of what is known of a kind of guess the newest one decides.
NEWEST = 1 / 64
#: Tokens whose computing takes about as long as reading the weights, by the device's type: the ridge
#: of the roofline model (Williams, Waterman and Patterson, CACM 2009). The CPU's is the best of those
#: that were tried on the demo; the GPU's is an H100's arithmetic, and not measured.
RIDGE = {"cpu": 3, "cuda": 256}
#: Where drafts would have to be likelier than this, none are made: looking for them costs too.
LIKELIEST = 0.9


def least_likely(decoding: int, device_type: str) -> float:
    """Return how likely a draft must be to be worth computing.

    A right one saves its sequence a step, of which each of those that decode together pays its share
    of reading the weights; a wrong one costs a token's computing.

    Args:
        decoding: sequences that decode together.
        device_type: where, as PyTorch calls it.
    """
    return decoding / (decoding + RIDGE.get(device_type, RIDGE["cpu"]))


class Drafter:
    """Predicts tokens as a processor predicts branches (Smith, ISCA 1981).

    For each context of a few tokens, a table without tags remembers which token came next, and in a
    saturating counter how steadily. How often guesses with such a context and such a counter are
    right is learnt from the texts of each adapter. Two contexts that fall on the same entry give
    wrong guesses, which cost a little and change nothing; so memory never grows, and nothing is
    evicted.
    """

    def __init__(self, adapters: int) -> None:
        """Know nothing of so many adapters."""
        self._tokens = array("i", bytes(4 * SIZE))
        self._counts = bytearray(SIZE)
        #: By adapter, context and counter: the share of guesses that are right.
        self._right = [[[0.0] + [0.5] * SURE for _ in CONTEXTS] for _ in range(adapters)]

    def observe(self, adapter: int, tokens: Sequence[int], new: int, *, written: bool) -> None:
        """Learn which tokens follow which.

        Args:
            adapter: index of the adapter that reads or writes them.
            tokens: successive ones.
            new: how many at their end were not observed yet; `LONGEST` before them are enough.
            written: whether the adapter drew them: prompts do not tell what can be guessed.
        """
        known, counts, right = self._tokens, self._counts, self._right[adapter]
        for end in range(max(len(tokens) - new, 1), len(tokens)):
            token = tokens[end]
            for context, length in enumerate(CONTEXTS):
                if end < length:
                    continue
                entry = _entry(adapter, tokens[end - length : end])
                count, same = counts[entry], known[entry] == token
                if written and count:
                    right[context][count] += (same - right[context][count]) * NEWEST
                if same:
                    counts[entry] = min(count + 1, SURE)
                elif count > 1:
                    counts[entry] = count - 1
                else:
                    known[entry], counts[entry] = token, 1

    def propose(self, adapter: int, tokens: Sequence[int], *, most: int, least: float) -> list[int]:
        """Guess what follows, for as long as all of it together is likely enough.

        Args:
            adapter: as above.
            tokens: the last `LONGEST` so far.
            most: so many tokens at the most.
            least: the probability that the last guess must have at least.
        """
        if least > LIKELIEST:
            return []
        right = self._right[adapter]
        so_far = list(tokens)
        likely = 1.0
        for _ in range(min(most, MOST)):
            best, guess = 0.0, 0
            for context, length in enumerate(CONTEXTS):
                if len(so_far) >= length:
                    entry = _entry(adapter, so_far[-length:])
                    if (share := right[context][self._counts[entry]]) > best:
                        best, guess = share, self._tokens[entry]
            likely *= best
            if likely < least or not best:
                break
            so_far.append(guess)
        return so_far[len(tokens) :]


def _entry(adapter: int, context: Sequence[int]) -> int:
    return hash((adapter, *context)) % SIZE
