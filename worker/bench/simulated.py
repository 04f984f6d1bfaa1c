"""A simulated device, whose steps take as long as a GPU's and compute nothing.

It measures the CPU time of serving a GPU on a machine without one. Everything around a step is the real
engine; the step itself is a sleep.
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

from worker.engine.batching.model_runner import ModelRunnerOutput
from worker.engine.batching.paged_model_runner import PagedModelRunner
from worker.engine.batching.runner_setup import MAX_NUM_BATCHED_TOKENS, RunnerSetup
from worker.engine.batching.scheduler_output import SchedulerOutput
from worker.engine.batching.sequence import Sequence
from worker.engine.intra_op_threads import IntraOpThreads
from worker.engine.kv.block_manager import BlockManager
from worker.engine.kv.paged_cache import BLOCK_SIZE

#: Tokens of a prefill tile, as on a GPU.
TILE_TOKENS = 16
#: The control tokens, which are the first in Llama's and Mistral's vocabularies.
SPECIAL = ("<unk>", "<s>", "</s>")
#: Numbers of distinct and of all words in the tokenizer's training text.
WORDS, TEXT = 60_000, 400_000
#: Large enough that Python's checksum releases the GIL.
BUFFER = bytes(8192)


@dataclass(frozen=True)
class Speed:
    """Times of a step in seconds. The defaults are about Mistral-7B's with three adapters on an H100."""

    step: float = 7e-3
    prompt_token: float = 25e-6
    sequence: float = 30e-6
    #: The host's time to launch a kernel or a CUDA graph.
    launch: float = 25e-6
    #: Kernels of a step without a CUDA graph; launches of a step with one.
    kernels: int = 400
    graph_launches: int = 12
    #: Speed-up of the device. 2 has the same effect as a host of half the speed.
    faster: float = 1.0

    def of(self, output: SchedulerOutput) -> float:
        """Return the device's time for a step, in seconds."""
        prompts = output.num_prefill_tokens * self.prompt_token
        return (self.step + prompts + len(output.decodes) * self.sequence) / self.faster


@dataclass
class Timeline:
    """The busy times of a device, in seconds of `time.monotonic`."""

    end: float = 0.0
    busy: float = 0.0
    steps: int = 0
    #: Idle time before each step that did not follow another one immediately.
    waits: list[float] = field(default_factory=list)
    #: Steps without a CUDA graph.
    without_graph: int = 0

    def add(self, seconds: float) -> float:
        """Start a step as soon as the device is free; return when it ends."""
        now = time.monotonic()
        if not self.steps:
            self.end = now
        if now > self.end:
            self.waits.append(now - self.end)
        self.end = max(now, self.end) + seconds
        self.busy += seconds
        self.steps += 1
        return self.end

    def stretch(self) -> float:
        """Extend the last step until now, since its last kernel was launched just now."""
        if (late := time.monotonic() - self.end) > 0:
            self.waits.append(late)
            self.end += late
        return self.end


@dataclass
class SimulatedStep:
    """A step of the simulated device."""

    sampled_sequences: list[Sequence]
    token_ids: list[int]
    end: float

    def get_output(self) -> ModelRunnerOutput:
        """Sleep until the step ends."""
        if (remaining := self.end - time.monotonic()) > 0:
            time.sleep(remaining)  # the device's computation
        return ModelRunnerOutput(
            self.sampled_sequences, self.token_ids, [True] * len(self.token_ids)
        )


