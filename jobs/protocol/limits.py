"""How many tokens a stage may generate, so that all stages of a job fit the model's context."""

from __future__ import annotations

from jobs import pipeline
from jobs.pipeline import Role, Sampling, Stage
from jobs.protocol.errors import InvalidRequestError
from jobs.protocol.request import CreateResponse
from jobs.protocol.tokens import TokenCounter

#: The minimum for each stage when the request sets no limit.
MIN_OUTPUT_TOKENS = 16
#: Tokens of the context that are kept free: joined texts can have more tokens than the texts alone.
RESERVED_TOKENS = 8


def max_output_tokens(request: CreateResponse, counter: TokenCounter) -> int:
    """Return the maximum number of new tokens of each stage.

    The last prompt contains the answer and the critique, and the context also holds the
    regeneration: three texts of this length.

    Raises:
        InvalidRequestError: the question, or the limit that the request sets, is too large.
    """
    requested = request.max_output_tokens
    default = Sampling().max_output_tokens
    prompts = [
        pipeline.prompt(Stage(2, role, 1), request.system_prompt, request.question, ["", ""])
        for role in Role
    ]
    count = counter.count(prompts)
    if count is None:
        return requested or default  # The engine checks it once there is one.
    prompt, context = max(count.tokens), count.context
    available = (context - prompt - RESERVED_TOKENS) // len(Role)
    if available < MIN_OUTPUT_TOKENS and (requested or MIN_OUTPUT_TOKENS) > available:
        raise InvalidRequestError(
            f"The question is too long: its prompt has {prompt} tokens, and the model's context of "
            f"{context} tokens must also hold the answer, the critique and the regeneration. "
            "Shorten the question.",
            code="context_length_exceeded",
            param="input",
        )
    if requested is not None and requested > available:
        raise InvalidRequestError(
            f"`max_output_tokens` is too large: {requested}. The prompt has {prompt} tokens, so the "
            f"model's context of {context} tokens has room for at most {available} tokens per stage.",
            code="context_length_exceeded",
            param="max_output_tokens",
        )
    return requested or min(default, available)
