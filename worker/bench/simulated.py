"""A device that is simulated: it takes as long as a GPU might, and computes nothing.

What the host does for a GPU is measured on a machine that has none: everything around a step is the
engine's own, and only its computation is a time in which the processor sleeps.
"""

from __future__ import annotations

import random
import threading
import time
import zlib
from collections.abc import Sequence as Several
from dataclasses import dataclass, field

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from worker.engine.batching.build import CHUNK, Built
from worker.engine.batching.model_runner import Drawn
from worker.engine.batching.paged_model_runner import PagedRunner
from worker.engine.batching.scheduler import Plan
from worker.engine.batching.sequence import Sequence
from worker.engine.kv.block_manager import Blocks
from worker.engine.kv.paged_cache import BLOCK_SIZE
from worker.engine.threads import Sharing

#: Tokens of a prompt's piece, as on a GPU.
WORK_TOKENS = 16
#: Bytes as tokens, and what is no text: the first tokens of Llama's and Mistral's vocabularies.
SPECIAL = ("<unk>", "<s>", "</s>")
#: Sizes of the text that a tokenizer is learnt from.
WORDS, TEXT = 60_000, 400_000
#: More than Python's checksum takes while it holds the interpreter.
FILLING = bytes(8192)


@dataclass(frozen=True)
class Speed:
    """What a step takes, in seconds: about a Mistral-7B's with three adapters on an H100."""

    step: float = 7e-3
    prompt_token: float = 25e-6
    sequence: float = 30e-6
    #: What the host computes to send off a kernel, or a recorded step, which is as little.
    launch: float = 25e-6
    #: Kernels of a step that is not recorded; of one that is, what goes before and after it.
    kernels: int = 400
    recorded: int = 12
    #: By what the device is faster than that: 2 is as if the host were half as fast.
    faster: float = 1.0

    def of(self, plan: Plan) -> float:
        """How long the device takes for a step."""
        prompts = plan.prompt_tokens * self.prompt_token
        return (self.step + prompts + len(plan.decoding) * self.sequence) / self.faster


@dataclass
class Timeline:
    """When a device was busy, as `time.monotonic` counts (seconds)."""

    began: float = 0.0
    end: float = 0.0
    busy: float = 0.0
    steps: int = 0
    #: How long it waited for each step that did not begin at once after another.
    waits: list[float] = field(default_factory=list)
    #: Steps that were not recorded.
    laid_out: int = 0

    def add(self, seconds: float) -> float:
        """Begin a step as soon as the device is free; return when it ends."""
        now = time.monotonic()
        if not self.steps:
            self.began = self.end = now
        if now > self.end:
            self.waits.append(now - self.end)
        self.end = max(now, self.end) + seconds
        self.busy += seconds
        self.steps += 1
        return self.end

    def stretch(self) -> float:
        """Let the newest step end now at the earliest: its last kernel came only now."""
        if (late := time.monotonic() - self.end) > 0:
            self.waits.append(late)
            self.end += late
        return self.end

    @property
    def share(self) -> float:
        """Of the time between the first step's begin and the last one's end, what it was busy."""
        return self.busy / (self.end - self.began) if self.steps else 0.0


@dataclass
class Launched:
    """A step that the simulated device computes."""

    drawing: list[Sequence]
    tokens: list[int]
    end: float

    def wait(self) -> Drawn:
        """Sleep until it is over."""
        if (left := self.end - time.monotonic()) > 0:
            time.sleep(left)  # it stands for the device's work
        return Drawn(self.drawing, self.tokens, [True] * len(self.tokens))


