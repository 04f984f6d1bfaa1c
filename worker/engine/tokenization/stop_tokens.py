"""Resolves the stop tokens, and drops every other generation setting of a checkpoint."""

from __future__ import annotations

import logging
from typing import Any

from peft import PeftModel
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

#: Generation settings that change texts and that no request sets.
IGNORED_SETTINGS = {
    "bad_words_ids",
    "begin_suppress_tokens",
    "diversity_penalty",
    "epsilon_cutoff",
    "eta_cutoff",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "guidance_scale",
    "length_penalty",
    "min_length",
    "min_new_tokens",
    "min_p",
    "no_repeat_ngram_size",
    "num_beams",
    "penalty_alpha",
    "repetition_penalty",
    "sequence_bias",
    "stop_strings",
    "suppress_tokens",
    "typical_p",
}


def resolve_stop_tokens(
    model: PeftModel | PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> frozenset[int]:
    """Reduce a model's generation settings to its stop tokens.

    A checkpoint may contain others (a repetition penalty, forbidden tokens), which `generate` would
    apply. A text must depend only on what its attempt records, whatever the engine.

    Args:
        model: its ``generation_config`` is replaced.
        tokenizer: its EOS token is used if the model names none.

    Returns:
        the stop token ids.

    Raises:
        ValueError: ``eos_token_id`` is not a token id.
    """
    settings: Any = model.generation_config
    eos = settings.eos_token_id
    if eos is None:
        eos = tokenizer.eos_token_id
    if eos is None:
        eos = []
    stop_token_ids = eos if isinstance(eos, list) else [eos]
    if not all(isinstance(token_id, int) for token_id in stop_token_ids):
        raise ValueError(
            f"its generation settings have eos_token_id={eos!r}, which is no token's id"
        )
    if ignored := sorted(IGNORED_SETTINGS & settings.to_diff_dict().keys()):
        log.warning("ignored generation settings of the model: %s", ", ".join(ignored))
    pad_token_id = stop_token_ids[0] if stop_token_ids else None
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]  # transformers has no types there
        eos_token_id=stop_token_ids or None, pad_token_id=pad_token_id
    )
    return frozenset(stop_token_ids)
