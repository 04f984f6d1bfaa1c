"""Launches steps, applies their sampled tokens, and recovers from steps that fail."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Container
from collections.abc import Sequence as Seq

import torch

from worker.engine.batching.model_runner import InFlightStep, ModelRunner, ModelRunnerOutput
from worker.engine.batching.scheduler import Scheduler
from worker.engine.batching.scheduler_output import SchedulerOutput
from worker.engine.batching.sequence import PENDING_TOKEN, UNALLOCATED, Sequence
from worker.engine.interface import EngineError, FinishReason
from worker.engine.speculative.drafter import (
    MAX_DECODES,
    MAX_DRAFT_TOKENS,
    MAX_NGRAM_SIZE,
    Drafter,
    acceptance_threshold,
)

log = logging.getLogger(__name__)

#: Ends a sequence.
Finish = Callable[[Sequence, FinishReason | EngineError], None]

NOT_FINITE = "the model's logits are not finite (NaN)"


class StepExecutor:
    """Executes scheduled steps. Whatever goes wrong, only the affected sequences fail."""

    def __init__(
        self,
        runner: ModelRunner,
        scheduler: Scheduler,
        *,
        drafter: Drafter | None,
        stop_token_ids: Container[int],
        finish: Finish,
        on_engine_dead: Callable[[], object],
    ) -> None:
        """
        Args:
            runner: computes steps.
            scheduler: of the sequences.
            drafter: drafts tokens; None for no speculative decoding.
            stop_token_ids: the tokens that end a text.
            finish: called for sequences that end or fail.
            on_engine_dead: called after an error that a device keeps for its process.
        """
        self._runner = runner
        self._scheduler = scheduler
        self._drafter = drafter
        self._stop_token_ids = stop_token_ids
        self._finish = finish
        self._on_engine_dead = on_engine_dead
        #: The step that is launched and not read yet.
        self._in_flight: InFlightStep | None = None
        self.num_steps = 0
        #: Tokens that steps computed, without rejected drafts.
        self.num_computed_tokens = 0

    @property
    def has_in_flight_step(self) -> bool:
        return self._in_flight is not None

    def execute(self, output: SchedulerOutput) -> None:
        """Launch a step, and read it or, with async scheduling, the step before."""
        for sequence in output.preempted:
            sequence.generation.context.run(
                log.info, "out of KV cache: preempted a request of %d tokens", len(sequence)
            )
        launched = self._launch(output) if output else None
        if self._runner.async_scheduling:
            launched, self._in_flight = self._in_flight, launched
        if launched:
            self._read(launched)

    def drop_in_flight_step(self) -> None:
        """Ignore the step that is in flight."""
        self._in_flight = None

    def _launch(self, output: SchedulerOutput) -> InFlightStep | None:
        if self._drafter and len(output.decodes) <= MAX_DECODES:
            self._draft(output, self._drafter)
        try:
            launched = self._runner.launch(output)
        except Exception as error:  # noqa: BLE001 (it is logged, and affected sequences fail)
            self._recover(output, error)
            return None
        # Not earlier: a step that failed is repeated, and must start from the same state.
        if self._scheduler.on_step_launched(output):
            log.info(
                "enough memory again: up to %d sequences and %d tokens a step",
                self._scheduler.max_num_seqs,
                self._scheduler.max_num_batched_tokens,
            )
        self.num_steps += 1
        self.num_computed_tokens += output.num_prefill_tokens + len(output.decodes)
        if self._runner.async_scheduling:
            for sequence in launched.sampled_sequences:
                sequence.output_token_ids.append(PENDING_TOKEN)
        return launched

    def _read(self, launched: InFlightStep) -> None:
        try:
            output = launched.get_output()
        except Exception as error:  # noqa: BLE001 (as above)
            # Which sequence is the cause is unknown: the next step has started from this one's results.
            self._in_flight = None
            self._report(error)
            # A preempted sequence may wait for a token of the step, which will never be read.
            sequences = [*self._scheduler.running, *self._scheduler.waiting]
            for sequence in [s for s in sequences if s.has_pending_token]:
                self._finish(sequence, EngineError.of(error))
            return
        self._apply(output)

    # --- sampled tokens ---------------------------------------------------------------

    def _draft(self, output: SchedulerOutput, drafter: Drafter) -> None:
        """Draft tokens of decoding sequences, and learn from the prompts that the step computes."""
        threshold = acceptance_threshold(len(output.decodes))
        for sequence in output.decodes:
            if not sequence.speculation_enabled:
                continue
            # One more token is sampled after the draft.
            room = sequence.max_output_tokens - len(sequence.output_token_ids) - 1
            sequence.draft_token_ids = drafter.propose(
                sequence.adapter_id,
                sequence.last(MAX_NGRAM_SIZE),
                max_tokens=min(MAX_DRAFT_TOKENS, room),
                threshold=threshold,
            )
        for chunk in output.prefills:
            sequence, num_new = chunk.sequence, chunk.end - chunk.start
            token_ids = sequence.slice(max(chunk.start - MAX_NGRAM_SIZE, 0), chunk.end)
            drafter.observe(sequence.adapter_id, token_ids, num_new, generated=False)

    def _apply(self, output: ModelRunnerOutput) -> None:
        """Append sampled tokens to their sequences, and finish those that end."""
        start = 0
        for sequence in output.sequences:
            draft, sequence.draft_token_ids = sequence.draft_token_ids, []
            end = start + 1 + len(draft)
            token_ids, is_finite = output.sampled_token_ids[start:end], output.is_finite[start:end]
            start = end
            if sequence.finished:  # while the step was in flight
                continue
            if self._runner.async_scheduling:
                self._replace_pending(sequence, token_ids[0], is_finite[0])
                continue
            num_new = self._append(sequence, draft, token_ids, is_finite)
            self.num_computed_tokens += max(num_new - 1, 0)
            if self._drafter and len(output.sequences) <= MAX_DECODES:
                last = sequence.last(MAX_NGRAM_SIZE + num_new)
                self._drafter.observe(sequence.adapter_id, last, num_new, generated=True)

    def _replace_pending(self, sequence: Sequence, token_id: int, is_finite: bool) -> None:
        """Replace a pending token by its id. One more may be pending by now."""
        if not is_finite:
            self._finish(sequence, EngineError(NOT_FINITE))
            return
        output = sequence.output_token_ids
        index = output.index(PENDING_TOKEN, max(len(output) - 2, 0))
        output[index] = token_id
        if sequence.first_token_at is None:
            sequence.first_token_at = time.monotonic()
        if token_id in self._stop_token_ids:
            del output[index + 1 :]
            self._finish(sequence, FinishReason.STOP)
        elif index + 1 == sequence.max_output_tokens:
            self._finish(sequence, FinishReason.LENGTH)

    def _append(
        self,
        sequence: Sequence,
        draft: Seq[int],
        token_ids: Seq[int],
        is_finite: Seq[bool],
    ) -> int:
        """Append sampled tokens up to the first that the draft does not have; return how many."""
        for i, (token_id, finite) in enumerate(zip(token_ids, is_finite, strict=True)):
            if not finite and draft:
                self._disable_speculation(sequence)
                return i
            if not finite:
                self._finish(sequence, EngineError(NOT_FINITE))
                return i
            if sequence.first_token_at is None:
                sequence.first_token_at = time.monotonic()
            sequence.output_token_ids.append(token_id)
            if token_id in self._stop_token_ids:
                self._finish(sequence, FinishReason.STOP)
                return i + 1
            if sequence.at_max_output_tokens:
                self._finish(sequence, FinishReason.LENGTH)
                return i + 1
            if i == len(draft) or token_id != draft[i]:
                return i + 1
            sequence.num_computed_tokens += 1  # the step has computed the draft token
        return len(token_ids)

    def _disable_speculation(self, sequence: Sequence) -> None:
        """Continue a sequence without drafts: a draft token may be why its logits are not finite."""
        sequence.speculation_enabled = False
        sequence.num_computed_tokens -= 1  # the last token is computed again, by itself
        self._runner.discard_uncomputed(sequence)

    # --- failures ---------------------------------------------------------------------

    def _recover(self, output: SchedulerOutput, error: Exception) -> None:
        """Handle a step that failed when it was launched."""
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            self._reduce(output, error)
            return
        self._report(error)
        self._execute_one_by_one(output, error)

    def _report(self, error: Exception) -> None:
        if isinstance(error, torch.AcceleratorError):
            # Every further call of the process to the device fails the same way.
            log.error("the device is lost", exc_info=error)
            self._on_engine_dead()
        else:
            log.error("a step failed", exc_info=error)

    def _reduce(self, output: SchedulerOutput, error: BaseException) -> None:
        """After running out of memory: smaller prefill chunks first, then fewer sequences.

        The noise of sampling depends on the position alone, so recomputed sequences have the same text.
        """
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        scheduler = self._scheduler
        if output.num_prefill_tokens > 1:
            scheduler.reduce_batched_tokens(output)
            log.warning(
                "out of memory: up to %d prompt tokens a step for now",
                scheduler.max_num_batched_tokens,
            )
        elif len(scheduler.running) > 1:
            scheduler.reduce_seqs()
            log.warning("out of memory: up to %d sequences for now", scheduler.max_num_seqs)
        else:
            self._execute_one_by_one(output, error)

    def _execute_one_by_one(self, output: SchedulerOutput, error: BaseException) -> None:
        """Repeat a failed step with each sequence alone; only those that fail again fail."""
        if in_flight := self._in_flight:  # it must be read before the steps that follow
            self._in_flight = None
            self._read(in_flight)
        steps = [SchedulerOutput([s], []) for s in output.decodes]
        steps += [SchedulerOutput([], [chunk]) for chunk in output.prefills]
        if len(steps) == 1:
            [sequence] = output.sequences
            if not sequence.finished:
                self._finish(sequence, EngineError.of(error))
            return
        for step in steps:
            [sequence] = step.sequences
            # It may have ended, or been preempted meanwhile.
            if sequence.row != UNALLOCATED and (launched := self._launch(step)):
                self._read(launched)
