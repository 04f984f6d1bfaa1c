"""A stage as a request to ``/v1/completions``."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from jobs.pipeline import Sampling

#: Parameters that OpenAI's API does not have, or that some servers refuse. A request goes without those that a
#: server has refused by name.
OPTIONAL = ("top_k", "seed", "stream_options", "top_p", "stop")
#: Those of `OPTIONAL` that change a text.
CHANGE_TEXTS = ("top_k", "seed")
#: What a server means by the whole vocabulary: vLLM, SGLang and llama.cpp alike.
_NO_TOP_K = -1


def body(
    model: str, prompt: str, sampling: Sampling, max_tokens: int, without: Collection[str] = ()
) -> dict[str, Any]:
    """Return a request's body.

    Args:
        model: the model's name at the server.
        prompt: the exact prompt.
        sampling: of the stage.
        max_tokens: the maximum number of new tokens.
        without: parameters of `OPTIONAL` that the server refuses. ``top_p`` is left out only where it
            asks for nothing: TGI refuses 1. Without ``stop``, the server goes on until the engine closes the
            connection.
    """
    whole = {
        "model": model,
        "prompt": prompt,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k or _NO_TOP_K,
        "seed": sampling.seed,
        "max_tokens": max_tokens,
        **({"stop": list(sampling.stop)} if sampling.stop else {}),
        "stream": True,
        # The last event has the numbers of tokens.
        "stream_options": {"include_usage": True},
    }
    left_out = {name for name in without if name != "top_p" or sampling.top_p == 1.0}
    return {name: value for name, value in whole.items() if name not in left_out}
