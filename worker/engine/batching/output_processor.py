"""Makes text of tokens and tells it, on a thread of its own.

The engine's thread only has to keep up with the device: while it decodes texts, nobody plans the next
step. vLLM does this in another process (its output processor).
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Iterator
from collections.abc import Sequence as Several
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from worker.engine.batching.sequence import Sequence
from worker.engine.interface import Completion, EngineError, FinishReason
from worker.engine.tokenization.detokenizer import Decode, decode_of

log = logging.getLogger(__name__)

#: Tokens of a piece of text, but for the first piece, which is one token: decoding each token by
#: itself would take longer than computing it. Pieces depend on the count alone and not on the time,
#: so that a stage that runs again after a crash streams the same pieces.
PIECE = 4
#: Texts that are decoded together: enough that other threads run meanwhile, few enough that of many
#: that end in the same step the first do not wait for the last.
TOGETHER = 16


def whole_pieces(tokens: int) -> int:
    """Return how many of a text's first tokens make whole pieces."""
    return 1 + (tokens - 1) // PIECE * PIECE if tokens else 0


@dataclass(frozen=True)
class News:
    """What happened to a sequence."""

    sequence: Sequence
    #: How many tokens were told of before: whole pieces.
    start: int
    #: Those that came since: whole pieces, unless it ends.
    tokens: list[int]
    #: Why it ended, if it did; from then on nothing changes it.
    end: FinishReason | EngineError | None = None

    def pieces(self) -> tuple[list[list[int]], list[int]]:
        """Return the tokens of each piece, and those that are left over."""
        found, at = [], 0
        while (end := at + (PIECE if self.start + at else 1)) <= len(self.tokens):
            found.append(self.tokens[at:end])
            at = end
        return found, self.tokens[at:]


class OutputProcessor:
    """Feeds generations their texts and ends, in the order in which the news of each were put."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._decode: Decode = decode_of(tokenizer)
        self._news: queue.SimpleQueue[Several[News] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="output", daemon=True)
        self._thread.start()

    def put(self, news: Several[News]) -> None:
        """Tell these, and return at once."""
        self._news.put(news)

    def close(self) -> None:
        """Stop when all is told."""
        self._news.put(None)
        self._thread.join()

    # --- the thread -------------------------------------------------------------------

    def _serve(self) -> None:
        for group in self._groups():
            try:
                self._tell(group)
            except Exception as error:  # without this thread everybody would wait for ever
                log.exception("texts were not told")
                for news in group:  # it cannot be told whose fault it is
                    self._fail(news.sequence, error)

    def _groups(self) -> Iterator[list[News]]:
        """Take what is there in groups, until all is told; in each a sequence comes once at the most."""
        waiting: deque[News] = deque()
        closed = False
        while waiting or not closed:
            while not (closed or (waiting and self._news.empty())):
                if (several := self._news.get()) is None:
                    closed = True
                else:
                    waiting += several
            group: dict[Sequence, News] = {}
            while waiting and len(group) < TOGETHER and waiting[0].sequence not in group:
                news = waiting.popleft()
                group[news.sequence] = news
            if group:
                yield list(group.values())

    def _tell(self, group: list[News]) -> None:
        told = [(news, *news.pieces()) for news in group if not news.sequence.generation.ended]
        for i in range(max((len(pieces) for _, pieces, _ in told), default=0)):
            some = [(news.sequence, pieces[i]) for news, pieces, _ in told if i < len(pieces)]
            for (sequence, _), delta in zip(some, self._extend(some), strict=True):
                if delta:
                    sequence.generation.emit(delta)
        ends = [(news.sequence, news.end, rest) for news, _, rest in told if news.end]
        finished = [(s, end, rest) for s, end, rest in ends if isinstance(end, FinishReason)]
        lasts = self._extend([(s, rest) for s, _, rest in finished])
        texts = self._decode([s.detokenizer.ids for s, *_ in finished])
        for (sequence, reason, _), last, text in zip(finished, lasts, texts, strict=True):
            self._finish(sequence, reason, last, text)
        for sequence, end, _ in ends:
            if isinstance(end, EngineError):
                sequence.generation.end(end)

    def _extend(self, several: Several[tuple[Sequence, list[int]]]) -> list[str]:
        """Add a piece's tokens to each sequence; return the text that each completes."""
        both: list[list[int]] = []
        for sequence, tokens in several:
            both += sequence.detokenizer.begin(tokens)
        texts = self._decode(both)
        return [
            sequence.detokenizer.complete(*texts[2 * i : 2 * i + 2])
            for i, (sequence, _) in enumerate(several)
        ]

    def _finish(self, sequence: Sequence, reason: FinishReason, last: str, text: str) -> None:
        generation, detokenizer = sequence.generation, sequence.detokenizer
        _, rest = detokenizer.finish(text)
        if reason is not FinishReason.CANCELLED:
            # What was broken off may run again, and then this piece would be longer.
            for delta in filter(None, (last, rest)):
                generation.emit(delta)
        generation.end(
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

    def _fail(self, sequence: Sequence, error: Exception) -> None:
        """End a generation whose text cannot be told; the engine stops it too."""
        if not sequence.generation.ended:
            sequence.generation.cancel()
            sequence.generation.end(EngineError(f"{type(error).__name__}: {error}"))
