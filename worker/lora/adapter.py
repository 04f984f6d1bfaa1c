"""Read an adapter in PEFT's format, and find out which parts of HelixQ support it."""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft.utils.other import get_pattern_key

from worker.lora import LoraError
from worker.lora.files import read_json
from worker.lora.tensors import InMemoryTensors, Tensors

CONFIG_NAME = "adapter_config.json"
SAFETENSORS_WEIGHTS_NAME = "adapter_model.safetensors"
PICKLE_WEIGHTS_NAME = "adapter_model.bin"
#: What torchtune writes in its own format: beside PEFT's for most models with FullModelHFCheckpointer, alone with
#: the others. Its versions before 0.5 put the number of the epoch for "model".
_TORCHTUNE_WEIGHTS = "adapter_*.pt"
PREFIX = "base_model.model."

_FACTOR = re.compile(re.escape(PREFIX) + r"(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
#: Options of adapters that are more than B A beside a linear layer, and why.
_NON_LINEAR_OPTIONS = {
    "use_dora": "it is a DoRA, which also learns the magnitudes of columns",
    "lora_bias": "its B factors have biases",
    "fan_in_fan_out": "it stores its layers transposed",
    "layer_replication": "it repeats layers of the base",
    "trainable_token_indices": "it trains the embeddings of single tokens",
    "target_parameters": "it adapts parameters that are not linear layers",
    "alora_invocation_tokens": "it is an aLoRA, which starts at certain tokens",
    "use_qalora": "it is a QALoRA, which pools its inputs",
    "use_bdlora": "its factors are block diagonal",
    "arrow_config": "it is a router over other adapters",
    "kasa_config": "it is a KaSA, which also learns singular values and changes the base's weights",
    "monteclora_config": "it is a MonteCLoRA, which draws its factors at random",
}
#: PEFT methods that an engine serves with the same text as PEFT, which depends on base and adapter alone
#: (`tests/integration/test_adapter_kinds.py`).
SUPPORTED_METHODS = frozenset(
    {
        "ADALORA",
        "BOFT",
        "C3A",
        "DELORA",
        "FOURIERFT",
        "GRALORA",
        "HRA",
        "IA3",
        "LN_TUNING",
        "LOHA",
        "LOKR",
        "LORA",
        "MISS",
        "OFT",
        "RANDLORA",
        "ROAD",
        "SHIRA",
        "TRAINABLE_TOKENS",
        "VBLORA",
        "VERA",
        "WAVEFT",
    }
)
#: Methods that put virtual tokens before the prompt (PEFT's prompt learning).
_PROMPT_LEARNING = ("PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING", "CPT")
#: LoRA options that no engine supports: the text would depend on more than base and adapter, or PEFT
#: cannot generate it.
_UNSUPPORTED_OPTIONS = {
    "arrow_config": "it is a router over other adapters, which its folder does not contain",
    "layer_replication": "it repeats layers of the base, which PEFT cannot decode with a cache",
    "megatron_config": "it is for the layers of Megatron, and names the module that PEFT would import",
    "monteclora_config": "it is a MonteCLoRA, which draws its factors at random",
    "use_qalora": "it is a QALoRA, which needs a base quantized by GPTQ",
}
_CONVERT = "convert it to a plain LoRA with PEFT's save_pretrained(…, path_initial_model_for_weight_conversion=…)"
#: Initializations that leave the base's weights as they are. All others move a part of them into A and B.
_BASE_PRESERVING_INITS = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class Factors:
    """The factors of a linear layer, which computes W x + scaling · B A x."""

    #: Names of the tensors: A is (rank, in), B is (out, rank).
    a: str
    b: str
    #: (out, in) of the layer.
    shape: tuple[int, int]
    rank: int
    alpha: float
    scaling: float


@dataclass(frozen=True)
class Adapter:
    """An opened adapter. Its tensors stay on the disk, unless they are pickled."""

    folder: Path
    config: dict[str, Any]
    tensors: Tensors
    #: By the layer's name in the base, without ``.weight``.
    factors: dict[str, Factors]
    #: Names of the base's tensors that the adapter replaces -> their names in the adapter.
    replaced: dict[str, str]

    def get(self, module: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a layer's B (out, rank) and A (rank, in), float32.

        Raises:
            LoraError: a tensor cannot be read, or has NaN or infinite values.
        """
        factors = self.factors[module]
        return self.tensors.get_finite(factors.b), self.tensors.get_finite(factors.a)


def open_adapter(folder: Path) -> Adapter:
    """Open an adapter: read its config, and the shapes of its tensors.

    Raises:
        LoraError: a file is missing or damaged, or config and tensors contradict each other.
    """
    if not (folder / CONFIG_NAME).is_file():
        raise LoraError(f"there is no {CONFIG_NAME} in {folder}; give a folder with an adapter")
    config = read_json(folder / CONFIG_NAME)
    if "peft_type" not in config and "lora_parameters" in config:
        raise LoraError(
            f"{folder} has an adapter of MLX, whose names, shapes and scaling are not PEFT's; fuse it with "
            "mlx_lm.fuse, and make a LoRA from base and fused model with `helixq lora extract`"
        )
    _check_options(folder, config)
    if (folder / SAFETENSORS_WEIGHTS_NAME).is_file():
        tensors = Tensors([folder / SAFETENSORS_WEIGHTS_NAME])
    elif (folder / PICKLE_WEIGHTS_NAME).is_file():
        tensors = InMemoryTensors(
            folder / PICKLE_WEIGHTS_NAME, read_pickle(folder / PICKLE_WEIGHTS_NAME)
        )
    else:
        remedy = torchtune_remedy(folder) or "fetch it again"
        raise LoraError(
            f"there is neither {SAFETENSORS_WEIGHTS_NAME} nor {PICKLE_WEIGHTS_NAME} in {folder}; {remedy}"
        )
    if not tensors.entries:
        raise LoraError(f"{folder} has an adapter without tensors; fetch it again")
    names_by_module: dict[str, dict[str, str]] = {}
    replaced = {}
    for name in tensors.entries:
        if match := _FACTOR.fullmatch(name):
            names_by_module.setdefault(match["module"], {})[match["side"]] = name
        elif "lora_" not in name:
            replaced[name.removeprefix(PREFIX)] = name
    factors = {}
    if config.get("use_bdlora"):
        names_by_module.clear()  # block diagonal factors are not B and A
    for module, names in sorted(names_by_module.items(), key=lambda item: _natural_order(item[0])):
        if len(names) < 2:
            raise LoraError(
                f"{folder}: {module} has lora_{next(iter(names))} but not the other factor"
            )
        factors[module] = _factors(folder, config, module, names, tensors)
    return Adapter(folder, config, tensors, factors, replaced)


def torchtune_remedy(folder: Path) -> str:
    """Return what to do about an adapter that torchtune wrote in its own format; empty if there is none."""
    file = next(iter(sorted(folder.glob(_TORCHTUNE_WEIGHTS))), None)
    if file is None:
        return ""
    return (
        f"{file.name} is in torchtune's own format; train with its FullModelHFCheckpointer, which writes PEFT's "
        "format as well, or make a LoRA from base and merged model with `helixq lora extract`"
    )


def batching_unsupported_reasons(config: Mapping[str, Any], keys: Iterable[str]) -> list[str]:
    """Return why the batching engine does not support an adapter.

    Args:
        config: the contents of adapter_config.json.
        keys: names of the adapter's tensors in its file.

    Returns:
        a clause for each reason ("it is …"); none if the adapter is plain LoRA on linear layers.
    """
    keys = list(keys)
    reasons = merging_unsupported_reasons(config, keys)
    other_keys = [key for key in keys if not _FACTOR.fullmatch(key) and "lora_" not in key]
    if config.get("modules_to_save") or other_keys:
        modules = ", ".join(sorted(config.get("modules_to_save") or other_keys))
        reasons.append(f"it replaces whole modules ({modules})")
    return reasons


def unsupported_reason(config: Mapping[str, Any]) -> str:
    """Return why no engine supports an adapter: none has the same text as PEFT alone.

    Args:
        config: the contents of adapter_config.json.

    Returns:
        a clause ("it is …") that also says what to do; empty if an engine supports the adapter.
    """
    kind = config.get("peft_type")
    if kind in _PROMPT_LEARNING:
        return (
            f"it is of the type {kind}: its virtual tokens would use context that is not "
            "counted; give a LoRA"
        )
    if kind not in SUPPORTED_METHODS:
        return (
            f"it is of the type {kind}, and HelixQ serves {', '.join(sorted(SUPPORTED_METHODS))}; give a LoRA: "
            "`helixq lora extract` makes one from the base and the merged model"
        )
    for option, reason in _UNSUPPORTED_OPTIONS.items():
        if config.get(option):
            return f"{reason}; give a plain LoRA"
    init = str(config.get("init_lora_weights"))
    if init.startswith("pissa_niter"):
        return (
            f"its initialization ({init}) removes a random part of the base each time it loads; "
            f"{_CONVERT}"
        )
    if init in ("corda", "loftq"):
        return (
            f"its initialization ({init}) changes the base by data that its folder does not contain; "
            f"{_CONVERT}"
        )
    return ""


def merging_unsupported_reasons(config: Mapping[str, Any], keys: Iterable[str]) -> list[str]:
    """Return why an adapter cannot be added to the base's weights.

    Arguments and result are those of `batching_unsupported_reasons`.
    """
    kind = config.get("peft_type")
    if kind != "LORA":
        return [f"it is not a LoRA but of the type {kind}"]
    reasons = [reason for option, reason in _NON_LINEAR_OPTIONS.items() if config.get(option)]
    if config.get("bias", "none") != "none":
        reasons.append(f"it has trained biases (bias={config['bias']!r})")
    init = config.get("init_lora_weights", True)
    if str(init).lower() == "gaussian":  # PEFT ignores its case
        init = "gaussian"
    if init not in _BASE_PRESERVING_INITS:
        reasons.append(f"its initialization ({init}) changes the base's weights")
    unknown = [key for key in keys if "lora_" in key and not _FACTOR.fullmatch(key)]
    if unknown and not reasons:
        reasons.append(f"{unknown[0]} is not a factor of a linear layer")
    return reasons


def read_pickle(file: Path) -> dict[str, torch.Tensor]:
    """Read a pickled adapter as plain tensors. Code in it does not run.

    Raises:
        LoraError: it is damaged, or contains more than named tensors.
    """
    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise LoraError(
            f"{file} cannot be read (it is damaged, or contains more than tensors)"
        ) from error
    except (OSError, EOFError, RuntimeError, ValueError, KeyError) as error:
        raise LoraError(f"{file} cannot be read (it is damaged); fetch it again") from error
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor)
        for name, tensor in tensors.items()
    ):
        raise LoraError(f"{file} does not contain named tensors")
    return tensors


def _check_options(folder: Path, config: Mapping[str, Any]) -> None:
    """Check the options that are read before PEFT checks them, and regular expressions.

    Raises:
        LoraError: PEFT cannot use an option's value.
    """
    kind = config.get("peft_type")
    if kind is not None and not isinstance(kind, str):
        raise LoraError(
            f"{folder}: {CONFIG_NAME} has peft_type={kind!r}, which is not the name of a method"
        )
    expressions = []
    for option in ("rank_pattern", "alpha_pattern"):
        if option not in config or (config[option] is None and kind != "LORA"):
            continue
        if not isinstance(config[option], dict):
            raise LoraError(
                f"{folder}: {CONFIG_NAME} has {option}={config[option]!r}, which is not an object of names "
                "and numbers"
            )
        expressions += [(option, key) for key in config[option]]
    for option in ("target_modules", "exclude_modules", "layers_pattern"):
        value = config.get(option)
        if isinstance(value, str):
            expressions.append((option, value))
    for option, expression in expressions:
        try:
            re.compile(expression)
        except re.error as error:
            raise LoraError(
                f"{folder}: {CONFIG_NAME} has {expression!r} in {option}, which is not a regular expression "
                f"({error})"
            ) from error


def _factors(
    folder: Path, config: Mapping[str, Any], module: str, names: dict[str, str], tensors: Tensors
) -> Factors:
    a, b = tensors.entries[names["A"]].shape, tensors.entries[names["B"]].shape
    if len(a) != 2 or len(b) != 2 or a[0] != b[1]:
        raise LoraError(
            f"{folder}: the factors of {module} have the shapes {b} and {a}, which do not "
            "fit the B and A of a linear layer"
        )
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    if a[0] == 0:
        raise LoraError(f"{folder}: {module} has rank 0, so its factors are empty")
    rank = ranks.get(get_pattern_key(list(ranks), module), config.get("r"))
    if rank != a[0]:
        raise LoraError(f"{folder}: {module} has rank {a[0]}, but {CONFIG_NAME} says {rank!r}")
    alpha = alphas.get(get_pattern_key(list(alphas), module), config.get("lora_alpha"))
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise LoraError(
            f"{folder}: {CONFIG_NAME} has the lora_alpha {alpha!r} for {module}, which is not a finite number"
        )
    scaling = alpha / (math.sqrt(a[0]) if config.get("use_rslora") else a[0])
    return Factors(names["A"], names["B"], (b[0], a[1]), a[0], alpha, scaling)


def _natural_order(name: str) -> list[tuple[int, str]]:
    """Return a sort key that puts layer 10 after layer 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


def mismatched_base(config: Mapping[str, Any], name: str, base: Path) -> str | None:
    """Return the base that an adapter's config names if it differs from the given base, else None.

    Only the last part of a folder or hub id is compared, since folders are moved.

    Args:
        config: the contents of adapter_config.json.
        name: the given base: a folder, or a hub id with optional ``@revision``.
        base: the given base's folder.
    """
    named = str(config.get("base_model_name_or_path") or "")
    revision = str(config.get("revision") or "")
    base_name, _, base_revision = name.partition("@")
    if not named:
        return None
    if Path(named).is_dir() and Path(named).resolve() == base.resolve():
        return None
    if Path(named).name != Path(base_name).name:
        return f"{named}@{revision}" if revision else named
    # A folder's revision is unknown. A hub id without a revision means main.
    if revision and not Path(base_name).is_dir() and revision != (base_revision or "main"):
        return f"{named}@{revision}"
    return None
