"""The engine's thread: admits requests, schedules and executes steps, and hands tokens on."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Container

from transformers import PreTrainedTokenizerBase

from worker.engine.batching.output_processor import (
    OutputProcessor,
    SequenceUpdate,
    whole_delta_tokens,
)
from worker.engine.batching.runner_setup import RunnerSetup
from worker.engine.batching.scheduler import Scheduler
from worker.engine.batching.sequence import Sequence
from worker.engine.batching.step import StepExecutor
from worker.engine.batching.step_watch import StepWatch
from worker.engine.interface import EngineError, FinishReason
from worker.engine.speculative.drafter import Drafter
from worker.engine.threads import on_device

log = logging.getLogger(__name__)

#: Seconds between two flushes of new tokens to the output processor.
FLUSH_INTERVAL = 0.05


class EngineLoop:
    """Runs the engine on a thread of its own."""

    def __init__(
        self,
        setup: RunnerSetup,
        tokenizer: PreTrainedTokenizerBase,
        *,
        drafter: Drafter | None,
        stop_token_ids: Container[int],
        on_engine_dead: Callable[[], object],
        max_step_seconds: float | None = None,
    ) -> None:
        """Start the thread.

        Args:
            setup: the model runner.
            tokenizer: decodes the texts.
            drafter: drafts tokens; None for no speculative decoding.
            stop_token_ids: the tokens that end a text.
            on_engine_dead: called when the engine can serve no more.
            max_step_seconds: after which it counts as dead; None for no limit.
        """
        self._threads = setup.threads
        self._device = setup.device
        self.scheduler = Scheduler(
            setup.max_num_seqs, setup.max_num_batched_tokens, setup.runner.kv
        )
        self.executor = StepExecutor(
            setup.runner,
            self.scheduler,
            drafter=drafter,
            stop_token_ids=stop_token_ids,
            finish=self._finish,
            on_engine_dead=on_engine_dead,
        )
        self._submitted: queue.SimpleQueue[Sequence | None] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._output = OutputProcessor(tokenizer)
        self._flushed_at = time.monotonic()
        #: Seconds of all steps so far, scheduling included.
        self.step_seconds = 0.0
        #: Passes of the loop so far, and whether one is being executed, which does not wait for requests.
        self._num_passes = 0
        self._is_executing = False
        self._on_engine_dead = on_engine_dead
        self._watch: StepWatch | None = None
        if max_step_seconds is not None:
            self._watch = StepWatch(self._current_pass, on_engine_dead, max_step_seconds)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, sequence: Sequence) -> None:
        """Queue a sequence. Any thread may call it."""
        self._submitted.put(sequence)

    @property
    def num_waiting(self) -> int:
        """Sequences that wait to run. Any thread may call it."""
        return self._submitted.qsize() + self.scheduler.num_waiting

    def close(self) -> None:
        """Fail what is running and waiting, and stop."""
        self._closed.set()
        self._submitted.put(None)
        self._thread.join()
        if self._watch is not None:
            self._watch.close()

    def _current_pass(self) -> int | None:
        return self._num_passes if self._is_executing else None

    # --- the thread -------------------------------------------------------------------

    def _run(self) -> None:
        try:
            with on_device(self._device):
                self._execute_steps()
        except Exception:  # even what fails requests has failed
            log.exception("the engine's thread failed")
            self._on_engine_dead()
        self._output.close()
        self._threads.reset()

    def _execute_steps(self) -> None:
        """Execute steps until the engine is closed; then fail what is left."""
        scheduler, executor = self.scheduler, self.executor
        while not self._closed.is_set():
            is_busy = scheduler.running or scheduler.waiting or executor.has_in_flight_step
            self._admit(block=not is_busy)
            self._num_passes += 1
            self._is_executing = True
            try:
                began_at = time.monotonic()
                self._finish_cancelled_and_overdue(began_at)
                executor.execute(scheduler.schedule())
                self.step_seconds += time.monotonic() - began_at
                self._flush_outputs()
            except Exception as error:  # without this thread, every caller would wait for ever
                log.exception("the engine's loop failed")
                executor.drop_in_flight_step()
                # A preempted sequence may wait for a token of the step in flight.
                waiting = [s for s in scheduler.waiting if s.has_pending_token]
                for sequence in [*scheduler.running, *waiting]:
                    self._finish(sequence, EngineError.of(error))
            self._is_executing = False
        while not self._submitted.empty():
            self._admit(block=False)
        for sequence in [*scheduler.running, *scheduler.waiting]:
            self._finish(sequence, EngineError("the engine was closed"))

    def _admit(self, *, block: bool) -> None:
        """Hand submitted sequences to the scheduler; wait for one if there is nothing else to do."""
        while True:
            try:
                sequence = self._submitted.get(block=block)
            except queue.Empty:
                return
            block = False
            if sequence is not None:
                self.scheduler.add(sequence)

    def _finish_cancelled_and_overdue(self, now: float) -> None:
        for sequence in [*self.scheduler.running, *self.scheduler.waiting]:
            if sequence.generation.cancelled:
                self._finish(sequence, FinishReason.CANCELLED)
            elif now >= sequence.generation.request.deadline:
                self._finish(sequence, FinishReason.DEADLINE)

    def _flush_outputs(self) -> None:
        """Hand whole deltas of new tokens to the output processor, a few times a second."""
        now = time.monotonic()
        if now - self._flushed_at < FLUSH_INTERVAL:
            return
        self._flushed_at = now
        updates = []
        for sequence in self.scheduler.running:
            start = sequence.num_emitted_tokens
            num_read = len(sequence.output_token_ids) - sequence.has_pending_token
            end = whole_delta_tokens(num_read)
            if end > start:
                new_token_ids = sequence.output_token_ids[start:end]
                updates.append(SequenceUpdate(sequence, start, new_token_ids))
                sequence.num_emitted_tokens = end
        if updates:
            self._output.put(updates)

    def _finish(self, sequence: Sequence, outcome: FinishReason | EngineError) -> None:
        """Free a sequence's memory at once; the output processor ends its generation."""
        failed = isinstance(outcome, EngineError)
        if not failed:
            while sequence.has_pending_token:
                sequence.output_token_ids.pop()
        self.scheduler.remove(sequence, invalid_kv=failed)
        sequence.finished = True
        start = sequence.num_emitted_tokens
        rest = [] if failed else sequence.output_token_ids[start:]
        self._output.put([SequenceUpdate(sequence, start, rest, outcome)])
