"""Chooses which sequences run, and what the next step computes."""

from __future__ import annotations

import heapq
import itertools

from worker.engine.batching.adaptive_limit import AdaptiveLimit
from worker.engine.batching.scheduler_output import PrefillChunk, SchedulerOutput
from worker.engine.batching.sequence import UNALLOCATED, Sequence
from worker.engine.kv.manager import KVCacheManager


class Scheduler:
    """Admits sequences by priority, then by arrival; computes prompts in chunks (chunked prefill).

    Decoding sequences take part in every step: a long prompt makes steps longer by a chunk, and never
    stops the others. A sequence gets memory in the step that computes its first chunk, so that it can
    reuse whatever was computed until then. No sequence is admitted before one that came earlier at the
    same priority, however little memory it needs: a large one would starve.

    Where memory runs out, the youngest sequence of the lowest priority is preempted and recomputed
    later. Its text is the same, since the noise of sampling depends on the position alone.

    A step may be scheduled while the step before is in flight: `on_step_launched` is called when a step
    is launched, and a token that is not read yet is `PENDING_TOKEN`.
    """

    def __init__(self, max_num_seqs: int, max_num_batched_tokens: int, kv: KVCacheManager) -> None:
        """
        Args:
            max_num_seqs: maximum number of running sequences.
            max_num_batched_tokens: maximum number of tokens of a step that has prefills. A quarter of it
                is for prefills however many sequences decode.
            kv: manages the KV cache. A sequence that runs alone must get memory for the longest context.
        """
        self._max_num_seqs = AdaptiveLimit(max_num_seqs)
        self._max_num_batched_tokens = AdaptiveLimit(max_num_batched_tokens)
        self._kv = kv
        #: In the order of admission.
        self.running: list[Sequence] = []
        self._waiting: list[tuple[int, int, Sequence]] = []
        self._arrivals = itertools.count()
        #: Sequences that were preempted so far.
        self.num_preemptions = 0

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence; a preempted one keeps its position in the order of arrival."""
        if sequence.arrival_index is None:
            sequence.arrival_index = next(self._arrivals)
        heapq.heappush(self._waiting, (*_order(sequence), sequence))

    @property
    def max_num_seqs(self) -> int:
        """Maximum number of running sequences at present: less after memory ran out."""
        return self._max_num_seqs.current

    @property
    def max_num_batched_tokens(self) -> int:
        """Maximum number of tokens of a step with prefills at present: less after memory ran out."""
        return self._max_num_batched_tokens.current

    @property
    def waiting(self) -> list[Sequence]:
        return [sequence for *_, sequence in self._waiting]

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def schedule(self) -> SchedulerOutput:
        """Choose what the next step computes, and admit sequences while there is room for prompts.

        The result may be empty although sequences run: if the last token of each is in flight.
        """
        preempted = self._allocate_next_tokens()
        decodes: list[Sequence] = []
        prefilling: list[Sequence] = []  # in the order of admission
        for sequence in self.running:
            if not sequence.at_max_output_tokens:
                (decodes if sequence.is_decoding else prefilling).append(sequence)
        decodes.sort(key=lambda s: (s.adapter_id, s.row))
        prefills: list[PrefillChunk] = []
        limit = self.max_num_batched_tokens
        budget = max(limit - len(decodes), limit // 4, 1)
        for sequence in prefilling:
            if budget:
                prefills.append(_next_chunk(sequence, budget))
                budget -= prefills[-1].end - prefills[-1].start
        while not preempted and len(self.running) < self.max_num_seqs and budget and self._admit():
            prefills.append(_next_chunk(self.running[-1], budget))
            budget -= prefills[-1].end - prefills[-1].start
        prefills.sort(key=lambda chunk: chunk.sequence.adapter_id)
        return SchedulerOutput(decodes, prefills, preempted)

    def _allocate_next_tokens(self) -> list[Sequence]:
        """Give running sequences memory for their next token; return those that were preempted for it."""
        preempted: list[Sequence] = []
        append_slots = self._kv.append_slots
        for sequence in list(self.running):
            if sequence.at_max_output_tokens or sequence.row == UNALLOCATED:
                continue
            while not append_slots(sequence, sequence.num_computed_tokens + 1):
                preempted.append(max(self.running, key=_order))
                self._preempt(preempted[-1])
                if preempted[-1] is sequence:
                    break
        return preempted

    def _admit(self) -> bool:
        """Run the first waiting sequence, if there is memory for it."""
        if not self._waiting:
            return False
        *_, sequence = self._waiting[0]
        if sequence.has_pending_token or not self._kv.allocate(sequence):
            return False
        heapq.heappop(self._waiting)
        self.running.append(sequence)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Queue a running sequence again, with its tokens."""
        self.num_preemptions += 1
        self.remove(sequence)
        self.add(sequence)

    def on_step_launched(self, output: SchedulerOutput) -> bool:
        """Count a step's tokens as computed.

        Returns:
            whether a limit was raised again, after memory had run out.
        """
        for sequence in output.decodes:
            sequence.num_computed_tokens += 1
        for chunk in output.prefills:
            sequence = chunk.sequence
            sequence.num_computed_tokens = chunk.end
            # Output tokens are not cached: no prompt of the role continues with them.
            if token_ids := sequence.prompt_token_ids[chunk.start : chunk.end]:
                self._kv.cache_prompt(sequence, chunk.start, token_ids)
        raised = (
            self._max_num_seqs.on_success(len(self.running)),
            self._max_num_batched_tokens.on_success(output.num_prefill_tokens),
        )
        return any(raised)

    def remove(self, sequence: Sequence, *, invalid_kv: bool = False) -> None:
        """Remove a running or waiting sequence, and free its memory.

        Args:
            sequence: the sequence.
            invalid_kv: whether its keys and values may be NaN. Those that it computed are not reused either if no
                token was read yet, since only logits are checked.
        """
        if sequence.row == UNALLOCATED:
            self._waiting = [entry for entry in self._waiting if entry[2] is not sequence]
            heapq.heapify(self._waiting)
            return
        self.running.remove(sequence)
        self._kv.free(
            sequence, invalid_kv=invalid_kv, unverified_kv=not sequence.prompt_is_verified
        )
        sequence.draft_token_ids = []

    def reduce_batched_tokens(self, output: SchedulerOutput) -> None:
        """Halve the prefill tokens of a step, after a step ran out of memory."""
        self._max_num_batched_tokens.halve(output.num_prefill_tokens)

    def reduce_seqs(self) -> list[Sequence]:
        """Halve the running sequences; the youngest are preempted.

        Returns:
            the preempted sequences; none if only one may run anyway.
        """
        if self.max_num_seqs == 1:
            return []
        self._max_num_seqs.halve(len(self.running))
        preempted = self.running[self.max_num_seqs :]
        for sequence in preempted:
            self._preempt(sequence)
        return preempted


def _order(sequence: Sequence) -> tuple[int, int]:
    """Sort key: the first is admitted first and preempted last."""
    assert sequence.arrival_index is not None  # noqa: S101 (it has waited)
    return -sequence.generation.request.priority, sequence.arrival_index


def _next_chunk(sequence: Sequence, budget: int) -> PrefillChunk:
    start = sequence.num_computed_tokens
    return PrefillChunk(sequence, start, min(len(sequence), start + budget))
