"""Speed and memory of the engine with a Mistral-7B and three adapters, all roles mixed."""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from jobs.pipeline import Role, Sampling
from tests.gpu import decoding, engines, limit
from tests.gpu.four_bit import quantize_all
from tests.gpu.model import Shape, Weights, build, tokenizer_for, words
from tests.gpu.report import Report, free
from worker.bench.engine import run_jobs
from worker.bench.peak import Peak
from worker.engine import probe
from worker.engine.batching.engine import BatchingEngine
from worker.engine.interface import Request
from worker.engine.kv.paged_cache import BLOCK_SIZE
from worker.engine.reference import ReferenceEngine

GB = 1e9


@dataclass(frozen=True)
class Amount:
    """Sizes of the measurements."""

    shape: Shape
    #: Numbers of sequences that are decoded together; the last is max_num_seqs. Fewer where memory is short.
    sequences: tuple[int, ...]
    #: Maximum number with and without adapters.
    compared: int
    #: Tokens of a prompt, and number of measured steps.
    prompt: int
    steps: int
    #: Numbers of prompts, and tokens of each.
    prompts: tuple[tuple[int, int], ...]
    #: Jobs that run at the same time; there are twice as many jobs if there is time.
    jobs: tuple[int, ...]
    #: Tokens of a question, and new ones of a stage.
    question: int
    new: int
    #: Tokens of the KV cache for each sequence, for 4 bits.
    row: int
    #: New tokens of the card's program.
    card: int
    #: Tokens of a long sequence, and bytes of a smaller card's memory.
    long: int
    small_card: float
    #: Rows of the matrices, and bytes, that measure the peak.
    size: int
    read: int


FULL = Amount(
    shape=Shape(),
    sequences=(1, 16, 64, 128, 256),
    compared=64,
    prompt=960,
    steps=128,
    prompts=((8, 1024), (32, 256), (64, 64)),
    jobs=(64, 256),
    question=64,
    new=256,
    row=1408,
    card=32,
    long=2000,
    small_card=24 * 2**30,
    size=8192,
    read=2**32,
)
TINY = Amount(
    shape=Shape(vocabulary=500, hidden=128, layers=2, head=32, rank=8, positions=1024),
    sequences=(1, 4),
    compared=4,
    prompt=24,
    steps=40,
    prompts=((2, 32), (4, 8)),
    jobs=(2, 4),
    question=8,
    new=8,
    row=256,
    card=4,
    long=100,
    small_card=24 * 2**30,
    size=256,
    read=2**24,
)


