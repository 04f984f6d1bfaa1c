"""What a model is made of, by its config alone, and which tensor of a checkpoint is which part."""

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
from worker.lora.files import Tensors, open_checkpoint, read_json

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
    "num_local_experts",
    "num_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
)


#: Other parts say nothing about what a model computes of a text.
_MAY_DIFFER = re.compile(
    r"^_|_token_id$|drop(out)?$|_pdrop$|dtype$|^output_|^(id2label|label2id|problem_type|architectures|auto_map"
    r"|initializer_range|max_position_embeddings|pretraining_tp|return_dict|router_aux_loss_coef"
    r"|transformers_version|transformers_weights|use_cache)$"
)


@dataclass
class Layout:
    """The names of a model's tensors, by what they are."""

    #: Weights of the linear layers within the decoder, in order, and their shapes (out, in).
    linear: dict[str, tuple[int, int]] = field(default_factory=dict)
    #: Everything else: embeddings, head, norms, biases, other; experts are parameters that hold a
    #: matrix for each expert of a mixture.
    groups: dict[str, list[str]] = field(
        default_factory=lambda: {
            kind: [] for kind in ("embeddings", "head", "norms", "biases", "experts", "other")
        }
    )
    #: Whether the head has no tensor of its own but uses the embeddings'.
    tied: bool = False

    @property
    def names(self) -> list[str]:
        return [*self.linear, *(name for names in self.groups.values() for name in names)]


@dataclass(frozen=True)
class Weights:
    """A model's tensors on the disk, by the names that the model has for them."""

    #: Those without a place in the model, and the parts of `parts`, have their stored names.
    tensors: Tensors
    #: Parameters that transformers puts together from several tensors -> the names of these.
    parts: dict[str, list[str]]
    #: Parameters of the head that are not stored, since the model was saved without its head.
    headless: list[str]


def skeleton(folder: Path) -> Any:
    """Build a model from its config, without memory or values: on the meta device.

    Raises:
        LoraError: transformers knows no such causal language model.
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
            f"{folder / 'config.json'} describes no causal language model that transformers knows"
        ) from error


def layout(folder: Path) -> Layout:
    """Read a model's config and find out what its tensors are. No weights are read.

    Raises:
        LoraError: transformers knows no such causal language model.
    """
    return describe(skeleton(folder))


def describe(model: Any) -> Layout:
    """Find out what the tensors of a `skeleton` are."""
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
        elif parameter.ndim == 3 and "expert" in f"{name} {type(module).__name__}".lower():
            kind = "experts"
        else:
            kind = "norms" if type(module).__name__.endswith("Norm") else "other"
        found.groups[kind].append(name)
    return found


def open_model(folder: Path, model: Any) -> Weights:
    """Open a model's tensors by the names that transformers gives them when it loads them.

    transformers renames some, adds or removes the prefix of the model without its head, and stacks
    the experts of a mixture.

    Args:
        folder: the model's.
        model: its `skeleton`.

    Raises:
        LoraError: a tensor is missing or stored twice, tied ones differ, or the model is quantized.
    """
    if read_json(folder / "config.json").get("quantization_config"):
        raise LoraError(f"{folder} is a quantized model; give the one that it was made from")
    tensors = open_checkpoint(folder)
    wanted = model.state_dict()
    prefix = model.base_model_prefix
    transforms = get_model_conversion_mapping(model)
    renamings = [entry for entry in transforms if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in transforms if isinstance(entry, WeightConverter)]
    names: dict[str, str] = {}
    parts: dict[str, list[str]] = {}
    for stored in tensors.entries:
        name, pattern = rename_source_key(stored, renamings, converters, prefix, wanted)
        if name not in wanted and stored in wanted:
            name, pattern = stored, None
        if pattern is not None:
            targets = next(c for c in converters if pattern in c.source_patterns).target_patterns
            for target in targets:
                parts.setdefault(name.replace(targets[0], target), []).append(stored)
            name = stored
        elif name not in wanted:
            name = stored
        if name in names:
            raise LoraError(f"{folder} has {name} twice, as {names[name]} and as {stored}")
        names[name] = stored
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
    plan = describe(model)
    bare = not any(stored.startswith(f"{prefix}.") for stored in tensors.entries)
    headless = [name for name in plan.groups["head"] if name not in names] if bare else []
    for name in plan.names:
        if name not in names and name not in parts and name not in headless:
            raise LoraError(f"{folder} has no tensor {name}, which its config.json asks for")
        if name in parts and name in plan.linear:
            raise LoraError(
                f"{folder} stores {name} as {parts[name][0]}, in a form that transformers computes it "
                "from; these commands take layers only as they are"
            )
    return Weights(tensors.under(names), parts, headless)


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
    return [
        f"{key} is {theirs.get(key)} in {tuned} and {ours.get(key)} in {base}, which no adapter mends"
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key) != theirs.get(key) and not _MAY_DIFFER.search(key)
    ]


def _config(folder: Path) -> Any:
    """Read a config; transformers gives each model's its own type."""
    file = folder / "config.json"
    read_json(file)
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # a bad value may make transformers raise anything
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
