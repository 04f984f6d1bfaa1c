"""What a model is made of, by its config alone: which tensors are linear layers, which are not."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from worker.lora import LoraError
from worker.lora.files import Tensors, read_json

#: Parts of the config that an adapter cannot carry: it would be added to another function.
_MUST_AGREE = (
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "hidden_act",
    "rms_norm_eps",
    "rope_parameters",
    "tie_word_embeddings",
    "attention_bias",
    "mlp_bias",
)


@dataclass
class Layout:
    """The names of a model's tensors, by what they are."""

    #: Weights of the linear layers within the decoder, in order, and their shapes (out, in).
    linear: dict[str, tuple[int, int]] = field(default_factory=dict)
    #: Everything else: embeddings, head, norms, biases, other.
    groups: dict[str, list[str]] = field(
        default_factory=lambda: {
            kind: [] for kind in ("embeddings", "head", "norms", "biases", "other")
        }
    )
    #: Whether the head has no tensor of its own but uses the embeddings'.
    tied: bool = False

    @property
    def names(self) -> list[str]:
        return [*self.linear, *(name for names in self.groups.values() for name in names)]


def layout(folder: Path) -> Layout:
    """Read a model's config and find out what its tensors are. No weights are read.

    Raises:
        LoraError: transformers knows no such causal language model.
    """
    try:
        # Without memory or values: on the meta device.
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]  # transformers has no types there
                _config(folder), trust_remote_code=False
            )
    except (ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise LoraError(
            f"{folder / 'config.json'} describes no causal language model that transformers knows"
        ) from error
    found = Layout()
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    found.tied = head.weight is embeddings.weight
    # A tied parameter is named once, by its first place.
    for name, parameter in model.named_parameters():
        module = model.get_submodule(name.rpartition(".")[0])
        linear = isinstance(module, nn.Linear)
        if module is embeddings:
            kind = "embeddings"
        elif module is head:
            kind = "head"
        elif linear and parameter.ndim == 2:
            found.linear[name] = (parameter.shape[0], parameter.shape[1])
            continue
        elif linear:
            kind = "biases"
        else:
            kind = "norms" if type(module).__name__.endswith("Norm") else "other"
        found.groups[kind].append(name)
    if not found.linear:
        raise LoraError(f"{folder / 'config.json'} describes a model without linear layers")
    return found


def compare(base: Path, tuned: Path, *, ignore_tokenizer: bool = False) -> list[str]:
    """Make sure that one model can be a fine-tune of the other.

    Returns:
        warnings: differences that may matter.

    Raises:
        LoraError: configs or vocabularies differ.
    """
    ours, theirs = _config(base).to_dict(), _config(tuned).to_dict()
    for key in _MUST_AGREE:
        if ours.get(key) != theirs.get(key):
            raise LoraError(
                f"{tuned / 'config.json'} is no fine-tune of {base / 'config.json'}: {key} is "
                f"{theirs.get(key)} and not {ours.get(key)}"
            )
    if not ignore_tokenizer:
        mine, other = _vocabulary(base), _vocabulary(tuned)
        if mine and other and mine != other:
            odd = sorted(set(mine.items()) ^ set(other.items()))[0][0]
            raise LoraError(
                f"{tuned / 'tokenizer.json'} has another vocabulary than "
                f"{base / 'tokenizer.json'} (for example {odd!r}), so an adapter would see other "
                "tokens; --ignore-tokenizer if that is meant"
            )
    if ours.get("sliding_window") != theirs.get("sliding_window"):
        return [
            f"sliding_window is {theirs.get('sliding_window')} in {tuned} and "
            f"{ours.get('sliding_window')} in {base}: long texts differ, which no adapter mends"
        ]
    return []


def check(folder: Path, tensors: Tensors, wanted: Layout) -> None:
    """Make sure that a checkpoint has all tensors of a model.

    Raises:
        LoraError: one is missing.
    """
    for name in wanted.names:
        if name not in tensors.entries:
            raise LoraError(f"{folder} has no tensor {name}, which its config.json asks for")


def _config(folder: Path) -> Any:
    """Read a config; transformers gives each model's its own type."""
    file = folder / "config.json"
    read_json(file)
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise LoraError(f"{file} is no config that transformers knows") from error


def _vocabulary(folder: Path) -> dict[str, int]:
    """Return the ids of a tokenizer's tokens; nothing if the folder has no tokenizer."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        return {}
    content = read_json(file)
    try:
        vocabulary = content["model"]["vocab"]
        if isinstance(vocabulary, list):  # Unigram: [token, score] in order of the ids
            vocabulary = {token: at for at, (token, _) in enumerate(vocabulary)}
        added = {token["content"]: token["id"] for token in content.get("added_tokens", [])}
        return {**vocabulary, **added}
    except (KeyError, TypeError, ValueError) as error:
        raise LoraError(f"{file} is no tokenizer ({json.dumps(str(error))})") from error
