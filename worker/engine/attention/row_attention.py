"""The attention of a step over the cache: what decodes together, chunks of prompts one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from worker.engine.kv.row_cache import KVCache

#: The name under which transformers finds `attend_for_transformers`.
ATTENTION = "helixq"
#: On a GPU, attention reaches over the longest row rounded up to a multiple: few shapes.
ROUND = 64
#: On a CPU, what sequences have in common is looked at once from so many sequences and tokens on.
LEAST_COUNT, LEAST_COMMON = 4, 32


@dataclass(frozen=True)
class Segment:
    """Successive tokens of one sequence within a step."""

    row: int
    #: Position of the first one in its sequence.
    start: int
    #: How many.
    length: int


@dataclass(frozen=True)
class Decoding:
    """Sequences with a few tokens each within a step, whose attention is computed together."""

    #: Rows of the cache.
    rows: Sequence[int]
    #: Positions of their first tokens in the sequences.
    at: Sequence[int]
    #: How many tokens each has: a drawn one, and drafts.
    lengths: Sequence[int]
    #: So many tokens at the beginning are the same in all of them.
    common: int = 0


class Group:
    """Decoding tokens, and the rows of the cache that they look at."""

    def __init__(
        self,
        tokens: slice,
        at: Tensor,
        look: slice | Tensor,
        reach: int,
        *,
        order: Tensor | None = None,
        common: int = 0,
        first: int = 0,
    ) -> None:
        """
        Args:
            tokens: of the step, those of the group.
            at: the positions of the rows' tokens, (seen, width) int64; every row that is looked at has
                room for so many tokens.
            look: the rows, a slice or int64 (seen).
            reach: no position is this one or beyond.
            order: where each token is among the seen x width places, int64; None if it is just so.
            common: so many tokens are looked at once for all.
            first: the row where they are looked at.
        """
        self.tokens = tokens
        self.seen, self.width = at.shape
        self.reach = reach
        self.order = order
        self.common = common
        self.first = first
        self._at = at
        self._look: Any = look
        self._masks: dict[int | None, Tensor] = {}

    @classmethod
    def of(cls, decoding: Decoding, start: int, cache: KVCache) -> Group:
        """Lay out sequences.

        Args:
            decoding: the sequences.
            start: which token of the step the first one's is.
            cache: where keys and values are.
        """
        rows, count, lengths = decoding.rows, len(decoding.rows), decoding.lengths
        device, width = cache.device, max(lengths)
        worth = count >= LEAST_COUNT and decoding.common >= LEAST_COMMON
        reach = max(at + n for at, n in zip(decoding.at, lengths, strict=True))
        if device.type != "cpu":
            reach = min(cache.context, -(-reach // ROUND) * ROUND)
        # A view from the lowest to the highest row costs nothing, and the rows between that do not
        # belong to it cost their attention; picking single rows copies them.
        low, high = min(rows), max(rows) + 1
        picked = high - low > 2 * count
        seen = count if picked else high - low
        order = list(range(count)) if picked else [row - low for row in rows]
        places = [i * width + j for i, n in zip(order, lengths, strict=True) for j in range(n)]
        # A row that does not belong to it sees its first tokens: what comes out is dropped, but is
        # a number. Places beyond a row's tokens get zeros.
        seeing = [0] * seen
        for i, position in zip(order, decoding.at, strict=True):
            seeing[i] = position
        ahead = torch.arange(width, device=device)
        just_so = places == list(range(seen * width))
        return cls(
            slice(start, start + sum(lengths)),
            torch.tensor(seeing, device=device)[:, None] + ahead,
            torch.tensor(rows, device=device) if picked else slice(low, high),
            reach,
            order=None if just_so else torch.tensor(places, device=device),
            common=decoding.common if worth else 0,
            first=rows[0],
        )

    def spread(self, queries: Tensor) -> Tensor:
        """Put the tokens' queries where the rows that are looked at want them.

        Args:
            queries: (tokens, key-value heads, queries of one, head size).

        Returns:
            (seen, key-value heads, width x queries of one, head size).
        """
        if self.order is not None:
            room = queries.new_zeros(self.seen * self.width, *queries.shape[1:])
            queries = room.index_copy_(0, self.order, queries)
        if self.width == 1:
            return queries
        _, heads, of_one, size = queries.shape
        queries = queries.view(self.seen, self.width, heads, of_one, size).transpose(1, 2)
        return queries.reshape(self.seen, heads, self.width * of_one, size)

    def gather(self, found: Tensor, of_one: int) -> Tensor:
        """Undo `spread`.

        Args:
            found: as `spread` returns it.
            of_one: how many queries of a token share a head.
        """
        if self.width > 1:
            _, heads, _, size = found.shape
            found = found.view(self.seen, heads, self.width, of_one, size).transpose(1, 2)
            found = found.reshape(-1, heads, of_one, size)
        return found if self.order is None else found[self.order]

    def look(self, tensor: Tensor, start: int) -> Tensor:
        """Return a layer's keys or values as the group sees them, from a position on.

        Args:
            tensor: (rows, heads, context, head size).
            start: the position.

        Returns:
            (seen, heads, reach - start, head size).
        """
        found: Tensor = tensor[self._look, :, start : self.reach]
        return found

    def mask(self, window: int | None, dtype: torch.dtype, of_one: int) -> Tensor:
        """Return what is added to the scores: 0, or minus infinity.

        Args:
            window: a token sees so many tokens, itself included; all before it if None.
            dtype: of the scores.
            of_one: how many queries of a token share a head.

        Returns:
            (seen, 1, width x of_one, reach), or (seen, 1, 1, reach) for a width of 1.
        """
        if window not in self._masks:
            other = torch.arange(self.reach, device=self._at.device)
            sees = _sees(self._at[..., None], other, window)
            mask = _added(sees, dtype)
            if self.width > 1:
                mask = mask.repeat_interleave(of_one, 1)
            self._masks[window] = mask[:, None]
        return self._masks[window]


class _Chunk:
    """A segment's tokens, and what they see."""

    def __init__(self, segment: Segment, start: int, device: torch.device) -> None:
        self.row = segment.row
        self.tokens = slice(start, start + segment.length)
        self.end = segment.start + segment.length
        self._at = torch.arange(segment.start, self.end, device=device)
        self._masks: dict[int | None, Tensor] = {}

    def mask(self, window: int | None, dtype: torch.dtype, of_one: int) -> Tensor:
        """Return what is added to the scores, (of_one x length, end); layers share it."""
        if window not in self._masks:
            other = torch.arange(self.end, device=self._at.device)
            mask = _added(_sees(self._at[:, None], other, window), dtype)
            self._masks[window] = mask.repeat(of_one, 1)
        return self._masks[window]


