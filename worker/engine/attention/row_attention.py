"""Attention of a step over a KV cache of rows, on a CPU."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from worker.engine.attention.interface import LayerAttention
from worker.engine.attention.row_metadata import (
    DecodeMetadata,
    DecodeSpan,
    PrefillMetadata,
    PrefillSpan,
)
from worker.engine.kv.row_cache import RowKVCache


class RowAttention:
    """`worker.engine.attention.interface.Attention` over rows."""

    def __init__(
        self,
        cache: RowKVCache,
        rows: Tensor,
        positions: Tensor,
        decodes: Sequence[DecodeMetadata],
        prefills: Sequence[PrefillMetadata] = (),
    ) -> None:
        """
        Args:
            cache: the KV cache.
            rows: each token's row of the cache, (tokens,) int64.
            positions: each token's position in its sequence, (tokens,) int64.
            decodes: metadata of the tokens that decode.
            prefills: metadata of all others.
        """
        self.cache = cache
        self.decodes = decodes
        self.prefills = prefills
        self.positions = positions
        heads = rows[:, None] * cache.num_kv_heads + torch.arange(cache.num_kv_heads)
        #: Index of each token's heads in a layer's keys and values, seen as a list of vectors:
        #: (tokens x key-value heads,) int64.
        self.slot_mapping = (heads * cache.max_model_len + positions[:, None]).view(-1)

    @classmethod
    def build(cls, cache: RowKVCache, spans: Sequence[DecodeSpan | PrefillSpan]) -> RowAttention:
        """Build the attention of a step from its spans, which are in the order of its tokens.

        Decoding sequences are attended together if that is faster: their spans differ only in the prefix
        that they share.
        """
        decodes: list[DecodeSpan] = []
        decode_tokens: list[list[int]] = []
        prefills: list[PrefillMetadata] = []
        rows: list[int] = []
        positions: list[int] = []
        for span in spans:
            if isinstance(span, DecodeSpan):
                first_token = len(rows)
                decodes.append(span)
                for row, start, length in zip(span.rows, span.starts, span.query_lens, strict=True):
                    rows += [row] * length
                    positions += range(start, start + length)
                decode_tokens.append(list(range(first_token, len(rows))))
            else:
                prefills.append(PrefillMetadata(span, len(rows)))
                rows += [span.row] * span.query_len
                positions += range(span.start, span.start + span.query_len)
        if len(decodes) > 1:
            merged = DecodeSpan.merge(decodes)
            if merged.cost < sum(span.cost for span in decodes):
                decodes, decode_tokens = [merged], [list(itertools.chain(*decode_tokens))]
        metadata = [
            DecodeMetadata.build(span, tokens)
            for span, tokens in zip(decodes, decode_tokens, strict=True)
        ]
        return cls(cache, torch.tensor(rows), torch.tensor(positions), metadata, prefills)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, params: LayerAttention) -> Tensor:
        layer, scaling, sliding_window = params
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        num_tokens, num_heads, head_size = query.shape
        num_kv_heads = keys.shape[1]
        for cached, new in ((keys, key), (values, value)):
            vectors = new.reshape(-1, head_size)
            cached.view(-1, head_size).index_copy_(0, self.slot_mapping, vectors)
        # Grouped-query attention: query heads of one key-value head become queries of that head, so that
        # keys and values need not be repeated.
        group_size = num_heads // num_kv_heads
        queries = query.view(num_tokens, num_kv_heads, group_size, head_size)
        output = torch.empty_like(queries)
        for decode in self.decodes:
            q = decode.pad(queries[decode.tokens])
            mask = decode.mask(sliding_window, q.dtype, group_size)
            attended = _attend_decodes(q, keys, values, decode, mask, params)
            output[decode.tokens] = decode.unpad(attended, group_size)
        for prefill in self.prefills:
            q = queries[prefill.tokens].permute(1, 2, 0, 3)
            attended = scaled_dot_product_attention(
                q.reshape(1, num_kv_heads, -1, head_size),
                keys[prefill.row, :, : prefill.kv_len][None],
                values[prefill.row, :, : prefill.kv_len][None],
                attn_mask=prefill.mask(sliding_window, q.dtype, group_size),
                scale=scaling,
            )
            output[prefill.tokens] = attended.view(q.shape).permute(2, 0, 1, 3)
        return output.view(num_tokens, num_heads, head_size)


def _attend_decodes(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    decode: DecodeMetadata,
    mask: Tensor,
    params: LayerAttention,
) -> Tensor:
    """Attend with padded queries, (rows, key-value heads, queries, head size), over a layer's cache."""
    _, scaling, window = params
    prefix_len = decode.common_prefix_len
    if window is not None and decode.max_kv_len > window:
        prefix_len = 0
    own_keys, own_values = decode.kv_view(keys, prefix_len), decode.kv_view(values, prefix_len)
    # Plain products of single queries are faster than blocked attention.
    q = q * scaling
    if not prefix_len:
        scores = torch.matmul(q, own_keys.transpose(-1, -2)).add_(mask)
        return torch.matmul(scores.softmax(-1), own_values)
    # Cascade attention: all rows share the prefix's keys and values, which are read once, in one product.
    num_rows, num_kv_heads, num_queries, head_size = q.shape
    prefix_keys, prefix_values = (x[decode.prefix_row, :, :prefix_len] for x in (keys, values))
    all_queries = q.transpose(0, 1).reshape(num_kv_heads, num_rows * num_queries, head_size)
    prefix_scores = torch.matmul(all_queries, prefix_keys.transpose(-1, -2))
    prefix_scores = prefix_scores.view(num_kv_heads, num_rows, num_queries, prefix_len)
    own_scores = torch.matmul(q, own_keys.transpose(-1, -2)).add_(mask[..., prefix_len:])
    weights = torch.cat([prefix_scores.transpose(0, 1), own_scores], dim=-1).softmax(-1)
    output = torch.matmul(weights[..., prefix_len:], own_values)
    prefix_weights = weights[..., :prefix_len].transpose(0, 1)
    prefix_weights = prefix_weights.reshape(num_kv_heads, num_rows * num_queries, prefix_len)
    prefix_output = torch.matmul(prefix_weights, prefix_values)
    prefix_output = prefix_output.view(num_kv_heads, num_rows, num_queries, head_size)
    return output.add_(prefix_output.transpose(0, 1))