class Speed:
    """Measurements that share a model and an engine, in the order of the methods."""

    def __init__(self, amount: Amount, dtype: torch.dtype, device: torch.device) -> None:
        self._amount = amount
        self._dtype = dtype
        self._device = device
        self._tokenizer = tokenizer_for(amount.shape)
        self._models: Any = None
        self._weights = Weights(0, 0)
        self._engine: BatchingEngine | None = None
        #: Why there is no engine. It would fail again, and take as long.
        self._failure: str | None = None
        self._peak: Peak | None = None
        self._decoded: dict[int, float] = {}

    def limit(self, report: Report) -> None:
        """The device's peak, and the bytes that a step reads."""
        peak = self._measure_peak()
        start = time.monotonic()
        self._build()
        report.say(
            measure="limit",
            device=_name(self._device),
            dtype=str(self._dtype).removeprefix("torch."),
            read_tb_s=peak.bandwidth / 1e12,
            product_tflop_s=peak.flops / 1e12,
            base_gb=self._weights.base / GB,
            adapters_gb=self._weights.adapters / GB,
            build_seconds=time.monotonic() - start,
        )

    def card(self, report: Report) -> None:
        """The model card's program, one sequence."""
        rng = random.Random(9)
        requests = [
            Request(Role.ACTOR, words(rng, self._amount.question, self._amount.shape), sampling)
            for sampling in (
                Sampling(max_output_tokens=2),
                Sampling(max_output_tokens=self._amount.card),
            )
        ]
        self._build()
        reference = ReferenceEngine(self._models, self._tokenizer, max_model_len=self._context)
        with closing(reference):
            for request in requests:  # the first one warms up
                start = time.monotonic()
                completion = reference.submit(request).result(decoding.PATIENCE)
        seconds = time.monotonic() - (completion.first_token_at or start)
        tokens = completion.output_tokens - 1
        report.say(measure="card", tokens=tokens, seconds=seconds, tokens_a_second=tokens / seconds)

    def start(self, report: Report) -> None:
        """Seconds until the engine takes requests, the capture of CUDA graphs included."""
        if self._engine:
            self._close()
        self._build()
        start = time.monotonic()
        engine = self._ready()
        seconds = time.monotonic() - start
        # Without them the engine works, and is slower: why is in the log.
        graphs = engine.config.cuda_graphs
        report.failed |= self._device.type == "cuda" and not graphs
        report.say(
            measure="start",
            seconds=seconds,
            slots=engine.max_num_seqs,
            context=engine.max_model_len,
            cuda_graphs=graphs,
            **self._memory(engine),
        )

    def decode(self, report: Report) -> None:
        """Tokens a second of decoding alone, and their share of the limit."""
        engine = self._ready()
        fitting = self._num_fitting(engine)
        for count in sorted({min(count, fitting) for count in self._amount.sequences}):
            if report.left < 10 + count / 12:
                report.say(measure="decode", sequences=count, skipped=f"{report.left:.0f} s left")
                continue
            result = self._decode(engine, count)
            self._decoded[count] = result["tokens_a_second"]
            report.say(measure="decode", adapters=len(Role), **result)

    def jobs(self, report: Report) -> None:
        """Whole jobs, each on a thread that waits for its stages."""
        amount, engine = self._amount, self._ready()
        sampling = Sampling(max_output_tokens=amount.new)
        rng = random.Random(3)
        warm = [words(rng, amount.question, amount.shape)]
        run_jobs(engine, warm, at_once=1, sampling=Sampling(max_output_tokens=8))
        for at_once in amount.jobs:
            once = 10 + at_once / 8  # seconds, about
            if report.left < once:
                report.say(measure="jobs", at_once=at_once, skipped=f"{report.left:.0f} s left")
                continue
            count = at_once * (2 if report.left > 2 * once + 40 else 1)
            questions = [words(rng, amount.question, amount.shape) for _ in range(count)]
            cpu = time.process_time()
            with _busy(self._device) as busy:
                result = run_jobs(engine, questions, at_once=at_once, sampling=sampling)
            cpu = time.process_time() - cpu
            report.say(
                measure="jobs",
                at_once=at_once,
                jobs=count,
                seconds=result.seconds,
                tokens_a_second=result.tokens_a_second,
                prompt_tokens_a_second=result.prompt_tokens / result.seconds,
                jobs_an_hour=result.jobs_an_hour,
                first_token=result.first_token,
                steps=result.steps,
                cpu_share=cpu / result.seconds,
                gpu_share=sum(busy) / len(busy) if busy else None,
            )

    def prompts(self, report: Report) -> None:
        """Tokens of prompts a second, with one new token each; the best of three.

        The limit is that of the products with the weights, without attention.
        """
        amount, engine = self._amount, self._ready()
        rng = random.Random(4)
        read = self._weights.base + self._weights.adapters / len(Role)
        for count, length in amount.prompts:
            best = 0.0
            for _ in range(3):
                texts = [words(rng, length - 1, amount.shape) for _ in range(count)]
                start = time.monotonic()
                tokens, _new = decoding.complete(engine, decoding.make_requests(texts, 1))
                best = max(best, tokens / (time.monotonic() - start))
            operations = 2 * read / self._dtype.itemsize * best
            report.say(
                measure="prompts",
                prompts=count,
                length=length,
                tokens_a_second=best,
                share_of_limit=operations / self._measure_peak().flops,
            )

    def bare(self, report: Report) -> None:
        """Decode without adapters, as many sequences as with them."""
        self._close()
        decoded = [count for count in self._decoded if count <= self._amount.compared]
        count = max(decoded, default=self._amount.compared)
        self._build(bare=True)
        result = self._decode(self._ready(max_num_seqs=count), count)
        self._close()
        with_adapters = self._decoded.get(count)
        ratio = with_adapters / result["tokens_a_second"] if with_adapters else None
        report.say(measure="decode", adapters=0, ratio=ratio, **result)

    def four_bit(self, report: Report) -> None:
        """Decode with a base of 4 bits, after its logits are compared with PEFT's on the same base."""
        self._close()
        amount = self._amount
        self._build()
        models = self._models
        ids = probe.probe_token_ids(next(iter(models.values())).config)
        plain, four_bit = {}, {}
        for name, model in models.items():
            plain[name] = probe.peft_logits(model, name, ids)
        quantize_all(models.values())
        free()
        self._weights = Weights.of(models)
        for name, model in models.items():
            four_bit[name] = probe.peft_logits(model, name, ids)
        del model, models
        tokens = amount.compared * amount.row
        engine = self._ready(max_num_seqs=amount.compared, tokens=tokens)
        usage = self._memory(engine)
        if usage["allocated_gb"] is not None:
            cache = engine.kv_cache_tokens * amount.shape.cache_bytes(self._dtype)
            usage["without_cache_gb"] = usage["allocated_gb"] - cache / GB
        scores = engine.compute_logits(ids)
        error = max(probe.relative_difference(scores[name], four_bit[name]) for name in scores)
        change = max(probe.relative_difference(scores[name], plain[name]) for name in scores)
        report.failed |= not error <= probe.TOLERANCE[self._dtype]
        for count in sorted({1, amount.compared}):
            result = self._decode(engine, count)
            ratio = result["tokens_a_second"] / self._decoded.get(count, math.nan)
            report.say(
                measure="four_bit",
                adapters=len(Role),
                times=None if math.isnan(ratio) else ratio,
                weights_gb=(self._weights.base + self._weights.adapters) / GB,
                change_of_scores=change,
                error_of_scores=error,
                **result,
                **usage,
            )
        self._close()

    def memory(self, report: Report) -> None:
        """How many long sequences fit a smaller card, and that they are served there."""
        self._close()
        amount, shape = self._amount, self._amount.shape
        cuda = self._device.type == "cuda"
        total = torch.cuda.get_device_properties(self._device).total_memory if cuda else 0
        if cuda and amount.small_card < total:
            torch.cuda.set_per_process_memory_fraction(amount.small_card / total, self._device)
        try:
            self._build()
            engine = self._ready(max_num_seqs=64)
            usage = self._memory(engine)
            fit = min(64, usage["long_sequences"] or 4)
            # A few more than fit: some wait, or are preempted and recomputed.
            count, new = fit + 4, min(32, amount.new)
            rng = random.Random(5)
            texts = [words(rng, amount.long - new - 1, shape) for _ in range(count)]
            texts = [text for text in texts if amount.long <= engine.max_model_len]
            start, computed = time.monotonic(), engine.num_computed_tokens
            tokens, written = decoding.complete(engine, decoding.make_requests(texts, new))
            report.say(
                measure="memory",
                card_gb=amount.small_card / GB if cuda else None,
                context=engine.max_model_len,
                **usage,
                served=len(texts),
                seconds=time.monotonic() - start,
                # A text's last token is sampled, and not computed.
                computed_again=engine.num_computed_tokens
                - computed
                - tokens
                - written
                + len(texts),
            )
        finally:
            self._close()
            if cuda:
                torch.cuda.set_per_process_memory_fraction(1.0, self._device)

    # --- what they share --------------------------------------------------------------

    def _measure_peak(self) -> Peak:
        if not self._peak:
            sizes = {"size": self._amount.size, "read": self._amount.read}
            self._peak = limit.measure(self._dtype, self._device, **sizes)
        return self._peak

    @property
    def _context(self) -> int:
        return self._amount.shape.positions

    def _build(self, *, bare: bool = False) -> None:
        """Make the models, unless they exist or an engine has them."""
        if self._models or self._engine:
            return
        self._measure_peak()  # now, since an engine takes all memory
        free()
        self._models = build(self._amount.shape, self._dtype, self._device, bare=bare)
        self._weights = Weights.of(self._models)

    def _ready(self, max_num_seqs: int | None = None, tokens: int | None = None) -> BatchingEngine:
        """Return the engine; make it if there is none.

        Raises:
            RuntimeError: it failed in an earlier section.
        """
        if self._failure:
            raise RuntimeError(f"there is no engine: {self._failure}")
        if not self._engine:
            self._build()
            models, self._models = self._models, None
            try:
                self._engine = engines.make(
                    models,
                    self._tokenizer,
                    max_model_len=self._context,
                    max_num_seqs=max_num_seqs or max(self._amount.sequences),
                    tokens=tokens,
                )
            except Exception as error:
                self._failure = repr(error)
                raise
        return self._engine

    def _close(self) -> None:
        if self._engine:
            self._engine.close()
        self._engine = self._models = self._failure = None
        free()

    def _num_fitting(self, engine: BatchingEngine) -> int:
        """Return how many sequences an engine has room for until the first of them ends."""
        tokens = self._amount.prompt + decoding.MAX_OUTPUTS * self._amount.steps + BLOCK_SIZE
        return min(engine.max_num_seqs, engine.kv_cache_tokens // tokens)

    def _decode(self, engine: BatchingEngine, count: int) -> dict[str, Any]:
        amount = self._amount
        rng = random.Random(2)
        texts = [words(rng, amount.prompt - 1, amount.shape) for _ in range(count)]
        decoded = decoding.measure(engine, texts, amount.steps)
        step = decoded.seconds / decoded.steps
        read = self._weights.base + self._weights.adapters
        read += int(decoded.context) * amount.shape.cache_bytes(self._dtype)
        return {
            "sequences": count,
            "tokens_a_second": decoded.tokens_a_second,
            "step_ms": step * 1e3,
            "share_of_limit": read / self._measure_peak().bandwidth / step,
            "context": decoded.context / count,
            "steps": decoded.steps,
        }

    def _memory(self, engine: BatchingEngine) -> dict[str, Any]:
        """Return the capacity of an engine's KV cache; None if it is unknown."""
        tokens = getattr(engine, "kv_cache_tokens", None)
        cuda = self._device.type == "cuda"
        return {
            "tokens_that_fit": tokens,
            "long": self._amount.long,
            "long_sequences": None if tokens is None else tokens // self._amount.long,
            "allocated_gb": torch.cuda.memory_allocated(self._device) / GB if cuda else None,
        }


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


@contextmanager
def _busy(device: torch.device) -> Iterator[list[float]]:
    """Sample a GPU's utilisation, from 0 to 1, four times a second; nothing if it is unknown."""
    shares: list[float] = []
    over = threading.Event()

    def poll() -> None:
        while not over.wait(0.25):
            try:
                shares.append(torch.cuda.utilization(device) / 100)
            except Exception:  # noqa: BLE001 (the library is missing, or does not know)
                return

    thread = threading.Thread(target=poll, daemon=True)
    if device.type == "cuda":
        thread.start()
    yield shares
    over.set()
    if thread.ident:
        thread.join()
