"""What ends a text, and that nothing else of a model's generation settings has a say."""

from __future__ import annotations

import logging
from typing import Any

from peft import PeftModel
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

#: What changes texts of those settings, and is nothing that a request says itself.
CHANGING = {
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


def settle(
    model: PeftModel | PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> frozenset[int]:
    """Leave of a model's generation settings only what ends a text.

    A checkpoint may bring more along (a repetition penalty, forbidden tokens), which `generate` would
    apply. A text here depends on what its attempt records and on nothing else, whatever the engine.

    Args:
        model: its settings are replaced.
        tokenizer: its end of text counts if the model names none.

    Returns:
        the tokens that end a text.

    Raises:
        ValueError: what should end a text is no token.
    """
    settings: Any = model.generation_config
    ends = settings.eos_token_id
    if ends is None:
        ends = tokenizer.eos_token_id
    if ends is None:
        ends = []
    found = ends if isinstance(ends, list) else [ends]
    if not all(isinstance(token, int) for token in found):
        raise ValueError(
            f"its generation settings have eos_token_id={ends!r}, which is no token's id"
        )
    if dropped := sorted(CHANGING & settings.to_diff_dict().keys()):
        log.warning("of the model's generation settings, %s are not applied", ", ".join(dropped))
    pad = found[0] if found else None
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]  # transformers has no types there
        eos_token_id=found or None, pad_token_id=pad
    )
    return frozenset(found)
