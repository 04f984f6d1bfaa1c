"""Drafts the tokens after a sequence's last, from what was read and generated before.

The texts of a role are alike: set phrases, words of the question, and a regenerator copies most of the
answer that it rewrites. So tokens are drafted, and computed in the same step as the token before them.
A token's noise depends on its position alone, so a draft token is accepted if it is the token that is
sampled there anyway: the text is the one without drafts, in fewer steps (speculative decoding, Leviathan,
Kalman and Matias, ICML 2023; drafts are looked up, as in Saxena's prompt lookup decoding, 2023).
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

#: Lengths of the n-grams that are looked up, longest first.
NGRAM_SIZES = (6, 4, 2)
#: Number of tokens that a draft token can depend on.
MAX_NGRAM_SIZE = max(NGRAM_SIZES)
#: Maximum number of draft tokens of a sequence in a step.
MAX_DRAFT_TOKENS = 7
#: Counters saturate here, so that the table adapts soon.
COUNTER_MAX = 3
#: Entries of the table.
TABLE_SIZE = 2**20
#: Weight of the newest outcome in an acceptance rate (an exponential moving average).
RATE_DECAY = 1 / 64
#: Number of tokens whose computation takes about as long as reading the weights: the ridge point of the
#: roofline model (Williams, Waterman and Patterson, CACM 2009). The best of those tried with the demo on a CPU.
ROOFLINE_TOKENS = 3
#: With more decoding sequences nothing is drafted or learned: hardly any draft is likely enough, and the table costs
#: time, too (3% of a step of 64).
MAX_DECODES = 27


def acceptance_threshold(num_decodes: int) -> float:
    """Return the acceptance probability from which a draft token is worth computing.

    An accepted token saves its sequence a step, of which each decoding sequence pays its share of reading
    the weights. A rejected one costs the computation of a token.

    Args:
        num_decodes: number of decoding sequences.
    """
    return num_decodes / (num_decodes + ROOFLINE_TOKENS)


class Drafter:
    """Predicts tokens as a processor predicts branches (Smith, ISCA 1981).

    For each n-gram, a table without tags remembers which token came next, and in a saturating counter how
    steadily. The acceptance rate of drafts from an n-gram length and a counter value is learned from each
    adapter's texts. N-grams that collide in the table cause wrong drafts, which cost a little and change
    no text; so memory never grows, and nothing is evicted.
    """

    def __init__(self, num_adapters: int) -> None:
        self._next_tokens = array("i", bytes(4 * TABLE_SIZE))
        self._counters = bytearray(TABLE_SIZE)
        #: By adapter, n-gram size and counter value.
        self._acceptance_rates = [
            [[0.0] + [0.5] * COUNTER_MAX for _ in NGRAM_SIZES] for _ in range(num_adapters)
        ]

    def observe(
        self, adapter_id: int, token_ids: Sequence[int], num_new: int, *, generated: bool
    ) -> None:
        """Learn which tokens follow which.

        Args:
            adapter_id: the adapter that reads or generates them.
            token_ids: successive tokens.
            num_new: how many at their end are new; `MAX_NGRAM_SIZE` before them are enough.
            generated: whether the adapter generated them. Prompts teach the table, but not the
                acceptance rates.
        """
        next_tokens, counters = self._next_tokens, self._counters
        rates = self._acceptance_rates[adapter_id]
        for end in range(max(len(token_ids) - num_new, 1), len(token_ids)):
            token = token_ids[end]
            for i, size in enumerate(NGRAM_SIZES):
                if end < size:
                    continue
                entry = _entry(adapter_id, token_ids[end - size : end])
                counter, is_same = counters[entry], next_tokens[entry] == token
                if generated and counter:
                    rates[i][counter] += (is_same - rates[i][counter]) * RATE_DECAY
                if is_same:
                    counters[entry] = min(counter + 1, COUNTER_MAX)
                elif counter > 1:
                    counters[entry] = counter - 1
                else:
                    next_tokens[entry], counters[entry] = token, 1

    def propose(
        self, adapter_id: int, token_ids: Sequence[int], *, max_tokens: int, threshold: float
    ) -> list[int]:
        """Draft tokens for as long as all of them together are likely to be accepted.

        Args:
            adapter_id: the sequence's adapter.
            token_ids: its last `MAX_NGRAM_SIZE` tokens.
            max_tokens: maximum length of the draft.
            threshold: minimum probability that the whole draft is accepted, above 0.
        """
        rates = self._acceptance_rates[adapter_id]
        extended = list(token_ids)
        probability = 1.0
        for _ in range(min(max_tokens, MAX_DRAFT_TOKENS)):
            best_rate, draft_token = 0.0, 0
            for i, size in enumerate(NGRAM_SIZES):
                if len(extended) >= size:
                    entry = _entry(adapter_id, extended[-size:])
                    if (rate := rates[i][self._counters[entry]]) > best_rate:
                        best_rate, draft_token = rate, self._next_tokens[entry]
            probability *= best_rate
            if probability < threshold:
                break
            extended.append(draft_token)
        return extended[len(token_ids) :]


def _entry(adapter_id: int, ngram: Sequence[int]) -> int:
    return hash((adapter_id, *ngram)) % TABLE_SIZE
