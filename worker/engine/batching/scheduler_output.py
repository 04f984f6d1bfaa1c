"""What one step computes."""

from __future__ import annotations

from dataclasses import dataclass, field

from worker.engine.batching.sequence import Sequence


@dataclass(frozen=True)
class PrefillChunk:
    """Tokens ``start … end - 1`` of a sequence, whose keys and values the step computes."""

    sequence: Sequence
    start: int
    end: int

    @property
    def is_last(self) -> bool:
        """Whether the prefill is complete after it, so that a token can be sampled."""
        return self.end == len(self.sequence)


@dataclass(frozen=True)
class SchedulerOutput:
    """What one step computes: last token and draft of each decoding sequence, and prefill chunks."""

    #: Sorted by adapter, then by row.
    decodes: list[Sequence]
    #: Sorted by adapter.
    prefills: list[PrefillChunk]
    #: Sequences that lost their memory, and wait again.
    preempted: list[Sequence] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.decodes or self.prefills)

    @property
    def sequences(self) -> list[Sequence]:
        """All sequences that take part in the step."""
        return [*self.decodes, *(chunk.sequence for chunk in self.prefills)]

    @property
    def num_prefill_tokens(self) -> int:
        """Number of tokens of all prefill chunks."""
        return sum(chunk.end - chunk.start for chunk in self.prefills)

    def by_adapter(self) -> list[tuple[list[Sequence], list[PrefillChunk]]]:
        """Return the decodes and prefills of each adapter, in the order of the adapter ids."""
        groups: dict[int, tuple[list[Sequence], list[PrefillChunk]]] = {}
        for sequence in self.decodes:
            groups.setdefault(sequence.adapter_id, ([], []))[0].append(sequence)
        for chunk in self.prefills:
            groups.setdefault(chunk.sequence.adapter_id, ([], []))[1].append(chunk)
        return [groups[adapter_id] for adapter_id in sorted(groups)]
