"""A request inside the engine: its tokens, and how many of them are computed."""

from __future__ import annotations

from dataclasses import dataclass, field

from worker.engine.interface import Generation
from worker.engine.tokenization.detokenizer import Detokenizer
from worker.engine.tokenization.stopping_detokenizer import StoppingDetokenizer

#: `Sequence.row` of a sequence without memory.
UNALLOCATED = -1
#: Placeholder in `Sequence.output_token_ids` for a token that is sampled on the device and not read yet.
PENDING_TOKEN = -1


@dataclass(eq=False)
class Sequence:
    """A request inside the engine."""

    generation: Generation
    prompt_token_ids: list[int]
    #: Maximum number of new tokens.
    max_output_tokens: int
    #: Index of the role's adapter.
    adapter_id: int
    detokenizer: Detokenizer | StoppingDetokenizer
    #: New tokens so far; the last one may be `PENDING_TOKEN`.
    output_token_ids: list[int] = field(default_factory=list)
    #: How many output tokens were handed to the output processor.
    num_emitted_tokens: int = 0
    #: Whether the engine is done with it. Its generation ends once the output processor is, too.
    finished: bool = False
    #: How many tokens have their keys and values in the KV cache.
    num_computed_tokens: int = 0
    #: Draft of the tokens after the last one, verified by the next step.
    draft_token_ids: list[int] = field(default_factory=list)
    #: Whether it may have a draft.
    speculation_enabled: bool = True
    #: Row of the KV cache, or of the block tables, while it runs.
    row: int = UNALLOCATED
    #: Position in the order of arrival, kept after a preemption; None before it first waits.
    arrival_index: int | None = None
    #: Time of the first new token on the clock of `time.monotonic` (seconds).
    first_token_at: float | None = None

    def __len__(self) -> int:
        """Number of prompt and output tokens."""
        return len(self.prompt_token_ids) + len(self.output_token_ids)

    def slice(self, start: int, end: int) -> list[int]:
        """Return token ids ``start … end - 1`` of prompt and output."""
        num_prompt_tokens = len(self.prompt_token_ids)
        if end <= num_prompt_tokens:
            return self.prompt_token_ids[start:end]
        output = self.output_token_ids[max(start - num_prompt_tokens, 0) : end - num_prompt_tokens]
        return self.prompt_token_ids[start:] + output

    def last(self, count: int) -> list[int]:
        """Return the last ``count`` token ids, or all if there are fewer."""
        return self.slice(max(len(self) - count, 0), len(self))

    @property
    def decode_token_ids(self) -> list[int]:
        """The input of its decode step: the last token and the draft."""
        return [self.output_token_ids[-1], *self.draft_token_ids]

    @property
    def is_decoding(self) -> bool:
        """Whether all tokens but the last are computed."""
        return bool(self.output_token_ids) and self.num_computed_tokens == len(self) - 1

    @property
    def at_max_output_tokens(self) -> bool:
        """Whether it has its maximum of new tokens, read or not."""
        return len(self.output_token_ids) >= self.max_output_tokens

    @property
    def has_pending_token(self) -> bool:
        """Whether its last token is not read yet."""
        return bool(self.output_token_ids) and self.output_token_ids[-1] == PENDING_TOKEN

    @property
    def prompt_is_verified(self) -> bool:
        """Whether a token was sampled from finite logits, so that the prompt's keys and values are finite."""
        return bool(self.output_token_ids) and self.output_token_ids[0] != PENDING_TOKEN
