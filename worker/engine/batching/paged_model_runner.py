"""Computes steps on a CUDA device, and lets the host plan the next one meanwhile."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from collections.abc import Sequence as Several
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worker.engine.attention.paged_batch import FlatBatch
from worker.engine.batching import sampler
from worker.engine.batching.cuda_graphs import Record
from worker.engine.batching.model_runner import Drawn
from worker.engine.batching.scheduler import Plan
from worker.engine.batching.sequence import PENDING, Sequence
from worker.engine.kv.block_manager import Blocks
from worker.engine.kv.paged_cache import BlockCache

log = logging.getLogger(__name__)

#: The largest top-k that is drawn within a recorded step; other rows are drawn after it.
MOST = 64
#: Sequences of recorded steps that only decode; beyond these, multiples of the last distance.
COUNTS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 80, 96, 112, 128)
#: Sequences that decode, and tokens in all, of recorded steps that have pieces of prompts too.
MIXED_COUNTS = (32, 64, 128, 256)
MIXED_TOKENS = (64, 128, 192, 256, 384, 512, 768, 1024)
#: Prompts that can end in one of them, and pieces beyond those that fill its tokens.
MIXED_ENDS, MIXED_PIECES = 16, 16
#: Contexts that steps are recorded for apart: shorter ones need fewer programs.
SHORT = 1024
#: Seconds between two words about how far recording is.
SAY_INTERVAL = 5.0
#: Columns of a step's input.
TOKEN, PIECE, DRAW = 4, 4, 5


@dataclass(frozen=True)
class Shape:
    """What the steps that one recording serves have in common; numbers include what fills up."""

    #: So many tokens at the beginning attend each for itself: those that decode, and if they are fewer,
    #: some of a prompt.
    decoding: int
    #: Tokens in all.
    tokens: int
    #: Pieces of prompts.
    pieces: int
    #: Tokens whose successors are drawn.
    draws: int
    #: No decoding token's position is this one or beyond.
    reach: int

    @property
    def size(self) -> int:
        return TOKEN * self.tokens + PIECE * self.pieces + DRAW * self.draws


@dataclass
class Launched:
    """A step on its way."""

    #: For whom a token is drawn, in the order of their draws.
    drawing: list[Sequence]
    #: Which of the step's draws are theirs.
    places: list[int]
    #: On the host once ``done``; of draws from scores that were no numbers, -1.
    tokens: Tensor
    done: Callable[[], object]

    def wait(self) -> Drawn:
        """Wait for the device; return the tokens."""
        self.done()
        found = self.tokens.tolist()
        tokens = [found[place] for place in self.places]
        return Drawn(self.drawing, tokens, [token >= 0 for token in tokens])


class PagedRunner:
    """Computes steps over `Blocks`."""

    #: The next step may be launched before this one's tokens are known.
    ahead = True

    def __init__(
        self,
        compute: Callable[[FlatBatch, BlockCache, Tensor | None], Tensor],
        cache: BlockCache,
        memory: Blocks,
        *,
        vocabulary: int,
        ops: Any,
        work_tokens: int,
        record: Record | None,
    ) -> None:
        """
        Args:
            compute: scores a batch's tokens, as `worker.engine.models.paged_llama.FusedLlama`.
            cache: keys and values.
            memory: who holds which of its blocks.
            vocabulary: number of tokens.
            ops: `worker.engine.cuda.kernels` or `worker.engine.cuda.torch_ops`.
            work_tokens: the most tokens of a prompt's piece.
            record: records steps to be replayed; each is laid out anew if None.
        """
        self._compute = compute
        self._cache = cache
        self.memory = memory
        self._device = cache.device
        self._vocabulary = vocabulary
        self._ops = ops
        self._work_tokens = work_tokens
        self._record = record
        self._rows = len(memory.tables)
        self._tables = torch.zeros(memory.tables.shape, dtype=torch.int32, device=self._device)
        #: The newest token of each row; one more row for what fills up.
        self._newest = torch.zeros(self._rows + 1, dtype=torch.int64, device=self._device)
        self._scores = torch.empty(0)
        self._recordings: dict[Shape, tuple[Tensor, Callable[[], tuple[Tensor, Tensor]]]] = {}
        self._pinned = self._device.type == "cuda"
        # Of each row's sequence: what does not change while it runs.
        self._owners: list[Sequence | None] = [None] * self._rows
        self._seeds = np.zeros(self._rows, dtype=np.int64)
        self._temperatures = np.zeros(self._rows)
        self._top_k = np.zeros(self._rows, dtype=np.int64)
        self._special = np.zeros(self._rows, dtype=bool)
        self._adapters = np.zeros(self._rows, dtype=np.int64)

    @property
    def tokens_that_fit(self) -> int:
        return (self._cache.blocks - 1) * self._cache.block_size

    def forget(self, sequence: Sequence) -> None:
        """Nothing reads a place beyond a sequence's tokens."""

    # --- recording --------------------------------------------------------------------

    def shapes(self, chunk: int) -> list[Shape]:
        """Return the shapes that are worth recording, largest first.

        Args:
            chunk: the most prompt tokens of a step.
        """
        counts = [n for n in COUNTS if n < self._rows]
        step = COUNTS[-1] - COUNTS[-2]
        counts += range(COUNTS[-1] + step, self._rows, step)
        counts.append(self._rows)
        reaches = sorted({min(SHORT, self._reach), self._reach})
        found = [Shape(n, n, 0, n, reach) for n in counts for reach in reaches]
        mixed = sorted({min(n, self._rows) for n in MIXED_COUNTS})
        for n in mixed:
            for tokens in MIXED_TOKENS:
                if n < tokens <= chunk:
                    pieces = -(-(tokens - n) // self._work_tokens) + MIXED_PIECES
                    found.append(Shape(n, tokens, pieces, n + MIXED_ENDS, self._reach))
        return sorted(found, key=lambda s: (s.tokens, s.size, s.reach), reverse=True)

    def capture(self, chunk: int, *, seconds: float = 60.0) -> int:
        """Record steps of the shapes that will come, for as long as it may take; return how many."""
        if self._record is None:
            return 0
        began = said = time.monotonic()
        shapes = self.shapes(chunk)
        # One for all: each recording would keep its own for ever, half a GB together.
        size = max(shape.draws for shape in shapes), self._vocabulary
        self._scores = torch.empty(size, dtype=self._cache.keys[0].dtype, device=self._device)
        scarce = 0
        for number, shape in enumerate(shapes):
            if time.monotonic() - said > SAY_INTERVAL:
                said = time.monotonic()
                log.info("recorded %d of %d shapes of steps", len(self._recordings), len(shapes))
            if time.monotonic() - began > seconds:
                log.warning("%d of %d shapes of steps were recorded in time", number, len(shapes))
                break
            try:
                if not self._capture(shape, self._record):
                    break
            except torch.OutOfMemoryError:
                scarce += 1
        if scarce:
            log.warning(
                "memory did not suffice to record %d of %d shapes of steps, which will be slower; "
                "is another program on the device?",
                scarce,
                len(shapes),
            )
        return len(self._recordings)

    @torch.inference_mode()
    def _capture(self, shape: Shape, record: Record) -> bool:
        inputs = torch.from_numpy(self._empty(shape)).to(self._device)
        try:
            replay = record(lambda inputs: self._kept(shape, inputs), inputs)
        except torch.OutOfMemoryError:
            raise
        except Exception:
            # All goes on without, slower; if it is the device's fault, the next step will tell.
            log.warning("decoding steps are not recorded any more", exc_info=True)
            self._record = None
            return False
        self._recordings[shape] = inputs, replay
        return True

    def _kept(self, shape: Shape, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """As `_step`, with the scores where the next recorded step puts its own."""
        tokens, scores = self._step(shape, inputs)
        return tokens, self._scores[: len(scores)].copy_(scores)

    @property
    def _reach(self) -> int:
        return int(self._tables.shape[1]) * self._cache.block_size

    def _fitting(self, count: int, plan: Plan, pieces: int, ends: int) -> Shape | None:
        """Return the smallest recorded shape that a step fits into."""
        tokens = count + plan.prompt_tokens
        reach = max((s.cached for s in plan.decoding), default=0) + 1
        best: Shape | None = None
        for shape in self._recordings:
            if (
                shape.decoding >= count
                and shape.tokens >= tokens
                and bool(shape.pieces) == bool(plan.chunks)
                and shape.pieces >= pieces
                and shape.draws - shape.decoding >= ends
                and shape.reach >= reach
                and (best is None or (shape.size, shape.reach) < (best.size, best.reach))
            ):
                best = shape
        return best

    # --- steps ------------------------------------------------------------------------

    @torch.inference_mode()
    def launch(self, plan: Plan) -> Launched:
        """Launch a step; the device computes it after all that were launched before."""
        self._send_changes()
        shape, table, drawing, places = self._lay_out(plan)
        if shape in self._recordings:
            inputs, replay = self._recordings[shape]
            inputs.copy_(self._pinned_copy(table), non_blocking=True)
            tokens, logits = replay()
        else:
            tokens, logits = self._step(shape, self._sent(table))
        if special := [i for i, s in enumerate(drawing) if self._special[s.row]]:
            tokens = self._draw_again(tokens, logits, [(drawing[i], places[i]) for i in special])
        if not self._pinned:
            return Launched(drawing, places, tokens.clone(), lambda: None)
        host = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True)
        host.copy_(tokens, non_blocking=True)
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # torch has no types there
        event.record()
        return Launched(drawing, places, host, event.synchronize)

    @torch.inference_mode()
    def score(self, plan: Plan) -> Tensor:
        """Compute a step; return the scores of what may follow each drawing sequence, in their order."""
        self._send_changes()
        shape, table, _, places = self._lay_out(plan, recorded=False)
        _, logits = self._step(shape, self._sent(table))
        return logits[torch.tensor(places, device=logits.device)]

    def _send_changes(self) -> None:
        at, values = self.memory.take_changes()
        if len(at):
            sent = self._sent(np.concatenate([at, values]))
            self._tables.view(-1).index_copy_(0, sent[: len(at)], sent[len(at) :].int())

    def _sent(self, array: np.ndarray) -> Tensor:
        return self._pinned_copy(array).to(self._device, non_blocking=True)

    def _pinned_copy(self, array: np.ndarray) -> Tensor:
        source = torch.from_numpy(array)
        # PyTorch reuses pinned memory only after the copies from it are done.
        return source.pin_memory() if self._pinned else source

    def _empty(self, shape: Shape) -> np.ndarray:
        """Return a step's input that is nothing but filling."""
        table = np.zeros(shape.size, dtype=np.int64)
        tokens, _, draws = _split(table, shape)
        tokens[:, 1] = tokens[:, 3] = -1
        draws[:, 1] = self._rows
        draws[:, 3] = 1
        return table

    def _lay_out(
        self, plan: Plan, *, recorded: bool = True
    ) -> tuple[Shape, np.ndarray, list[Sequence], list[int]]:
        """Write down a step.

        Returns:
            its shape, its input, for whom tokens are drawn, and which of the draws are theirs.
        """
        decoding, chunks = plan.decoding, plan.chunks
        for sequence in plan.sequences:
            if self._owners[sequence.row] is not sequence:
                self._take(sequence)
        count = len(decoding)
        pieces = sum(-(-(c.end - c.start) // self._work_tokens) for c in chunks)
        ends = [chunk.sequence for chunk in chunks if chunk.last]
        shape = self._fitting(count, plan, pieces, len(ends)) if recorded else None
        if shape is None:
            tokens_in_all = count + plan.prompt_tokens
            shape = Shape(count, tokens_in_all, pieces, count + len(ends), self._reach)
        table = self._empty(shape)
        tokens, work, draws = _split(table, shape)
        if count:
            rows = np.fromiter((s.row for s in decoding), np.int64, count)
            tokens[:count, 0] = np.fromiter((s.tokens[-1] for s in decoding), np.int64, count)
            tokens[:count, 1] = self._adapters[rows]
            tokens[:count, 2] = rows
            tokens[:count, 3] = np.fromiter((s.cached for s in decoding), np.int64, count)
        at, piece = count, 0
        drawn = list(range(count))
        where = list(range(count))
        for chunk in chunks:
            sequence, length = chunk.sequence, chunk.end - chunk.start
            part = tokens[at : at + length]
            part[:, 0] = sequence.slice(chunk.start, chunk.end)
            part[:, 1] = sequence.adapter
            part[:, 2] = sequence.row
            part[:, 3] = np.arange(chunk.start, chunk.end)
            alone = min(max(shape.decoding - at, 0), length)
            for start in range(alone, length, self._work_tokens):
                number = min(self._work_tokens, length - start)
                work[piece] = at + start, number, sequence.row, chunk.start + start
                piece += 1
            at += length
            if chunk.last:
                drawn.append(shape.decoding + len(drawn) - count)
                where.append(at - 1)
        drawing = [*decoding, *ends]
        if drawing:
            draws[drawn] = self._draws(drawing, where)
        return shape, table, drawing, drawn

    def _take(self, sequence: Sequence) -> None:
        """Note what does not change of a sequence while it has its row."""
        row, asked = sequence.row, sequence.generation.request.sampling
        self._owners[row] = sequence
        self._adapters[row] = sequence.adapter
        self._seeds[row] = asked.seed
        greedy = asked.temperature < sampler.LEAST_TEMPERATURE
        self._temperatures[row] = 0.0 if greedy else asked.temperature
        self._top_k[row] = 1 if greedy else min(asked.top_k or MOST, MOST)
        self._special[row] = not greedy and (not 0 < asked.top_k <= MOST or asked.top_p < 1)

    def _draws(self, drawing: Several[Sequence], where: Several[int]) -> np.ndarray:
        rows = np.fromiter((s.row for s in drawing), np.int64, len(drawing))
        positions = np.fromiter((len(s.tokens) for s in drawing), np.int64, len(drawing))
        found = np.empty((len(drawing), DRAW), dtype=np.int64)
        found[:, 0] = where
        found[:, 1] = rows
        seeds, at = torch.from_numpy(self._seeds[rows]), torch.from_numpy(positions)
        found[:, 2] = sampler.noise_of(seeds, at).numpy()
        found[:, 3] = np.minimum(self._top_k[rows], self._vocabulary)
        found[:, 4] = self._temperatures[rows].view(np.int64)
        return found

    def _step(self, shape: Shape, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Compute and draw; nothing here may ask the host.

        Returns:
            the tokens, -1 where scores were no numbers, (draws,) int64; and the scores.
        """
        tokens, work, draws = _split(inputs, shape)
        rows = tokens[:, 2]
        batch = FlatBatch(
            ids=torch.where(tokens[:, 0] == PENDING, self._newest[rows], tokens[:, 0]),
            adapters=tokens[:, 1].int(),
            rows=rows.int(),
            positions=tokens[:, 3].int(),
            tables=self._tables,
            decoding=shape.decoding,
            reach=shape.reach,
            work=work.int() if shape.pieces else None,
            work_tokens=self._work_tokens,
        )
        keep = draws[:, 0] if shape.pieces else None
        logits = self._compute(batch, self._cache, keep)
        temperature = draws[:, 4].contiguous().view(torch.float64).float()
        most = min(MOST, self._vocabulary)
        found, sound = self._ops.draw(
            logits, temperature, draws[:, 3].contiguous(), draws[:, 2].contiguous(), most
        )
        self._newest.index_copy_(0, draws[:, 1], found)
        return torch.where(sound, found, -1), logits

    def _draw_again(
        self, tokens: Tensor, logits: Tensor, special: Several[tuple[Sequence, int]]
    ) -> Tensor:
        """Draw those that cannot be drawn within a step: from more candidates, or with top-p."""
        asked = [s.generation.request.sampling for s, _ in special]
        positions = [len(s.tokens) for s, _ in special]
        rows = sampler.Rows.of(asked, positions, self._vocabulary, self._device)
        sent = self._sent(np.array([[place for _, place in special], [s.row for s, _ in special]]))
        found, sound = sampler.sample(logits[sent[0]], rows)
        self._newest.index_copy_(0, sent[1], found)
        return tokens.index_copy(0, sent[0], torch.where(sound, found, -1))


def _split(table: Any, shape: Shape) -> tuple[Any, Any, Any]:
    """Return the tokens, pieces and draws of a step's input, (number, columns) each."""
    tokens = TOKEN * shape.tokens
    pieces = tokens + PIECE * shape.pieces
    return (
        table[:tokens].reshape(-1, TOKEN),
        table[tokens:pieces].reshape(-1, PIECE),
        table[pieces:].reshape(-1, DRAW),
    )
