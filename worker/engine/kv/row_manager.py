"""Memory in rows: each sequence has one as long as the context, and takes prompts over by copying."""

from __future__ import annotations

from collections.abc import Sequence as Several

from worker.engine.batching.sequence import NOWHERE, Sequence
from worker.engine.kv.prefix_cache import Place, Prefixes


class Rows:
    """Hands out the rows of a `worker.engine.kv.row_cache.KVCache`."""

    def __init__(self, rows: int, *, context: int, adapters: int) -> None:
        """
        Args:
            rows: of the cache.
            context: the most tokens of a row.
            adapters: how many there are.
        """
        self._free = set(range(rows))
        self._prefixes = Prefixes(rows, context, adapters)
        self._copies: list[Place] = []
        self._damaged: list[int] = []

    def allocate(self, sequence: Sequence) -> bool:
        if not self._free:
            return False
        place = self._prefixes.place(sequence.adapter, sequence.prompt, self._free)
        self._free.remove(place.row)
        sequence.row, sequence.cached = place.row, place.length
        if place.source != place.row:
            self._copies.append(place)
        return True

    def extend(self, sequence: Sequence, end: int) -> bool:  # noqa: ARG002  # a row has room for all
        return True

    def record(self, sequence: Sequence, start: int, tokens: Several[int]) -> None:
        self._prefixes.record(sequence.row, sequence.adapter, start, tokens)

    def release(self, sequence: Sequence, *, damaged: bool) -> None:
        self._free.add(sequence.row)
        if damaged:
            self._prefixes.forget(sequence.row)
            self._damaged.append(sequence.row)
        sequence.row = NOWHERE
        sequence.cached = 0

    def take_copies(self) -> list[Place]:
        """Return which rows take over what others hold, one after the other, before the next step."""
        copies, self._copies = self._copies, []
        return copies

    def take_damaged(self) -> list[int]:
        """Return the rows whose keys and values may be no numbers, to be cleared before any copy."""
        damaged, self._damaged = self._damaged, []
        return damaged

    def common(self, sequences: Several[Sequence]) -> int:
        """Count the tokens that running sequences of one adapter have in common at their beginning."""
        return self._prefixes.common([s.row for s in sequences])

    @property
    def free(self) -> int:
        """How many rows no sequence has."""
        return len(self._free)
