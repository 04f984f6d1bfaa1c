"""Compare the tokenizer that a trainer left in an adapter's folder with the base's, which is the one that is used."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase


def tokenizer_differences(folder: Path, base: PreTrainedTokenizerBase) -> list[str]:
    """Return what differs, of what changes the tokens of prompts or the end of texts.

    Args:
        folder: the adapter's. It need not have a tokenizer, and one that cannot be read counts as none.
        base: the base's tokenizer.

    Returns:
        a clause for each difference ("it has …").
    """
    config = _json_object(folder / "tokenizer_config.json")
    own = _token_ids(folder, config)
    token_ids = base.get_vocab()
    differences = []
    if new := sorted(own.keys() - token_ids.keys(), key=own.__getitem__):
        differences.append(f"it has the tokens {_some(new)}, which the base model's lacks")
    if moved := sorted(
        name for name in own.keys() & token_ids.keys() if own[name] != token_ids[name]
    ):
        differences.append(f"it has other ids for {_some(moved)}")
    eos = config.get("eos_token")
    if isinstance(eos, dict):  # an AddedToken
        eos = eos.get("content")
    if isinstance(eos, str) and eos != base.eos_token:
        differences.append(f"its EOS token is {eos!r}, and the base model's is {base.eos_token!r}")
    return differences


def _token_ids(folder: Path, config: dict[str, Any]) -> dict[str, int]:
    """Return the ids of the tokens that a folder's files name: all of them, or only those that were added."""
    tokenizer = _json_object(folder / "tokenizer.json")
    model = tokenizer.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    added = tokenizer.get("added_tokens")
    decoder = config.get("added_tokens_decoder")
    pairs: list[tuple[object, object]] = [*_json_object(folder / "added_tokens.json").items()]
    pairs += vocabulary.items() if isinstance(vocabulary, dict) else []
    for token in added if isinstance(added, list) else []:
        if isinstance(token, dict):
            pairs.append((token.get("content"), token.get("id")))
    for number, token in decoder.items() if isinstance(decoder, dict) else []:
        if isinstance(token, dict) and number.isdecimal():
            pairs.append((token.get("content"), int(number)))
    return {
        name: number for name, number in pairs if isinstance(name, str) and isinstance(number, int)
    }


def _some(names: list[str]) -> str:
    """Return the first names, and how many more there are."""
    shown = ", ".join(repr(name) for name in names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown


def _json_object(file: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError, RecursionError):
        content = json.loads(file.read_bytes())
        if isinstance(content, dict):
            return content
    return {}
