"""The engine: every waiting request decodes together, whatever role it is in."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Container
from collections.abc import Sequence as Several

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from jobs.pipeline import Role, Sampling
from worker.engine.batching import build
from worker.engine.batching.model_runner import Drawn, Launched
from worker.engine.batching.output_processor import News, OutputProcessor, whole_pieces
from worker.engine.batching.scheduler import Chunk, Plan, Scheduler
from worker.engine.batching.sequence import NOWHERE, PENDING, Sequence
from worker.engine.interface import EngineError, FinishReason, Generation, Request
from worker.engine.lora.layers import Form
from worker.engine.speculative.drafter import LONGEST, MOST, Drafter, least_likely
from worker.engine.threads import Sharing
from worker.engine.tokenization.detokenizer import Detokenizer
from worker.engine.tokenization.encoder import Encoder
from worker.engine.tokenization.stop_tokens import settle

log = logging.getLogger(__name__)

#: Seconds between two looks for new pieces.
TELL_INTERVAL = 0.05


class BatchingEngine:
    """Decodes up to ``slots`` requests in every step, on a thread of its own."""

    name = "batching"

    def __init__(
        self,
        models: dict[str, PeftModel],
        tokenizer: PreTrainedTokenizerBase,
        *,
        context: int,
        slots: int | None = None,
        chunk: int | None = None,
        form: Form | None = None,
        drafts: bool = True,
        paged: bool | None = None,
        blocks: int | None = None,
        record: build.Recorder | None = build.recorder_for,
        keys: Several[str] | None = None,
        on_device_lost: Callable[[], object] = lambda: None,
    ) -> None:
        """Take the models over, allocate the cache, and start.

        Args:
            models: by the roles' names, around bases whose tensors are the same memory; none of the
                adapters is among `worker.lora.adapter.refusals`. It is emptied, and the models cannot
                be used for anything else any more.
            tokenizer: the base's.
            context: tokens of prompt and output together, at most the model's own limit.
            slots: requests decoded at the same time; as many as suit the device and its memory by
                default.
            chunk: the most prompt tokens of one step; as suits the device by default.
            form: how the adapters are added where keys and values are in rows; as it suits model and
                device by default.
            drafts: whether tokens are guessed ahead where that pays; the texts are the same.
            paged: whether keys and values are in blocks, and a step is launched before the one before
                it is read; on CUDA by default.
            blocks: of the paged cache; as many as fit the device's memory by default.
            record: says for a device how steps are recorded, to be replayed; each is laid out anew if
                None.
            keys: what tells each adapter's weights from others', as a digest or their place on the disk
                does, in the models' order: equal ones share the beginnings of prompts.
            on_device_lost: called after an error that a device has for its process for ever, before
                the requests fail.

        Raises:
            worker.engine.interface.EngineError: an adapter is more than factors beside linear layers.
            worker.engine.cuda.requirements.DeviceError: the device has no room for one context, or what
                its kernels need is missing.
        """
        names = list(models)
        ends = settle(next(iter(models.values())), tokenizer)
        built = build.build(
            models,
            context=context,
            slots=slots,
            chunk=chunk,
            form=form,
            paged=paged,
            blocks=blocks,
            record=record,
            keys=keys or names,
        )
        self._begin(
            built,
            tokenizer,
            names=names,
            ends=ends,
            context=context,
            drafts=drafts,
            on_device_lost=on_device_lost,
        )

    @classmethod
    def around(
        cls,
        built: build.Built,
        tokenizer: PreTrainedTokenizerBase,
        *,
        names: Several[str],
        ends: Container[int],
        context: int,
    ) -> BatchingEngine:
        """Start an engine around what computes its steps already.

        Args:
            built: what does, and the numbers that suit it.
            tokenizer: the texts'.
            names: of the roles, in the order of their adapters.
            ends: the tokens that end a text.
            context: tokens of prompt and output together.
        """
        engine = cls.__new__(cls)
        engine._begin(
            built,
            tokenizer,
            names=names,
            ends=ends,
            context=context,
            drafts=True,
            on_device_lost=lambda: None,
        )
        return engine

    def _begin(
        self,
        built: build.Built,
        tokenizer: PreTrainedTokenizerBase,
        *,
        names: Several[str],
        ends: Container[int],
        context: int,
        drafts: bool,
        on_device_lost: Callable[[], object],
    ) -> None:
        self.context = context
        self._on_device_lost = on_device_lost
        #: Steps so far, and the tokens that they computed, without drafts that were wrong.
        self.steps = 0
        self.computed = 0
        self._names = list(names)
        self._ends = ends
        self._tokenizer = tokenizer
        self._encode = Encoder(tokenizer, context)
        self._runner = built.runner
        self.slots = built.slots
        self._sharing: Sharing = built.sharing
        self._scheduler = Scheduler(built.slots, built.chunk, built.runner.memory)
        self._drafter: Drafter | None = None
        if drafts and not built.runner.ahead:
            self._drafter = Drafter(len(self._names))
        self._device_type = built.device.type
        #: The step that is under way, if one may be.
        self._launched: Launched | None = None
        self._arriving: queue.SimpleQueue[Sequence | None] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._output = OutputProcessor(tokenizer)
        self._told = time.monotonic()
        self._thread = threading.Thread(target=self._serve, name="engine", daemon=True)
        self._thread.start()

    @property
    def tokens_that_fit(self) -> int:
        """Tokens that keys and values have room for, of all requests together."""
        return self._runner.tokens_that_fit

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
        memory = self._runner.memory
        found: dict[str, Tensor] = {}
        waiting = []
        for adapter, name in enumerate(self._names):
            generation = Generation(Request(Role(name), "", Sampling()))
            detokenizer = Detokenizer(self._tokenizer)
            waiting.append(Sequence(generation, ids[:-1], 2, adapter, detokenizer))
        while waiting:
            sequences = []
            while waiting and memory.allocate(waiting[0]):
                sequences.append(waiting.pop(0))
            prompts = self._runner.score(Plan([], [Chunk(s, s.cached, len(s)) for s in sequences]))
            for sequence in sequences:
                sequence.cached, sequence.tokens = len(sequence.prompt), [ids[-1]]
                memory.extend(sequence, len(sequence))
            decoded = self._runner.score(Plan(sequences, []))
            for sequence, *rows in zip(sequences, prompts, decoded, strict=True):
                found[self._names[sequence.adapter]] = torch.stack(rows).float().cpu()
                memory.release(sequence, damaged=True)
        return found

    # --- the engine's thread ----------------------------------------------------------

    def _serve(self) -> None:
        scheduler = self._scheduler
        while not self._closed.is_set():
            self._admit(block=not (scheduler.running or scheduler.waiting or self._launched))
            try:
                self._stop_unwanted()
                self._step(scheduler.plan())
                self._tell()
            except Exception as error:  # without this thread everybody would wait for ever
                log.exception("the engine stumbled")
                self._launched = None
                # Who has made room may wait for a token of the step that was under way.
                waiting = [s for s in scheduler.waiting if s.pending]
                for sequence in [*scheduler.running, *waiting]:
                    self._fail(sequence, EngineError(f"{type(error).__name__}: {error}"))
        while not self._arriving.empty():
            self._admit(block=False)
        for sequence in [*scheduler.running, *scheduler.waiting]:
            self._fail(sequence, EngineError("the engine was closed"))
        self._output.close()
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

    def _step(self, plan: Plan) -> None:
        """Launch a step, and read it or, where that may be, the one before."""
        for sequence in plan.evicted:
            log.info("memory is short: a request of %d tokens makes room", len(sequence))
        launched = self._launch(plan) if plan else None
        if self._runner.ahead:
            launched, self._launched = self._launched, launched
        if launched:
            self._read(launched)

    def _launch(self, plan: Plan) -> Launched | None:
        """Launch a step; whatever goes wrong, only the requests that it hit fail."""
        if self._drafter:
            self._guess(plan, self._drafter)
        try:
            launched = self._runner.launch(plan)
        except Exception as error:  # noqa: BLE001 (it is told, and those that it hit fail)
            self._settle(plan, error)
            return None
        # Only now: a step that failed is repeated, and must begin where it began.
        if self._scheduler.computed(plan):
            log.info(
                "memory sufficed: up to %d slots and %d prompt tokens a step again",
                self._scheduler.slots,
                self._scheduler.chunk,
            )
        self.steps += 1
        self.computed += plan.prompt_tokens + len(plan.decoding)
        if self._runner.ahead:
            for sequence in launched.drawing:
                sequence.tokens.append(PENDING)
        return launched

    def _read(self, launched: Launched) -> None:
        try:
            drawn = launched.wait()
        except Exception as error:  # noqa: BLE001 (as above)
            # It cannot be told whose fault it is: the step after it has begun where this one ended.
            self._launched = None
            self._say(error)
            # Who has made room waits, and for a token that will never be read.
            everybody = [*self._scheduler.running, *self._scheduler.waiting]
            for sequence in [s for s in everybody if s.pending]:
                self._fail(sequence, EngineError(f"{type(error).__name__}: {error}"))
            return
        self._accept(drawn)

    def _settle(self, plan: Plan, error: Exception) -> None:
        """Deal with a step that failed."""
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            self._make_room(plan, error)
            return
        self._say(error)
        self._fail_together(plan, error)

    def _say(self, error: Exception) -> None:
        if isinstance(error, torch.AcceleratorError):
            # Whatever the process asks of the device from now on fails the same way.
            log.error("the device is lost", exc_info=error)
            self._on_device_lost()
        else:
            log.error("a step failed", exc_info=error)

    def _guess(self, plan: Plan, drafter: Drafter) -> None:
        """Draft what decoding sequences go on with, and learn from the prompts that are read."""
        least = least_likely(len(plan.decoding), self._device_type)
        for sequence in plan.decoding:
            if not sequence.drafts:
                continue
            left = sequence.limit - len(sequence.tokens) - 1  # one is drawn after the draft
            sequence.draft = drafter.propose(
                sequence.adapter, sequence.last(LONGEST), most=min(MOST, left), least=least
            )
        for chunk in plan.chunks:
            sequence, length = chunk.sequence, chunk.end - chunk.start
            read = sequence.slice(max(chunk.start - LONGEST, 0), chunk.end)
            drafter.observe(sequence.adapter, read, length, written=False)

    def _accept(self, drawn: Drawn) -> None:
        """Append the tokens that were drawn for each sequence, and end those that they end."""
        start = 0
        for sequence in drawn.sequences:
            draft, sequence.draft = sequence.draft, []
            end = start + 1 + len(draft)
            tokens, sound = drawn.tokens[start:end], drawn.sound[start:end]
            start = end
            if sequence.ended:  # while the step was under way
                continue
            if self._runner.ahead:
                self._fill(sequence, tokens[0], sound[0])
                continue
            count = self._take(sequence, draft, tokens, sound)
            self.computed += max(count - 1, 0)
            if self._drafter:
                new = sequence.last(LONGEST + count)
                self._drafter.observe(sequence.adapter, new, count, written=True)

    def _fill(self, sequence: Sequence, token: int, sound: bool) -> None:
        """Put a token that was drawn where it is pending; one more may be by now."""
        if not sound:
            self._fail(sequence, EngineError("the model's scores are not numbers (NaN)"))
            return
        at = sequence.tokens.index(PENDING, max(len(sequence.tokens) - 2, 0))
        sequence.tokens[at] = token
        if sequence.first_token_at is None:
            sequence.first_token_at = time.monotonic()
        if token in self._ends:
            del sequence.tokens[at + 1 :]
            self._finish(sequence, FinishReason.STOP)
        elif at + 1 == sequence.limit:
            self._finish(sequence, FinishReason.LENGTH)

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
        self._runner.forget(sequence)

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
        if launched := self._launched:  # what comes must not be read before it
            self._launched = None
            self._read(launched)
        alone = [Plan([s], []) for s in plan.decoding] + [Plan([], [c]) for c in plan.chunks]
        if len(alone) == 1:
            [sequence] = plan.sequences
            if not sequence.ended:
                self._fail(sequence, EngineError(f"{type(error).__name__}: {error}"))
            return
        for plan_ in alone:
            [sequence] = plan_.sequences
            # It may have ended, or made room for another meanwhile, and waits.
            if sequence.row != NOWHERE and (launched := self._launch(plan_)):
                self._read(launched)

    # --- text and ends ----------------------------------------------------------------

    def _tell(self) -> None:
        """Hand the new tokens on, a few times a second."""
        now = time.monotonic()
        if now - self._told < TELL_INTERVAL:
            return
        self._told = now
        news = []
        for sequence in self._scheduler.running:
            start, end = sequence.told, whole_pieces(len(sequence.tokens) - sequence.pending)
            if end > start:
                news.append(News(sequence, start, sequence.tokens[start:end]))
                sequence.told = end
        if news:
            self._output.put(news)

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        while sequence.pending:
            sequence.tokens.pop()
        self._end(sequence, reason)

    def _fail(self, sequence: Sequence, error: EngineError) -> None:
        self._end(sequence, error)

    def _end(self, sequence: Sequence, end: FinishReason | EngineError) -> None:
        """Let go of a sequence at once; its text and its end are told meanwhile."""
        failed = isinstance(end, EngineError)
        self._scheduler.remove(sequence, damaged=failed)
        sequence.ended = True
        tokens = [] if failed else sequence.tokens[sequence.told :]
        self._output.put([News(sequence, sequence.told, tokens, end)])
