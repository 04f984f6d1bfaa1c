"""An adapter in PEFT's format: what its config and its tensors say, and who can use it.

Needs neither the settings nor the command line, so that an engine can ask `refusals`.
"""

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
from worker.lora.files import Held, Tensors, read_json

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"
PREFIX = "base_model.model."

_FACTOR = re.compile(re.escape(PREFIX) + r"(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
#: Options that make an adapter more than B A beside a linear layer, and what they do.
_SPECIAL = {
    "use_dora": "it is a DoRA, which also learns the columns' magnitudes",
    "lora_bias": "its B factors have biases",
    "fan_in_fan_out": "its layers are stored transposed",
    "layer_replication": "it repeats layers of the base",
    "trainable_token_indices": "it has trained embeddings of single tokens",
    "target_parameters": "it adapts parameters that are no linear layers",
    "alora_invocation_tokens": "it is an aLoRA, which starts at certain tokens",
    "use_qalora": "it is a QALoRA, which pools its inputs",
    "use_bdlora": "its factors are block diagonal",
    "arrow_config": "it is a router over other adapters",
    "kasa_config": "it is a KaSA, which also learns singular values and changes the base's weights",
    "monteclora_config": "it is a MonteCLoRA, which draws its factors at random",
}
#: PEFT's methods that an engine serves: the text is PEFT's, and depends on base and adapter alone
#: (`tests/integration/test_kinds.py`).
SERVED = frozenset(
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
#: Methods that put virtual tokens before the prompt.
_VIRTUAL = ("PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING", "CPT")
#: Options of a LoRA with which the text depends on more, or PEFT itself computes none.
_UNSERVABLE = {
    "arrow_config": "it is a router over other adapters, which are not in its folder",
    "layer_replication": "it repeats layers of the base, which PEFT cannot decode with a cache",
    "monteclora_config": "it is a MonteCLoRA, which draws its factors at random",
    "use_qalora": "it is a QALoRA, which needs a base quantised by GPTQ",
}
_CONVERT = "convert it to a plain LoRA with PEFT's save_pretrained(…, path_initial_model_for_weight_conversion=…)"
#: Initialisations that leave the base's weights alone; the others move a part of them into A and B.
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class Factors:
    """The pair of a linear layer: it computes W x + scaling · B A x."""

    #: Names of the tensors: A is rank x in, B is out x rank.
    a: str
    b: str
    #: (out, in) of the layer.
    shape: tuple[int, int]
    rank: int
    alpha: float
    scaling: float


@dataclass(frozen=True)
class Adapter:
    """An adapter's folder, opened: its tensors stay on the disk unless they are a pickle."""

    folder: Path
    config: dict[str, Any]
    tensors: Tensors
    #: By the name of the layer in the base, without ``.weight``.
    factors: dict[str, Factors]
    #: Names of tensors of the base that the adapter replaces -> their names in the adapter.
    replaced: dict[str, str]

    def get(self, module: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return B (out x rank) and A (rank x in) of a layer, float32 and finite."""
        pair = self.factors[module]
        return self.tensors.get_finite(pair.b), self.tensors.get_finite(pair.a)


def open_adapter(folder: Path) -> Adapter:
    """Read an adapter's config and its tensors' shapes.

    Raises:
        LoraError: a file is missing or damaged, or config and tensors contradict each other.
    """
    if not (folder / CONFIG).is_file():
        raise LoraError(f"there is no {CONFIG} in {folder}; give a folder with an adapter")
    config = read_json(folder / CONFIG)
    _check_options(folder, config)
    if (folder / WEIGHTS).is_file():
        tensors = Tensors([folder / WEIGHTS])
    elif (folder / PICKLE).is_file():
        tensors = Held(folder / PICKLE, read_pickle(folder / PICKLE))
    else:
        raise LoraError(f"there is neither {WEIGHTS} nor {PICKLE} in {folder}")
    if not tensors.entries:
        raise LoraError(f"{folder} has no tensors in its adapter; fetch it again")
    sides: dict[str, dict[str, str]] = {}
    replaced = {}
    for name in tensors.entries:
        if match := _FACTOR.fullmatch(name):
            sides.setdefault(match["module"], {})[match["side"]] = name
        elif "lora_" not in name:
            replaced[name.removeprefix(PREFIX)] = name
    factors = {}
    if config.get("use_bdlora"):
        sides.clear()  # blocks of factors, which are no B and A
    for module, pair in sorted(sides.items(), key=lambda item: _natural(item[0])):
        if len(pair) < 2:
            raise LoraError(
                f"{folder}: {module} has lora_{next(iter(pair))} and not the other factor"
            )
        factors[module] = _factors(folder, config, module, pair, tensors)
    return Adapter(folder, config, tensors, factors, replaced)


def refusals(config: Mapping[str, Any], keys: Iterable[str]) -> list[str]:
    """Say why an engine that adds stacked factors to linear layers cannot use an adapter.

    Args:
        config: what adapter_config.json holds.
        keys: the names of the adapter's tensors, as they are in its file.

    Returns:
        a clause for each reason ("it is …"); none if the adapter is plain LoRA on linear layers.
    """
    keys = list(keys)
    reasons = unmergeable(config, keys)
    full = [key for key in keys if not _FACTOR.fullmatch(key) and "lora_" not in key]
    if config.get("modules_to_save") or full:
        what = ", ".join(sorted(config.get("modules_to_save") or full))
        reasons.append(f"it replaces whole modules ({what})")
    return reasons


def unservable(config: Mapping[str, Any]) -> str:
    """Say why no engine can serve an adapter as PEFT alone would; empty if one can.

    Args:
        config: what adapter_config.json holds.

    Returns:
        a clause ("it is …") with what would be right.
    """
    kind = config.get("peft_type")
    if kind in _VIRTUAL:
        return (
            f"it is of the type {kind}: its virtual tokens would take room in the context that nobody "
            "counts; give a LoRA"
        )
    if kind not in SERVED:
        return (
            f"it is of the type {kind}, and served are {', '.join(sorted(SERVED))}; give a LoRA: "
            "`helixq lora extract` makes one of base and merged model"
        )
    for option, reason in _UNSERVABLE.items():
        if config.get(option):
            return f"{reason}; give a plain LoRA"
    start = str(config.get("init_lora_weights"))
    if start.startswith("pissa_niter"):
        return f"its initialisation ({start}) draws a part of the base at random as it loads; {_CONVERT}"
    if start in ("corda", "loftq"):
        return (
            f"its initialisation ({start}) changes the base by data that its folder does not hold; "
            f"{_CONVERT}"
        )
    return ""


def unmergeable(config: Mapping[str, Any], keys: Iterable[str]) -> list[str]:
    """Say why an adapter cannot be added to the base's weights; arguments as for `refusals`."""
    kind = config.get("peft_type")
    if kind != "LORA":
        return [f"it is no LoRA but of the type {kind}"]
    reasons = [reason for option, reason in _SPECIAL.items() if config.get(option)]
    if config.get("bias", "none") != "none":
        reasons.append(f"it has trained biases (bias={config['bias']!r})")
    start = config.get("init_lora_weights", True)
    if str(start).lower() == "gaussian":  # PEFT takes it in any case
        start = "gaussian"
    if start not in _PLAIN_STARTS:
        reasons.append(f"its initialisation ({start}) changes the base's weights")
    odd = [key for key in keys if "lora_" in key and not _FACTOR.fullmatch(key)]
    if odd and not reasons:
        reasons.append(f"{odd[0]} is no factor of a linear layer")
    return reasons


def read_pickle(file: Path) -> dict[str, torch.Tensor]:
    """Read a pickled adapter as plain tensors; no code in it runs.

    Raises:
        LoraError: it is damaged, or holds more than named tensors.
    """
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise LoraError(
            f"{file} cannot be read (it is damaged, or holds more than tensors)"
        ) from error
    except (OSError, EOFError, RuntimeError, ValueError, KeyError) as error:
        raise LoraError(f"{file} cannot be read (it is damaged); fetch it again") from error
    if not isinstance(found, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in found.items()
    ):
        raise LoraError(f"{file} holds something else than named tensors")
    return found


def _check_options(folder: Path, config: Mapping[str, Any]) -> None:
    """Make sure of the options that are read here before PEFT looks at them, and of expressions.

    Raises:
        LoraError: one has a value that PEFT could not use.
    """
    kind = config.get("peft_type")
    if kind is not None and not isinstance(kind, str):
        raise LoraError(f"{folder}: {CONFIG} has peft_type={kind!r}, which is no name of a method")
    expressions = []
    for option in ("rank_pattern", "alpha_pattern"):
        if option not in config or (config[option] is None and kind != "LORA"):
            continue
        if not isinstance(config[option], dict):
            raise LoraError(
                f"{folder}: {CONFIG} has {option}={config[option]!r}, which is no object of names and "
                "numbers"
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
                f"{folder}: {CONFIG} has {expression!r} in {option}, which is no regular expression "
                f"({error})"
            ) from error


def _factors(
    folder: Path, config: Mapping[str, Any], module: str, pair: dict[str, str], tensors: Tensors
) -> Factors:
    a, b = tensors.entries[pair["A"]].shape, tensors.entries[pair["B"]].shape
    if len(a) != 2 or len(b) != 2 or a[0] != b[1]:
        raise LoraError(
            f"{folder}: the factors of {module} have the shapes {b} and {a}, which are not those "
            "of B and A of a linear layer"
        )
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    if a[0] == 0:
        raise LoraError(f"{folder}: {module} has rank 0, so its factors are empty")
    rank = ranks.get(get_pattern_key(list(ranks), module), config.get("r"))
    if rank != a[0]:
        raise LoraError(f"{folder}: {module} has rank {a[0]}, but {CONFIG} says {rank!r}")
    alpha = alphas.get(get_pattern_key(list(alphas), module), config.get("lora_alpha"))
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise LoraError(
            f"{folder}: {CONFIG} has the lora_alpha {alpha!r} for {module}, which is no finite number"
        )
    scaling = alpha / (math.sqrt(a[0]) if config.get("use_rslora") else a[0])
    return Factors(pair["A"], pair["B"], (b[0], a[1]), a[0], alpha, scaling)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort layer 10 after layer 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


def other_base(config: Mapping[str, Any], name: str, base: Path) -> str | None:
    """Return the base that an adapter's config names, if it is another than the given one.

    Folders may have been moved, so only their last part counts; so does a hub id's.

    Args:
        config: the adapter's.
        name: how the base was named: a folder, or a hub id with optional ``@revision``.
        base: the base's folder.
    """
    said = str(config.get("base_model_name_or_path") or "")
    revision = str(config.get("revision") or "")
    given, _, chosen = name.partition("@")
    if not said:
        return None
    if Path(said).is_dir() and Path(said).resolve() == base.resolve():
        return None
    if Path(said).name != Path(given).name:
        return f"{said}@{revision}" if revision else said
    # Of a folder nobody knows the revision; without one, a hub id means the newest.
    if revision and not Path(given).is_dir() and revision != (chosen or "main"):
        return f"{said}@{revision}"
    return None
