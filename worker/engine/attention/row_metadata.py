"""Attention metadata of a step over rows: decoding sequences together, prefill chunks one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

#: Cascade attention is used from this number of sequences and of common prefix tokens on.
MIN_CASCADE_SEQS, MIN_CASCADE_TOKENS = 4, 32
#: What attention costs besides the keys of its rows, as the number of keys that take as long: a row, and a span.
ROW_COST, SPAN_COST = 85, 1400


@dataclass(frozen=True)
class PrefillSpan:
    """A prefill chunk: successive tokens of one sequence."""

    row: int
    #: Position of the first token in its sequence.
    start: int
    query_len: int


@dataclass(frozen=True)
class DecodeSpan:
    """Decoding sequences whose attention is computed together."""

    #: Rows of the cache.
    rows: Sequence[int]
    #: Positions of their first tokens in the sequences.
    starts: Sequence[int]
    #: Number of tokens of each: the last token and the draft.
    query_lens: Sequence[int]
    #: Length of the prefix that all of them share; 0 if it is unknown.
    common_prefix_len: int = 0

    @property
    def is_cascade(self) -> bool:
        """Whether the common prefix is read once for all sequences."""
        long_enough = self.common_prefix_len >= MIN_CASCADE_TOKENS
        return len(self.rows) >= MIN_CASCADE_SEQS and long_enough

    @property
    def max_kv_len(self) -> int:
        """Number of keys of the longest sequence."""
        return max(start + n for start, n in zip(self.starts, self.query_lens, strict=True))

    @property
    def row_range(self) -> range | None:
        """The range of rows that is a view of the cache; None if the rows are picked, which copies them.

        A view is free, but other rows in it cost their attention.
        """
        rows = range(min(self.rows), max(self.rows) + 1)
        return rows if len(rows) <= 2 * len(self.rows) else None

    @property
    def cost(self) -> int:
        """Estimate how long its attention takes: `SPAN_COST` has the unit."""
        own_len = self.max_kv_len - (self.common_prefix_len if self.is_cascade else 0)
        if self.row_range is None:
            return SPAN_COST + len(self.rows) * (ROW_COST + 2 * own_len)
        return SPAN_COST + len(self.row_range) * (ROW_COST + own_len)

    @classmethod
    def merge(cls, spans: Sequence[DecodeSpan]) -> DecodeSpan:
        """Return one span with all sequences, which share no prefix then."""
        return cls(
            [row for span in spans for row in span.rows],
            [start for span in spans for start in span.starts],
            [length for span in spans for length in span.query_lens],
        )


class DecodeMetadata:
    """Decoding tokens, and the rows of the cache that they attend to.

    The rows are a range of the cache where that is a view, or picked rows. A range may include rows of
    others, and rows may have fewer tokens than the longest: queries are padded to
    (rows, ``max_query_len``).
    """

    def __init__(
        self,
        tokens: slice | Tensor,
        positions: Tensor,
        rows: slice | Tensor,
        max_kv_len: int,
        *,
        pad_indices: Tensor | None = None,
        common_prefix_len: int = 0,
        prefix_row: int = 0,
    ) -> None:
        """
        Args:
            tokens: the step's tokens that decode, a slice or their indices, (tokens,) int64.
            positions: of the padded queries, (rows, max_query_len) int64.
            rows: of the cache, a slice or (rows,) int64.
            max_kv_len: no position is this one or beyond.
            pad_indices: index of each token among the rows x max_query_len padded ones, int64; None if
                nothing is padded.
            common_prefix_len: length of the prefix that is read once for all sequences.
            prefix_row: the row where it is read.
        """
        self.tokens: Any = tokens
        self.num_rows, self.max_query_len = positions.shape
        self.max_kv_len = max_kv_len
        self.pad_indices = pad_indices
        self.common_prefix_len = common_prefix_len
        self.prefix_row = prefix_row
        self._positions = positions
        self._rows: Any = rows
        self._masks: dict[int | None, Tensor] = {}

    @classmethod
    def build(cls, span: DecodeSpan, tokens: Sequence[int]) -> DecodeMetadata:
        """Build the metadata of decoding sequences.

        Args:
            span: the sequences.
            tokens: indices of their tokens in the step, ascending.
        """
        rows, query_lens = span.rows, span.query_lens
        max_query_len = max(query_lens)
        row_range = span.row_range
        num_rows = len(row_range or rows)
        padded_rows = [row - row_range[0] for row in rows] if row_range else range(num_rows)
        indices = [
            row * max_query_len + i
            for row, n in zip(padded_rows, query_lens, strict=True)
            for i in range(n)
        ]
        # Rows of others attend to their first tokens: the result is dropped, but is finite. Padding
        # queries are zeros.
        starts = [0] * num_rows
        for row, start in zip(padded_rows, span.starts, strict=True):
            starts[row] = start
        offsets = torch.arange(max_query_len)
        is_padded = indices != list(range(num_rows * max_query_len))
        first, last = tokens[0], tokens[-1]
        return cls(
            slice(first, last + 1) if last - first < len(tokens) else torch.tensor(tokens),
            torch.tensor(starts)[:, None] + offsets,
            slice(row_range[0], row_range[-1] + 1) if row_range else torch.tensor(rows),
            span.max_kv_len,
            pad_indices=torch.tensor(indices) if is_padded else None,
            common_prefix_len=span.common_prefix_len if span.is_cascade else 0,
            prefix_row=rows[0],
        )

    def pad(self, queries: Tensor) -> Tensor:
        """Pad the tokens' queries to rows.

        Args:
            queries: (tokens, key-value heads, queries of one, head size).

        Returns:
            (rows, key-value heads, max_query_len x queries of one, head size).
        """
        if self.pad_indices is not None:
            padded = queries.new_zeros(self.num_rows * self.max_query_len, *queries.shape[1:])
            queries = padded.index_copy_(0, self.pad_indices, queries)
        if self.max_query_len == 1:
            return queries
        _, num_kv_heads, group_size, head_size = queries.shape
        shape = self.num_rows, self.max_query_len, num_kv_heads, group_size, head_size
        queries = queries.view(shape).transpose(1, 2)
        return queries.reshape(
            self.num_rows, num_kv_heads, self.max_query_len * group_size, head_size
        )

    def unpad(self, output: Tensor, group_size: int) -> Tensor:
        """Undo `pad`.

        Args:
            output: shaped as the result of `pad`.
            group_size: query heads of a key-value head.
        """
        if self.max_query_len > 1:
            _, num_kv_heads, _, head_size = output.shape
            shape = self.num_rows, num_kv_heads, self.max_query_len, group_size, head_size
            output = output.view(shape).transpose(1, 2)
            output = output.reshape(-1, num_kv_heads, group_size, head_size)
        return output if self.pad_indices is None else output[self.pad_indices]

    def kv_view(self, tensor: Tensor, start: int) -> Tensor:
        """Return a layer's keys or values of the rows, from a position on.

        Args:
            tensor: (rows of the cache, key-value heads, ``max_model_len``, head size).
            start: the position.

        Returns:
            (rows, key-value heads, max_kv_len - start, head size).
        """
        view: Tensor = tensor[self._rows, :, start : self.max_kv_len]
        return view

    def mask(self, sliding_window: int | None, dtype: torch.dtype, group_size: int) -> Tensor:
        """Return the additive attention mask: 0 or minus infinity. All layers share it.

        Args:
            sliding_window: as `worker.engine.attention.interface.LayerAttention` has it.
            dtype: of the scores.
            group_size: query heads of a key-value head.

        Returns:
            (rows, 1, max_query_len x group_size, max_kv_len), or (rows, 1, 1, max_kv_len) for a
            max_query_len of 1.
        """
        if sliding_window not in self._masks:
            kv_positions = torch.arange(self.max_kv_len)
            visible = _visible(self._positions[..., None], kv_positions, sliding_window)
            mask = _additive(visible, dtype)
            if self.max_query_len > 1:
                mask = mask.repeat_interleave(group_size, 1)
            self._masks[sliding_window] = mask[:, None]
        return self._masks[sliding_window]


class PrefillMetadata:
    """The tokens of a prefill chunk, and the keys that they attend to."""

    def __init__(self, span: PrefillSpan, first_token: int) -> None:
        """
        Args:
            span: the chunk.
            first_token: index in the step of its first token.
        """
        self.row = span.row
        self.tokens = slice(first_token, first_token + span.query_len)
        self.kv_len = span.start + span.query_len
        self._positions = torch.arange(span.start, self.kv_len)
        self._masks: dict[int | None, Tensor] = {}

    def mask(self, sliding_window: int | None, dtype: torch.dtype, group_size: int) -> Tensor:
        """Return the additive mask, (group_size x query length, kv_len). All layers share it."""
        if sliding_window not in self._masks:
            kv_positions = torch.arange(self.kv_len)
            visible = _visible(self._positions[:, None], kv_positions, sliding_window)
            self._masks[sliding_window] = _additive(visible, dtype).repeat(group_size, 1)
        return self._masks[sliding_window]


def _visible(positions: Tensor, kv_positions: Tensor, sliding_window: int | None) -> Tensor:
    causal = kv_positions <= positions
    if sliding_window is None:
        return causal
    return causal & (kv_positions > positions - sliding_window)


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn a boolean mask into one that is added to scores."""
    return torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, -torch.inf)
