"""Classify a model's parameters by its config, and find them in a checkpoint."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from worker.lora import LoraError
from worker.lora.files import read_json
from worker.lora.tensors import Tensors
from worker.lora.weight_files import open_checkpoint

#: Config values that base and fine-tune must share: otherwise they compute different functions, and no
#: adapter can make up for it.
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
    "num_local_experts",
    "num_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
)

#: Config values that do not change what a model computes. Any other difference causes a warning.
_MAY_DIFFER = re.compile(
    r"^_|_token_id$|drop(out)?$|_pdrop$|dtype$|^output_|^(id2label|label2id|problem_type|architectures|auto_map"
    r"|initializer_range|max_position_embeddings|pretraining_tp|return_dict|router_aux_loss_coef"
    r"|transformers_version|transformers_weights|use_cache)$"
)


@dataclass
class Layout:
    """The names of a model's parameters, by kind."""

    #: Weights of the decoder's linear layers, in order, and their shapes (out, in).
    linear: dict[str, tuple[int, int]] = field(default_factory=dict)
    #: All other parameters: embeddings, head, norms, biases, experts, other. A parameter in experts has a
    #: matrix for each expert of a mixture.
    groups: dict[str, list[str]] = field(
        default_factory=lambda: {
            kind: [] for kind in ("embeddings", "head", "norms", "biases", "experts", "other")
        }
    )
    #: Whether the head shares the embeddings' tensor.
    tied: bool = False

    @property
    def names(self) -> list[str]:
        return [*self.linear, *(name for names in self.groups.values() for name in names)]


@dataclass(frozen=True)
class Weights:
    """A model's tensors on the disk, by the names of its parameters."""

    #: Tensors that are not parameters, and the tensors of `parts`, have their stored names.
    tensors: Tensors
    #: Parameters that transformers computes from several tensors -> the names of those tensors.
    parts: dict[str, list[str]]
    #: Parameters of the head, if the model was saved without it.
    missing_head: list[str]


def meta_model(folder: Path) -> Any:
    """Build a model from its config on PyTorch's meta device, without memory or values.

    Raises:
        LoraError: transformers does not support such a causal language model.
    """
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]  # transformers has no types there
                _config(folder), trust_remote_code=False
            )
    except LoraError:
        raise
    except Exception as error:  # a bad value may make transformers raise anything
        raise LoraError(
            f"{folder / 'config.json'} does not describe a causal language model that transformers supports"
        ) from error


def read_layout(folder: Path) -> Layout:
    """Classify a model's parameters by its config. No weights are read.

    Raises:
        LoraError: transformers does not support such a causal language model.
    """
    return classify_parameters(meta_model(folder))


def classify_parameters(model: Any) -> Layout:
    """Classify the parameters of a `meta_model`."""
    layout = Layout()
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    layout.tied = head.weight is embeddings.weight
    # A tied parameter is listed once, under its first name.
    for name, parameter in model.named_parameters():
        module = model.get_submodule(name.rpartition(".")[0])
        linear = isinstance(module, nn.Linear)
        if module is embeddings:
            kind = "embeddings"
        elif module is head:
            kind = "head"
        elif linear and parameter.ndim == 2:
            layout.linear[name] = (parameter.shape[0], parameter.shape[1])
            continue
        elif linear:
            kind = "biases"
        elif parameter.ndim == 3 and "expert" in f"{name} {type(module).__name__}".lower():
            kind = "experts"
        else:
            kind = "norms" if type(module).__name__.endswith("Norm") else "other"
        layout.groups[kind].append(name)
    return layout


def open_model(folder: Path, model: Any) -> Weights:
    """Open a model's tensors under the names that transformers gives them when it loads the model.

    transformers renames some, adds or removes the base model's prefix, and stacks the experts of a
    mixture.

    Args:
        folder: the model's folder.
        model: its `meta_model`.

    Raises:
        LoraError: a tensor is missing or stored twice, tied ones differ, or the model is quantized.
    """
    if read_json(folder / "config.json").get("quantization_config"):
        raise LoraError(f"{folder} is a quantized model; give the model that was quantized")
    tensors = open_checkpoint(folder)
    names, parts = _renamed(folder, tensors, model)
    _add_tied(folder, tensors, model, names)
    layout = classify_parameters(model)
    prefix = f"{model.base_model_prefix}."
    has_no_prefix = not any(stored.startswith(prefix) for stored in tensors.entries)
    missing_head = (
        [name for name in layout.groups["head"] if name not in names] if has_no_prefix else []
    )
    for name in layout.names:
        if name not in names and name not in parts and name not in missing_head:
            raise LoraError(f"{folder} has no tensor {name}, which its config.json requires")
        if name in parts and name in layout.linear:
            raise LoraError(
                f"{folder} stores {name} as {parts[name][0]}, from which transformers computes it; "
                "these commands support only layers that are stored as they are"
            )
    return Weights(tensors.renamed(names), parts, missing_head)