class Attention(Protocol):
    """Where the tokens of a step belong, and what they see there."""

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        layer: int,
        scaling: float,
        window: int | None,
    ) -> Tensor:
        """Store a step's keys and values, and attend over all that were stored; as `Layout.attend`."""


class Layout:
    """Where the tokens of a step belong in the rows of a cache."""

    def __init__(
        self,
        cache: KVCache,
        rows: Tensor,
        positions: Tensor,
        groups: Sequence[Group],
        chunks: Sequence[_Chunk] = (),
    ) -> None:
        """
        Args:
            cache: the cache.
            rows: of the cache, each token's, (tokens) int64.
            positions: each token's in its sequence, (tokens) int64.
            groups: the tokens that decode, and what they look at.
            chunks: all others.
        """
        self.cache = cache
        self.groups = groups
        self.chunks = chunks
        self.positions = positions
        #: Where each head of each token is in a layer's keys and values, if they were a list of
        #: heads' vectors: (tokens x heads), int64.
        heads = rows[:, None] * cache.heads + torch.arange(cache.heads, device=cache.device)
        self.places = (heads * cache.context + positions[:, None]).view(-1)

    @classmethod
    def of(cls, cache: KVCache, parts: Sequence[Decoding | Segment]) -> Layout:
        """Lay out what a step computes, in the order of its tokens."""
        groups: list[Group] = []
        chunks: list[_Chunk] = []
        rows: list[int] = []
        positions: list[int] = []
        for part in parts:
            if isinstance(part, Decoding):
                groups.append(Group.of(part, len(rows), cache))
                for row, at, length in zip(part.rows, part.at, part.lengths, strict=True):
                    rows += [row] * length
                    positions += range(at, at + length)
            else:
                chunks.append(_Chunk(part, len(rows), cache.device))
                rows += [part.row] * part.length
                positions += range(part.start, part.start + part.length)
        device = cache.device
        at_once = torch.tensor([rows, positions], device=device)  # one copy to the device
        return cls(cache, at_once[0], at_once[1], groups, chunks)

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        layer: int,
        scaling: float,
        window: int | None,
    ) -> Tensor:
        """Store a step's keys and values, and attend over the cache.

        Args:
            query: (tokens, heads, head size), rotated.
            key: (tokens, key-value heads, head size), rotated.
            value: as key, not rotated.
            layer: which one.
            scaling: of the scores.
            window: a token sees so many tokens, itself included; all before it if None.

        Returns:
            (tokens, heads, head size).
        """
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        tokens, heads, size = query.shape
        shared = keys.shape[1]
        for cached, new in ((keys, key), (values, value)):
            cached.view(-1, size).index_copy_(0, self.places, new.reshape(-1, size))
        # Query heads that share a key head become queries of one head: nothing is repeated.
        of_one = heads // shared
        queries = query.view(tokens, shared, of_one, size)
        out = torch.empty_like(queries)
        for group in self.groups:
            q = group.spread(queries[group.tokens])
            mask = group.mask(window, q.dtype, of_one)
            found = _attend_group(q, keys, values, group, mask, scaling, window)
            out[group.tokens] = group.gather(found, of_one)
        for chunk in self.chunks:
            q = queries[chunk.tokens].permute(1, 2, 0, 3)
            found = scaled_dot_product_attention(
                q.reshape(1, shared, -1, size),
                keys[chunk.row, :, : chunk.end][None],
                values[chunk.row, :, : chunk.end][None],
                attn_mask=chunk.mask(window, q.dtype, of_one),
                scale=scaling,
            )
            out[chunk.tokens] = found.view(q.shape).permute(2, 0, 1, 3)
        return out.view(tokens, heads, size)