class SimulatedRunner(PagedRunner):
    """Lays steps out as on CUDA; then a time passes, and tokens come from a hash."""

    def __init__(
        self,
        memory: Blocks,
        words: Several[int],
        speed: Speed,
        *,
        chunk: int,
        recorded: bool = True,
    ) -> None:
        """
        Args:
            memory: who holds which of the blocks that there would be.
            words: the tokens that are drawn, all equally often.
            speed: the device's.
            chunk: the most prompt tokens of a step.
            recorded: whether steps are filled up to the shapes that a GPU has recorded.
        """
        super().__init__(
            _compute_nothing,
            _NoCache(),  # type: ignore[arg-type]  # nothing is computed, so nothing is kept
            memory,
            vocabulary=max(words) + 1,
            ops=None,
            work_tokens=WORK_TOKENS,
            record=None,
        )
        self._words = np.array(words)
        self._speed = speed
        self._lock = threading.Lock()
        self.timeline = Timeline()
        if recorded:
            self._recordings = dict.fromkeys(self.shapes(chunk))  # type: ignore[assignment]  # not replayed

    @property
    def tokens_that_fit(self) -> int:
        return self.memory.free * BLOCK_SIZE

    def launch(self, plan: Plan) -> Launched:  # type: ignore[override]  # another device's
        self._send_changes()
        shape, _, drawing, _ = self._lay_out(plan)
        speed = self._speed
        with self._lock:
            end = self.timeline.add(speed.of(plan))
            self.timeline.laid_out += shape not in self._recordings
        for _ in range(speed.recorded if shape in self._recordings else speed.kernels):
            _busy(speed.launch)
            zlib.crc32(FILLING)  # without the interpreter, as PyTorch and Triton launch
        with self._lock:
            end = self.timeline.stretch()
        drawn = [(s.generation.request.sampling.seed, len(s.tokens)) for s in drawing]
        noise = np.array(drawn, dtype=np.uint64).reshape(-1, 2)
        mixed = (noise[:, 0] * np.uint64(0x9E3779B97F4A7C15)) ^ (
            (noise[:, 1] + np.uint64(1)) * np.uint64(0xBF58476D1CE4E5B9)
        )
        mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0x94D049BB133111EB)
        tokens = self._words[(mixed >> np.uint64(33)) % np.uint64(len(self._words))].tolist()
        return Launched(drawing, tokens, end)

    def score(self, plan: Plan) -> Tensor:
        """Return scores that are all the same: nothing is computed."""
        return torch.zeros(len(plan.sequences), self._vocabulary)

    def restart(self) -> Timeline:
        """Return what the device did so far, and begin anew."""
        with self._lock:
            found, self.timeline = self.timeline, Timeline()
        return found


class _NoCache:
    """Stands in for keys and values."""

    device = torch.device("cpu")
    block_size = BLOCK_SIZE
    blocks = 1


def _compute_nothing(*_: object) -> Tensor:
    raise NotImplementedError("a simulated device computes nothing")


def _busy(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def build(
    tokenizer: PreTrainedTokenizerBase, *, slots: int, context: int, adapters: int, speed: Speed
) -> Built:
    """Make a simulated device for an engine.

    Args:
        tokenizer: of the texts that are drawn.
        slots: sequences at once.
        context: tokens of a sequence at most; all slots have room for as many.
        adapters: how many.
        speed: the device's.
    """
    chunk = CHUNK["cuda"]
    blocks = slots * -(-context // BLOCK_SIZE) + 2
    memory = Blocks(
        blocks, BLOCK_SIZE, rows=max(slots, adapters), context=context, adapters=range(adapters)
    )
    special = set(tokenizer.all_special_ids)
    words = [i for i in range(len(tokenizer)) if i not in special]
    runner = SimulatedRunner(memory, words, speed, chunk=chunk)
    return Built(runner, slots, chunk, Sharing(small=False), torch.device("cpu"))


def tokenizer_of(size: int, seed: int = 0) -> PreTrainedTokenizerFast:
    """Learn a tokenizer as Mistral's (BPE over bytes, blanks as ▁) from made-up words.

    Args:
        size: tokens of its vocabulary.
        seed: of the words.
    """
    rng = random.Random(seed)
    syllables = [a + b + c for a in "bdfgklmnprstvz" for b in "aeiou" for c in ("", "n", "r", "s")]
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(WORDS)]
    weights = [1 / (i + 10) for i in range(WORDS)]
    drawn = rng.choices(words, weights, k=TEXT)
    lines = [" ".join(drawn[i : i + 20]) for i in range(0, TEXT, 20)]
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    bpe = Tokenizer(models.BPE(unk_token=SPECIAL[0], byte_fallback=True, fuse_unk=True))
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bpe.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[*SPECIAL, *bytes_],
        show_progress=False,
        max_token_length=12,
    )
    bpe.train_from_iterator((word for line in lines for word in line.split()), trainer)
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers has no types there
        tokenizer_object=bpe, unk_token=SPECIAL[0], bos_token=SPECIAL[1], eos_token=SPECIAL[2]
    )