def _renamed(
    folder: Path, tensors: Tensors, model: Any
) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Return the stored name of each tensor by transformers' name, and the stored parts of those that it computes."""
    state = model.state_dict()
    transforms = get_model_conversion_mapping(model)
    renamings = [entry for entry in transforms if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in transforms if isinstance(entry, WeightConverter)]
    names: dict[str, str] = {}
    parts: dict[str, list[str]] = {}
    for stored in tensors.entries:
        name, pattern = rename_source_key(
            stored, renamings, converters, model.base_model_prefix, state
        )
        if name not in state and stored in state:
            name, pattern = stored, None
        if pattern is not None:
            targets = next(c for c in converters if pattern in c.source_patterns).target_patterns
            for target in targets:
                parts.setdefault(name.replace(targets[0], target), []).append(stored)
            name = stored
        elif name not in state:
            name = stored
        if name in names:
            raise LoraError(f"{folder} has {name} twice, as {names[name]} and as {stored}")
        names[name] = stored
    return names, parts


def _add_tied(folder: Path, tensors: Tensors, model: Any, names: dict[str, str]) -> None:
    """Add to ``names`` those of tied tensors of which one is stored; check that both are equal if both are."""
    for name, tied in model.all_tied_weights_keys.items():
        if name in names and tied in names:
            if not torch.equal(tensors.get(names[name]), tensors.get(names[tied])):
                raise LoraError(
                    f"{folder}: config.json ties {name} to {tied}, but both are stored and differ, so "
                    "transformers does not tie them; set tie_word_embeddings to false in it"
                )
        elif name in names:
            names[tied] = names[name]
        elif tied in names:
            names[name] = names[tied]


def compare(base: Path, tuned: Path, *, ignore_tokenizer: bool = False) -> list[str]:
    """Check that ``tuned`` can be a fine-tune of ``base``.

    Returns:
        warnings of other differences that may change what the model computes.

    Raises:
        LoraError: their configs or vocabularies are incompatible.
    """
    base_config, tuned_config = _config(base).to_dict(), _config(tuned).to_dict()
    for key in _MUST_AGREE:
        if base_config.get(key) != tuned_config.get(key):
            raise LoraError(
                f"{tuned / 'config.json'} is not a fine-tune of {base / 'config.json'}: {key} is "
                f"{tuned_config.get(key)} and not {base_config.get(key)}"
            )
    if not ignore_tokenizer:
        base_vocabulary, tuned_vocabulary = _vocabulary(base), _vocabulary(tuned)
        if base_vocabulary and tuned_vocabulary and base_vocabulary != tuned_vocabulary:
            token = sorted(set(base_vocabulary.items()) ^ set(tuned_vocabulary.items()))[0][0]
            raise LoraError(
                f"{tuned / 'tokenizer.json'} and {base / 'tokenizer.json'} have different "
                f"vocabularies (for example {token!r}), so an adapter would get other tokens; use "
                "--ignore-tokenizer if this is intended"
            )
    return [
        f"{key} is {tuned_config.get(key)} in {tuned} and {base_config.get(key)} in {base}, which an "
        "adapter cannot change"
        for key in sorted(base_config.keys() | tuned_config.keys())
        if base_config.get(key) != tuned_config.get(key) and not _MAY_DIFFER.search(key)
    ]


def _config(folder: Path) -> Any:
    """Read a config. Each model type has its own class in transformers."""
    file = folder / "config.json"
    read_json(file)
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # a bad value may make transformers raise anything
        raise LoraError(f"{file} is not a config that transformers supports") from error


def _vocabulary(folder: Path) -> dict[str, int]:
    """Return a tokenizer's tokens and their ids; empty if the folder has no tokenizer."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        return {}
    content = read_json(file)
    try:
        vocabulary = content["model"]["vocab"]
        if isinstance(vocabulary, list):  # Unigram: [token, score], in order of ids
            vocabulary = {token: token_id for token_id, (token, _) in enumerate(vocabulary)}
        added = {token["content"]: token["id"] for token in content.get("added_tokens", [])}
        return {**vocabulary, **added}
    except (KeyError, TypeError, ValueError) as error:
        raise LoraError(f"{file} is not a tokenizer ({json.dumps(str(error))})") from error