def _sees(at: Tensor, other: Tensor, window: int | None) -> Tensor:
    found = other <= at
    return found if window is None else found & (other > at - window)


def _added(sees: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what makes scores count where something is seen: 0 there, elsewhere minus infinity."""
    return torch.zeros(sees.shape, dtype=dtype, device=sees.device).masked_fill_(~sees, -torch.inf)


def _attend_group(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    group: Group,
    mask: Tensor,
    scaling: float,
    window: int | None,
) -> Tensor:
    """Attend (seen, key-value heads, queries, head size) over a layer's keys and values."""
    common = group.common if window is None or group.reach <= window else 0
    own_keys, own_values = group.look(keys, common), group.look(values, common)
    if q.device.type != "cpu":
        return scaled_dot_product_attention(q, own_keys, own_values, attn_mask=mask, scale=scaling)
    # On a CPU, products of single queries are faster plain than blocked.
    q = q * scaling
    if not common:
        scores = torch.matmul(q, own_keys.transpose(-1, -2)).add_(mask)
        return torch.matmul(scores.softmax(-1), own_values)
    # All see the same keys and values there: one read of memory for all, and one product.
    seen, heads, queries, size = q.shape
    common_keys, common_values = (x[group.first, :, :common] for x in (keys, values))
    together = q.transpose(0, 1).reshape(heads, seen * queries, size)
    first = torch.matmul(together, common_keys.transpose(-1, -2))
    first = first.view(heads, seen, queries, common).transpose(0, 1)
    rest = torch.matmul(q, own_keys.transpose(-1, -2)).add_(mask[..., common:])
    shares = torch.cat([first, rest], dim=-1).softmax(-1)
    found = torch.matmul(shares[..., common:], own_values)
    together = shares[..., :common].transpose(0, 1).reshape(heads, seen * queries, common)
    first = torch.matmul(together, common_values).view(heads, seen, queries, size)
    return found.add_(first.transpose(0, 1))


def attend_for_transformers(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: Attention,
    scaling: float,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """`Attention.attend` as transformers' models call it: (1, heads, tokens, head size) in, tokens first out."""
    del attention_mask  # the layout has it
    index: Any = module.layer_idx  # transformers sets it
    found = layout.attend(
        query[0].transpose(0, 1).contiguous(),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        layer=index,
        scaling=scaling,
        window=sliding_window,
    )
    return found[None], None


AttentionInterface.register(ATTENTION, attend_for_transformers)