class SimulatedRunner(PagedModelRunner):
    """Prepares steps as on CUDA, waits for the step's time, and derives tokens from a hash."""

    def __init__(
        self,
        kv: BlockManager,
        words: Several[int],
        speed: Speed,
        *,
        max_num_batched_tokens: int,
    ) -> None:
        """
        Args:
            kv: manages the blocks that a device would have.
            words: the token ids to sample from, uniformly.
            speed: the times of the device's steps.
            max_num_batched_tokens: maximum number of tokens of a step with prefills.
        """
        super().__init__(
            _compute_nothing,
            _NoCache(),  # type: ignore[arg-type]  # nothing is computed, so nothing is kept
            kv,
            vocab_size=max(words) + 1,
            ops=None,
            tile_tokens=TILE_TOKENS,
            capture=None,
        )
        self._words = np.array(words)
        self._speed = speed
        self._lock = threading.Lock()
        self.timeline = Timeline()
        # Steps are padded to the shapes of CUDA graphs.
        shapes = self.shapes_to_capture(max_num_batched_tokens)
        self._graphs = dict.fromkeys(shapes)  # type: ignore[assignment]  # not replayed

    @property
    def kv_cache_tokens(self) -> int:
        return self.kv.num_free_blocks * BLOCK_SIZE

    def launch(self, output: SchedulerOutput) -> SimulatedStep:  # type: ignore[override]  # another device's
        self._update_block_tables()
        inputs = self._inputs.build(output, self._graphs)
        sampled, is_graph = inputs.sampled_sequences, inputs.shape in self._graphs
        speed = self._speed
        with self._lock:
            end = self.timeline.add(speed.of(output))
            self.timeline.without_graph += not is_graph
        for _ in range(speed.graph_launches if is_graph else speed.kernels):
            _busy(speed.launch)
            zlib.crc32(BUFFER)  # releases the GIL, as PyTorch and Triton do
        with self._lock:
            end = self.timeline.stretch()
        seeds = [(s.generation.request.sampling.seed, len(s.output_token_ids)) for s in sampled]
        noise = np.array(seeds, dtype=np.uint64).reshape(-1, 2)
        mixed = (noise[:, 0] * np.uint64(0x9E3779B97F4A7C15)) ^ (
            (noise[:, 1] + np.uint64(1)) * np.uint64(0xBF58476D1CE4E5B9)
        )
        mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0x94D049BB133111EB)
        token_ids = self._words[(mixed >> np.uint64(33)) % np.uint64(len(self._words))].tolist()
        return SimulatedStep(sampled, token_ids, end)

    def compute_logits(self, output: SchedulerOutput) -> Tensor:
        """Return zeros: nothing is computed."""
        return torch.zeros(len(output.sequences), self._vocab_size)

    def restart(self) -> Timeline:
        """Return the timeline so far, and start a new one."""
        with self._lock:
            timeline, self.timeline = self.timeline, Timeline()
        return timeline


class _NoCache:
    """A KV cache without contents."""

    device = torch.device("cpu")
    block_size = BLOCK_SIZE
    num_blocks = 1


def _compute_nothing(*_: object) -> Tensor:
    raise NotImplementedError("a simulated device computes nothing")


def _busy(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def build(
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_num_seqs: int,
    max_model_len: int,
    num_adapters: int,
    speed: Speed,
) -> RunnerSetup:
    """Build a model runner on a simulated device.

    Args:
        tokenizer: of the sampled texts.
        max_num_seqs: maximum number of running sequences.
        max_model_len: maximum number of tokens of a sequence. The cache fits all sequences at this length.
        num_adapters: number of adapters.
        speed: the times of the device's steps.
    """
    max_num_batched_tokens = MAX_NUM_BATCHED_TOKENS["cuda"]
    kv = BlockManager(
        max_num_seqs * -(-max_model_len // BLOCK_SIZE) + 2,
        BLOCK_SIZE,
        num_rows=max(max_num_seqs, num_adapters),
        max_model_len=max_model_len,
        adapter_keys=range(num_adapters),
    )
    special = set(tokenizer.all_special_ids)
    words = [i for i in range(len(tokenizer)) if i not in special]
    runner = SimulatedRunner(kv, words, speed, max_num_batched_tokens=max_num_batched_tokens)
    threads = IntraOpThreads(small_model=False)
    return RunnerSetup(runner, max_num_seqs, max_num_batched_tokens, threads, torch.device("cpu"))


def tokenizer_of(size: int) -> PreTrainedTokenizerFast:
    """Train a tokenizer like Mistral's (BPE with byte fallback, spaces as ▁) on random words, always the same.

    Args:
        size: size of the vocabulary.
    """
    rng = random.Random(0)
    syllables = [a + b + c for a in "bdfgklmnprstvz" for b in "aeiou" for c in ("", "n", "r", "s")]
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(WORDS)]
    weights = [1 / (i + 10) for i in range(WORDS)]
    sample = rng.choices(words, weights, k=TEXT)
    lines = [" ".join(sample[i : i + 20]) for i in range(0, TEXT, 20)]
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
