"""The engine: every waiting request decodes together, whatever role it is in."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from collections.abc import Sequence as Several
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from jobs.pipeline import Role, Sampling
from worker.engine import sampling
from worker.engine.adapters import Form, MergedLinear, StackedLinear, form_for
from worker.engine.detokenizer import Detokenizer
from worker.engine.drafting import LONGEST, MOST, Drafter, least_likely
from worker.engine.encoder import Encoder
from worker.engine.endings import settle
from worker.engine.forward import LlamaForward, forward_of
from worker.engine.interface import (
    Completion,
    EngineError,
    FinishReason,
    Generation,
    Request,
)
from worker.engine.kv.cache import KVCache
from worker.engine.kv.rows import Rows
from worker.engine.recorded import Record, RecordedDecoding
from worker.engine.scheduler import Chunk, Plan, Scheduler
from worker.engine.sequence import NOWHERE, Sequence
from worker.engine.steps import lay_out
from worker.engine.threads import Sharing

log = logging.getLogger(__name__)

#: The most prompt tokens of one step: enough to fill the processor, few enough that a step with
#: them does not hold the decoding rows up for long.
CHUNK = 512
#: Tokens of a piece of text, but for the first piece, which is one token: decoding each token by
#: itself would take longer than computing it. Pieces depend on the count alone and not on the time,
#: so that a stage that runs again after a crash streams the same pieces.
PIECE = 4
#: Seconds between two looks for new pieces.
TELL_INTERVAL = 0.05


def rows_for(slots: int, adapters: int) -> int:
    """Return how many rows the cache should have.

    However few run at once, each role's last prompt stays where the next one finds it.
    """
    return max(slots, adapters)


class BatchingEngine:
    """Decodes up to ``slots`` requests in every step, on a thread of its own."""

    name = "batching"

    def __init__(
        self,
        models: dict[str, PeftModel],
        tokenizer: PreTrainedTokenizerBase,
        *,
        context: int,
        slots: int,
        rows: int | None = None,
        chunk: int = CHUNK,
        form: Form | None = None,
        drafts: bool = True,
        record: Record | None = None,
        on_device_lost: Callable[[], object] = lambda: None,
    ) -> None:
        """Take the models over, allocate the cache, and start.

        Args:
            models: by the roles' names, around bases whose tensors are the same memory; none of the
                adapters is among `worker.lora.adapter.refusals`. It is emptied, and the models cannot
                be used for anything else any more.
            tokenizer: the base's.
            context: tokens of prompt and output together, at most the model's own limit.
            slots: requests decoded at the same time.
            rows: of the cache, at least as many as slots; `rows_for` these by default.
            chunk: the most prompt tokens of one step.
            form: how the adapters are added; as it suits model and device by default.
            drafts: whether tokens are guessed ahead; the texts are the same.
            record: how steps that only decode are recorded, to be replayed
                (`worker.engine.recorded.recorder_for`); each is laid out anew if None.
            on_device_lost: called after an error that a device has for its process for ever, before
                the requests fail.
        """
        self.context = context
        self.slots = slots
        self._on_device_lost = on_device_lost
        #: Steps so far, and the tokens that they computed, without drafts that were wrong.
        self.steps = 0
        self.computed = 0
        self._names = list(models)
        model = next(iter(models.values()))
        self._ends = settle(model, tokenizer)
        device, dtype = model.device, model.dtype
        config: Any = model.config
        self._vocabulary = int(config.vocab_size)
        form = form or form_for(models)
        self._sharing = Sharing(small=form is MergedLinear)
        del model
        self._compute = forward_of(models, form)
        rows = rows or rows_for(slots, len(self._names))
        self.cache = KVCache(config, rows=rows, context=context, dtype=dtype, device=device)
        self._tokenizer = tokenizer
        self._encode = Encoder(tokenizer, context)
        self._rows = Rows(rows, context=context, adapters=len(self._names))
        self._scheduler = Scheduler(slots, chunk, self._rows)
        self._drafter = Drafter(len(self._names)) if drafts else None
        self._recorded: RecordedDecoding | None = None
        if record and form is StackedLinear and isinstance(self._compute, LlamaForward):
            self._recorded = RecordedDecoding(self._compute, self.cache, record)
        self._arriving: queue.SimpleQueue[Sequence | None] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._told = time.monotonic()
        self._thread = threading.Thread(target=self._serve, name="engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> Generation:
        ids, limit = self._encode(request)
        generation = Generation(request)
        adapter = self._names.index(request.role.value)
        detokenizer = Detokenizer(self._tokenizer)
        self._arriving.put(Sequence(generation, ids, limit, adapter, detokenizer))
        return generation

    def close(self) -> None:
        self._closed.set()
        self._arriving.put(None)
        self._thread.join()

    def score(self, ids: list[int]) -> dict[str, Tensor]:
        """Score tokens for all roles in the same steps, before there are any requests.

        Args:
            ids: all but the last are computed as a prompt, then the last one.

        Returns:
            by the roles' names: what may follow the last two, (2, vocabulary), float32 on the CPU.
        """
        found: dict[str, Tensor] = {}
        sequences: list[Sequence] = []
        for adapter, name in enumerate(self._names):
            generation = Generation(Request(Role(name), "", Sampling()))
            detokenizer = Detokenizer(self._tokenizer)
            row = len(sequences)
            sequences.append(Sequence(generation, ids[:-1], 1, adapter, detokenizer, row=row))
            if len(sequences) < self.cache.rows and adapter + 1 < len(self._names):
                continue
            scores = []
            for decoding in (False, True):
                chunks = [] if decoding else [Chunk(s, 0, len(s)) for s in sequences]
                # Not as `_forward` does: a device would record it, and not on the engine's thread.
                plan = Plan(sequences if decoding else [], chunks)
                step = lay_out(plan, self.cache, lambda _: 0)
                scores.append(self._compute(step.ids, step.adapters, step.layout, step.keep))
                for sequence in sequences:
                    sequence.cached, sequence.tokens = len(sequence.prompt), [ids[-1]]
            for sequence, *rows in zip(sequences, *scores, strict=True):
                found[self._names[sequence.adapter]] = torch.stack(rows).float().cpu()
                self.cache.clear(sequence.row)
            sequences = []
        return found

    # --- the engine's thread ----------------------------------------------------------

    def _serve(self) -> None:
        scheduler = self._scheduler
        while not self._closed.is_set():
            self._admit(block=not (scheduler.running or scheduler.waiting))
            try:
                self._stop_unwanted()
                if plan := scheduler.plan():
                    self._prepare()
                    if self._drafter:
                        self._guess(plan, self._drafter)
                    self._step(plan)
                self._tell()
            except Exception as error:  # without this thread everybody would wait for ever
                log.exception("the engine stumbled")
                for sequence in list(scheduler.running):
                    self._fail(sequence, EngineError(f"{type(error).__name__}: {error}"))
        while not self._arriving.empty():
            self._admit(block=False)
        for sequence in [*scheduler.running, *scheduler.waiting]:
            self._fail(sequence, EngineError("the engine was closed"))
        self._sharing.end()

    def _admit(self, *, block: bool) -> None:
        """Take what was submitted; with nothing else to do, wait for it."""
        while True:
            try:
                sequence = self._arriving.get(block=block)
            except queue.Empty:
                return
            block = False
            if sequence is not None:
                self._scheduler.add(sequence)

    def _stop_unwanted(self) -> None:
        """End what was cancelled or took too long, wherever it is."""
        now = time.monotonic()
        for sequence in [*self._scheduler.running, *self._scheduler.waiting]:
            if sequence.generation.cancelled:
                self._finish(sequence, FinishReason.CANCELLED)
            elif now >= sequence.generation.request.deadline:
                self._finish(sequence, FinishReason.DEADLINE)

    def _prepare(self) -> None:
        """Bring the cache into the state that the plan counts on, however the step goes."""
        for row in self._rows.take_damaged():  # a NaN under a mask is still a NaN
            self.cache.clear(row)
        for place in self._rows.take_copies():
            self.cache.copy(place)

    def _guess(self, plan: Plan, drafter: Drafter) -> None:
        """Draft what decoding sequences go on with, and learn from the prompts that are read."""
        count = len(plan.decoding)
        least = least_likely(count, self.cache.device.type)
        most = self._recorded.widest(count) - 1 if count and self._recorded else MOST
        for sequence in plan.decoding:
            if not sequence.drafts:
                continue
            left = sequence.limit - len(sequence.tokens) - 1  # one is drawn after the draft
            sequence.draft = drafter.propose(
                sequence.adapter, sequence.last(LONGEST), most=min(most, left), least=least
            )
        for chunk in plan.chunks:
            sequence, length = chunk.sequence, chunk.end - chunk.start
            read = sequence.slice(max(chunk.start - LONGEST, 0), chunk.end)
            drafter.observe(sequence.adapter, read, length, written=False)

    def _step(self, plan: Plan) -> None:
        """Compute one step; whatever goes wrong, only the requests that it hit fail."""
        try:
            self._run(plan)
        except (torch.OutOfMemoryError, MemoryError) as error:
            self._make_room(plan, error)
        except torch.AcceleratorError as error:
            # Whatever the process asks of the device from now on fails the same way.
            log.exception("the device is lost")
            self._on_device_lost()
            self._fail_together(plan, error)
        except Exception as error:
            log.exception("a step failed")
            self._fail_together(plan, error)

    def _run(self, plan: Plan) -> None:
        drawing, logits = self._forward(plan)
        tokens, sound = self._draw(drawing, logits) if drawing else ([], [])
        # Only now: a step that failed is repeated, and must begin where it began.
        if self._scheduler.computed(plan):
            log.info(
                "memory sufficed: up to %d slots and %d prompt tokens a step again",
                self._scheduler.slots,
                self._scheduler.chunk,
            )
        self.steps += 1
        self.computed += plan.prompt_tokens + len(plan.decoding)
        self._accept(drawing, tokens, sound)

    def _forward(self, plan: Plan) -> tuple[list[Sequence], Tensor]:
        """Compute the plan's tokens.

        Returns:
            the sequences for which a token can be drawn now, and their scores: a row for the next
            token, and one more after each of the draft's: (rows, vocabulary).
        """
        drawing, logits = plan.decoding, None
        if self._recorded and not plan.chunks:
            logits = self._recorded(plan.decoding)
        if logits is None:
            step = lay_out(plan, self.cache, self._rows.common)
            drawing = step.drawing
            self._sharing.share(len(step.adapters))
            logits = self._compute(step.ids, step.adapters, step.layout, step.keep)
        return drawing, logits

    def _draw(self, drawing: Several[Sequence], logits: Tensor) -> tuple[list[int], list[bool]]:
        """Draw a token from each row of scores; say of each whether it was numbers."""
        rows = sampling.Rows.of(
            [s.generation.request.sampling for s in drawing for _ in range(1 + len(s.draft))],
            [len(s.tokens) + i for s in drawing for i in range(1 + len(s.draft))],
            self._vocabulary,
            logits.device,
        )
        tokens, sound = sampling.sample(logits, rows)
        return tokens.tolist(), sound.tolist()

    def _accept(
        self, sequences: Several[Sequence], tokens: Several[int], sound: Several[bool]
    ) -> None:
        """Append the tokens that were drawn for each sequence, and end those that they end.

        Args:
            sequences: each with one token more than its draft has.
            tokens: of one sequence after the other; those after a wrong draft count for nothing.
            sound: whether the scores that each was drawn from were numbers.
        """
        start = 0
        for sequence in sequences:
            draft, sequence.draft = sequence.draft, []
            end = start + 1 + len(draft)
            drawn = self._take(sequence, draft, tokens[start:end], sound[start:end])
            start = end
            self.computed += max(drawn - 1, 0)
            if self._drafter:
                new = sequence.last(LONGEST + drawn)
                self._drafter.observe(sequence.adapter, new, drawn, written=True)

    def _take(
        self,
        sequence: Sequence,
        draft: Several[int],
        tokens: Several[int],
        sound: Several[bool],
    ) -> int:
        """Append drawn tokens for as long as the draft was right; return how many."""
        for i, (token, ok) in enumerate(zip(tokens, sound, strict=True)):
            if not ok and draft:
                self._distrust(sequence)
                return i
            if not ok:
                self._fail(sequence, EngineError("the model's scores are not numbers (NaN)"))
                return i
            if sequence.first_token_at is None:
                sequence.first_token_at = time.monotonic()
            sequence.tokens.append(token)
            if token in self._ends:
                self._finish(sequence, FinishReason.STOP)
                return i + 1
            if len(sequence.tokens) >= sequence.limit:
                self._finish(sequence, FinishReason.LENGTH)
                return i + 1
            if i == len(draft) or token != draft[i]:
                return i + 1
            sequence.cached += 1  # the step has computed the next token already
        return len(tokens)

    def _distrust(self, sequence: Sequence) -> None:
        """Let a sequence go on without drafts: what was wrong may have been one of them."""
        sequence.drafts = False
        sequence.cached -= 1  # the newest token is computed again, by itself
        self.cache.clear(sequence.row, sequence.cached)

    def _make_room(self, plan: Plan, error: BaseException) -> None:
        """After running out of memory: smaller chunks first, then fewer slots; later more again.

        The noise depends on position alone, so what is computed anew gives the same text.
        """
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        scheduler = self._scheduler
        if plan.prompt_tokens > 1:
            scheduler.shorten(plan)
            log.warning("out of memory: %d prompt tokens a step for now", scheduler.chunk)
        elif len(scheduler.running) > 1:
            scheduler.shrink()
            log.warning("out of memory: %d slots for now", scheduler.slots)
        else:
            self._fail_together(plan, error)

    def _fail_together(self, plan: Plan, error: BaseException) -> None:
        """Find out whose fault a failed step was: each sequence gets a step of its own."""
        alone = [Plan([s], []) for s in plan.decoding] + [Plan([], [c]) for c in plan.chunks]
        if len(alone) == 1:
            [sequence] = plan.sequences
            self._fail(sequence, EngineError(f"{type(error).__name__}: {error}"))
            return
        for plan_ in alone:
            [sequence] = plan_.sequences
            if sequence.row != NOWHERE:  # it may have made room for another meanwhile, and waits
                self._step(plan_)

    # --- text and ends ----------------------------------------------------------------

    def _tell(self) -> None:
        """Hand the new text on, a few times a second."""
        now = time.monotonic()
        if now - self._told < TELL_INTERVAL:
            return
        self._told = now
        for sequence in self._scheduler.running:
            self._tell_one(sequence)

    def _tell_one(self, sequence: Sequence) -> None:
        while True:
            end = sequence.told + (PIECE if sequence.told else 1)
            if end > len(sequence.tokens):
                return
            if delta := sequence.detokenizer.extend(sequence.tokens[sequence.told : end]):
                sequence.generation.emit(delta)
            sequence.told = end

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        self._tell_one(sequence)
        detokenizer = sequence.detokenizer
        last = [detokenizer.extend(sequence.tokens[sequence.told :])]
        text, rest = detokenizer.finish()
        if reason is not FinishReason.CANCELLED:
            # What was broken off may run again, and then this piece would be longer.
            for delta in filter(None, (*last, rest)):
                sequence.generation.emit(delta)
        self._scheduler.remove(sequence)
        sequence.generation.end(
            Completion(
                text=text,
                deltas=detokenizer.deltas,
                prompt_tokens=len(sequence.prompt),
                output_tokens=len(sequence.tokens),
                finish_reason=reason,
                max_output_tokens=sequence.limit,
                first_token_at=sequence.first_token_at,
            )
        )

    def _fail(self, sequence: Sequence, error: EngineError) -> None:
        self._scheduler.remove(sequence, damaged=True)
        sequence.generation.end(error)
