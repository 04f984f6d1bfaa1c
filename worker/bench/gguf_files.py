"""Writes a base and its adapters in GGUF, llama.cpp's file format.

Names, metadata and the order of rows in rotated heads are those of llama.cpp's `convert_hf_to_gguf.py`
and `convert_lora_to_gguf.py`. The tokenizer is not converted: use the files with token ids.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from gguf import GGUFType, GGUFWriter, TokenType
from torch import Tensor
from transformers import AutoModelForCausalLM, MistralConfig

from worker.lora.adapter import open_adapter

_ARCHITECTURE = "llama"
_PROJECTIONS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
_OTHER_TENSORS = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
#: Control tokens by id. The last 256 ids are the byte tokens.
_CONTROL = ("<unk>", "<s>", "</s>")


def write_base(folder: Path, out: Path) -> MistralConfig:
    """Convert a Mistral model without a sliding window, in float32.

    Args:
        folder: the model, as written by `save_pretrained`.
        out: the GGUF file.

    Returns:
        the model's config, which `write_adapter` needs.
    """
    auto: Any = AutoModelForCausalLM
    model = auto.from_pretrained(folder, dtype=torch.float32)
    config: MistralConfig = model.config
    state: dict[str, Tensor] = model.state_dict()
    writer = GGUFWriter(out, _ARCHITECTURE)
    writer.add_type(GGUFType.MODEL)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads or config.num_attention_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope: Any = config.rope_parameters
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    _add_vocabulary(writer, config.vocab_size)
    for name, target in _OTHER_TENSORS.items():
        writer.add_tensor(target, state[name].numpy())
    for index in range(config.num_hidden_layers):
        for name, target in _NORMS.items():
            weight = state[f"model.layers.{index}.{name}.weight"]
            writer.add_tensor(f"blk.{index}.{target}.weight", weight.numpy())
        for name, target in _PROJECTIONS.items():
            weight = _ordered(state[f"model.layers.{index}.{name}.weight"], target, config)
            writer.add_tensor(f"blk.{index}.{target}.weight", weight.numpy())
    _finish(writer)
    return config


def write_adapter(folder: Path, out: Path, config: MistralConfig) -> None:
    """Convert an adapter of a base's projections.

    Args:
        folder: the adapter, as written by PEFT.
        out: the GGUF file.
        config: the base's.
    """
    adapter = open_adapter(folder)
    writer = GGUFWriter(out, _ARCHITECTURE)
    writer.add_type(GGUFType.ADAPTER)
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 0.0)  # B is scaled already
    for index in range(config.num_hidden_layers):
        for name, target in _PROJECTIONS.items():
            if (pair := adapter.factors.get(f"model.layers.{index}.{name}")) is None:
                continue
            b, a = adapter.get(f"model.layers.{index}.{name}")
            b = _ordered(b * pair.scaling, target, config)
            writer.add_tensor(f"blk.{index}.{target}.weight.lora_a", a.contiguous().numpy())
            writer.add_tensor(f"blk.{index}.{target}.weight.lora_b", b.numpy())
    _finish(writer)


def _ordered(weight: Tensor, target: str, config: MistralConfig) -> Tensor:
    """Reorder the rows of a rotated projection for llama.cpp.

    transformers rotates element i of a head with element i + half, llama.cpp with the adjacent one.
    """
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(target)
    if heads is None:
        return weight.contiguous()
    halves = weight.view(heads, 2, -1, weight.shape[1])
    return halves.transpose(1, 2).reshape(weight.shape).contiguous()


def _add_vocabulary(writer: GGUFWriter, size: int) -> None:
    """Name tokens by their ids, since GGUF requires names, and these are never read."""
    first_byte = size - 256
    names = [*_CONTROL, *(f"t{number}" for number in range(len(_CONTROL), first_byte))]
    kinds = [TokenType.CONTROL] * len(_CONTROL) + [TokenType.NORMAL] * (first_byte - len(_CONTROL))
    writer.add_tokenizer_model("llama")
    writer.add_token_list([*names, *(f"<0x{byte:02X}>" for byte in range(256))])
    writer.add_token_scores([0.0] * size)
    writer.add_token_types([*kinds, *[TokenType.BYTE] * 256])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def _finish(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
