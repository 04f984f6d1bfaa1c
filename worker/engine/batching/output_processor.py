"""Turns sampled tokens into text and hands it to generations, on a thread of its own.

On the engine's thread, detokenizing would delay the next step, and the device would wait for it. vLLM has
its output processor in another process.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from worker.engine.batching.sequence import Sequence
from worker.engine.interface import CUT, Completion, EngineError, FinishReason
from worker.engine.tokenization.detokenizer import BatchDecode, batch_decoder

log = logging.getLogger(__name__)

#: Tokens of a delta. The first delta is one token. Detokenizing every token by itself would take longer
#: than computing it. Deltas depend on the number of tokens and not on time, so that a stage that runs
#: again after a crash streams the same deltas.
TOKENS_PER_DELTA = 4
#: Sequences that are detokenized in one call: enough that other threads run meanwhile, few enough that of
#: many that end in the same step the first do not wait for the last.
MAX_BATCH = 16


def whole_delta_tokens(num_tokens: int) -> int:
    """Return how many of a sequence's first output tokens make whole deltas."""
    return 1 + (num_tokens - 1) // TOKENS_PER_DELTA * TOKENS_PER_DELTA if num_tokens else 0


@dataclass(frozen=True)
class SequenceUpdate:
    """New tokens of a sequence, and its end."""

    sequence: Sequence
    #: Output tokens of earlier updates; they make whole deltas.
    num_previous_tokens: int
    #: They make whole deltas too, unless the sequence ends.
    new_token_ids: list[int]
    #: Why the sequence ended, if it did. Nothing changes the sequence from then on.
    outcome: FinishReason | EngineError | None = None

    def split(self) -> tuple[list[list[int]], list[int]]:
        """Return the token ids of each whole delta, and the rest."""
        deltas: list[list[int]] = []
        start = 0
        while True:
            size = TOKENS_PER_DELTA if self.num_previous_tokens + start else 1
            if start + size > len(self.new_token_ids):
                return deltas, self.new_token_ids[start:]
            deltas.append(self.new_token_ids[start : start + size])
            start += size


class OutputProcessor:
    """Applies updates to generations; those of one sequence in the order in which they were put."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._decode: BatchDecode = batch_decoder(tokenizer)
        self._queue: queue.SimpleQueue[list[SequenceUpdate] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="output", daemon=True)
        self._thread.start()

    def put(self, updates: list[SequenceUpdate]) -> None:
        """Queue updates, and return at once."""
        self._queue.put(updates)

    def close(self) -> None:
        """Process what is queued, and stop."""
        self._queue.put(None)
        self._thread.join()

    # --- the thread -------------------------------------------------------------------

    def _run(self) -> None:
        for batch in self._batches():
            try:
                self._process(batch)
            except Exception as error:  # without this thread, every caller would wait for ever
                log.exception("detokenizing a batch failed")
                for update in batch:  # which of them is the cause is unknown
                    self._fail(update.sequence, error)

    def _batches(self) -> Iterator[list[SequenceUpdate]]:
        """Yield queued updates in batches until the end; a batch has at most one update of a sequence."""
        waiting: deque[SequenceUpdate] = deque()
        closed = False
        while waiting or not closed:
            while not (closed or (waiting and self._queue.empty())):
                if (updates := self._queue.get()) is None:
                    closed = True
                else:
                    waiting += updates
            batch: dict[Sequence, SequenceUpdate] = {}
            while waiting and len(batch) < MAX_BATCH and waiting[0].sequence not in batch:
                update = waiting.popleft()
                batch[update.sequence] = update
            if batch:
                yield list(batch.values())

    def _process(self, batch: list[SequenceUpdate]) -> None:
        pending = [(u, *u.split()) for u in batch if not u.sequence.generation.finished]
        for i in range(max((len(deltas) for _, deltas, _ in pending), default=0)):
            pieces = [
                (u.sequence, deltas[i])
                for u, deltas, _ in pending
                if i < len(deltas) and not u.sequence.generation.finished
            ]
            for (sequence, _), text in zip(pieces, self._extend(pieces), strict=True):
                if text:
                    sequence.generation.emit(text)
                if sequence.detokenizer.stopped:
                    # The engine's thread is ahead; it drops what it has, and the sequence, in its next step.
                    sequence.generation.cancel()
                    self._finish(sequence, FinishReason.STOP_STRING)
        ended = [
            (u.sequence, u.outcome, rest)
            for u, _, rest in pending
            if u.outcome and not u.sequence.generation.finished
        ]
        completed = [(s, o, rest) for s, o, rest in ended if isinstance(o, FinishReason)]
        last_deltas = self._extend([(s, rest) for s, _, rest in completed])
        texts = self._decode([s.detokenizer.token_ids for s, *_ in completed])
        for (sequence, reason, _), delta, text in zip(completed, last_deltas, texts, strict=True):
            self._finish(sequence, reason, delta, text)
        for sequence, outcome, _ in ended:
            if isinstance(outcome, EngineError):
                sequence.generation.finish(outcome)

    def _extend(self, pieces: list[tuple[Sequence, list[int]]]) -> list[str]:
        """Add tokens to sequences, and return the text that each of them completes."""
        to_decode: list[list[int]] = []
        for sequence, token_ids in pieces:
            to_decode += sequence.detokenizer.begin(token_ids)
        texts = self._decode(to_decode)
        return [
            sequence.detokenizer.complete(*texts[2 * i : 2 * i + 2])
            for i, (sequence, _) in enumerate(pieces)
        ]

    def _finish(
        self,
        sequence: Sequence,
        reason: FinishReason,
        last_delta: str = "",
        decoded: str | None = None,
    ) -> None:
        """End a generation.

        Args:
            sequence: of the generation.
            reason: of its end.
            last_delta: text that was not emitted yet.
            decoded: all tokens, decoded, if that is done already.
        """
        generation, detokenizer = sequence.generation, sequence.detokenizer
        text, rest = detokenizer.finish(decoded, cut=reason in CUT)
        output_tokens = len(sequence.output_token_ids)
        if detokenizer.stopped:
            reason, output_tokens = FinishReason.STOP_STRING, len(detokenizer.token_ids)
        if reason is not FinishReason.CANCELLED:
            # A cancelled stage may run again; its delta would then be longer.
            for delta in filter(None, (last_delta, rest)):
                generation.emit(delta)
        generation.finish(
            Completion(
                text=text,
                deltas=detokenizer.deltas,
                prompt_tokens=len(sequence.prompt_token_ids),
                output_tokens=output_tokens,
                finish_reason=reason,
                max_output_tokens=sequence.max_output_tokens,
                first_token_at=sequence.first_token_at,
            )
        )

    def _fail(self, sequence: Sequence, error: Exception) -> None:
        """End a generation whose text cannot be decoded, and let the engine stop it, too."""
        if not sequence.generation.finished:
            sequence.generation.cancel()
            sequence.generation.finish(EngineError.of(error))
