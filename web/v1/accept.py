"""From a request's body to a job: everything that can be wrong with a question is said here."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError

from jobs import pipeline
from jobs.pipeline import Role, Sampling, Stage
from jobs.store import NewJob
from web.errors import RequestError
from web.services import TokenCounter

#: Every stage gets room for at least so many tokens, or the question is too long.
LEAST_OUTPUT = 16
#: Tokens kept free in the context: texts can tokenise a little differently once joined.
SLACK = 8


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    type: Literal["input_text", "output_text"]
    text: str
    # A part of an earlier response may come back as it was given.
    annotations: list[Any] = []
    logprobs: list[Any] = []


#: Fields that take a text or a list.
UNIONS = ("input", "content")


def _kind(value: Any) -> str:
    return "text" if isinstance(value, str) else "list"


_Content = Annotated[
    Annotated[str, Tag("text")] | Annotated[list[_Part], Tag("list")], Discriminator(_kind)
]


class _Message(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    type: Literal["message"] = "message"
    # A message of an earlier response may come back as it was given.
    id: str | None = None
    status: str | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: _Content

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class CreateResponse(BaseModel):
    """The body of ``POST /v1/responses``."""

    model_config = ConfigDict(strict=True, extra="forbid")

    input: Annotated[
        Annotated[str, Tag("text")] | Annotated[list[_Message], Tag("list")], Discriminator(_kind)
    ]
    model: str | None = None
    instructions: str | None = None
    background: bool | None = None
    stream: bool | None = None
    temperature: float | None = Field(default=None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(default=None, gt=0, le=1, allow_inf_nan=False)
    max_output_tokens: int | None = Field(default=None, ge=1, le=1 << 20)
    metadata: (
        Annotated[
            dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
            Field(max_length=16),
        ]
        | None
    ) = None
    # HelixQ's own.
    top_k: int | None = Field(default=None, ge=0, le=1 << 20)
    seed: int | None = Field(default=None, ge=0, le=pipeline.MAX_SEED)
    rounds: int | None = Field(default=None, ge=1, le=pipeline.MAX_ROUNDS)
    priority: int | None = Field(default=None, ge=0, le=pipeline.MAX_PRIORITY)

    @property
    def question(self) -> str:
        """The text, or the last user message's."""
        if isinstance(self.input, str):
            return self.input
        return next((m.text for m in reversed(self.input) if m.role == "user"), "")

    @property
    def system(self) -> str:
        """The instructions, or the last system message's text, or the card's prompt."""
        if self.instructions is not None:
            return self.instructions
        messages = [] if isinstance(self.input, str) else reversed(self.input)
        return next(
            (m.text for m in messages if m.role in ("system", "developer")),
            pipeline.DEFAULT_SYSTEM,
        )


def read(body: bytes, content_type: str) -> dict[str, Any]:
    """Read a request's body; `validate` checks what is in it.

    Raises:
        RequestError: it is no JSON object.
    """
    if content_type != "application/json":
        # Also what keeps other sites' forms from asking: they cannot send JSON.
        raise RequestError(
            415, "The body should be JSON: Content-Type: application/json.", code="unsupported_type"
        )
    try:
        data = json.loads(body)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RequestError(
            400, f"The body is not valid JSON: {error}.", code="invalid_json"
        ) from error
    except (ValueError, RecursionError) as error:
        raise _unreadable() from error
    if not isinstance(data, dict):
        raise RequestError(400, "The body should be a JSON object.", code="invalid_type")
    return data


#: Parameters whose values 1 and 1.0 are the same.
FLOATS = ("temperature", "top_p")


def digest(data: dict[str, Any]) -> str:
    """Digest what a request asks for: the parameters that it sets, as they were sent.

    Neither defaults nor what a version makes of them go in: a request that is sent again is the same
    request although the server has changed meanwhile.
    """
    given = {name: value for name, value in data.items() if value is not None}
    for name in FLOATS:
        if type(given.get(name)) is int:
            given[name] = float(given[name])
    try:
        return hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()
    except RecursionError as error:
        raise _unreadable() from error


def _unreadable() -> RequestError:
    return RequestError(
        400,
        "The body cannot be read: it is nested too deeply, or holds a number of too many digits.",
        code="invalid_json",
    )


def validate(data: dict[str, Any]) -> CreateResponse:
    """Check the fields of a request.

    Raises:
        RequestError: for the first field that is wrong, by name.
    """
    labels = data.get("metadata")
    for param, names in (("", data), ("metadata", labels if isinstance(labels, dict) else {})):
        _check_names(param, names)
    # Null is the same as nothing.
    known = CreateResponse.model_fields
    data = {name: value for name, value in data.items() if value is not None or name not in known}
    try:
        request = CreateResponse.model_validate(data)
    except ValidationError as error:
        raise _explained(error) from error
    if request.model not in (None, pipeline.MODEL):
        raise RequestError(
            404,
            f"There is no model {request.model!r}; this server has {pipeline.MODEL!r}.",
            code="model_not_found",
            param="model",
        )
    if not request.question.strip():
        raise RequestError(
            400,
            "The question is empty: `input` should be a text, or messages of which the last "
            "with the role user holds one.",
            code="empty_input",
            param="input",
        )
    texts = [("input", request.question), ("instructions", request.system)]
    for pair in (request.metadata or {}).items():
        texts += [("metadata", part) for part in pair]
    for param, text in texts:
        _check_text(param, text)
    return request


def _check_names(param: str, names: Iterable[str]) -> None:
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise RequestError(
                400,
                f"A name in {f'`{param}`' if param else 'the body'} holds half of a surrogate pair, "
                "which is no Unicode text.",
                code="invalid_value",
                param=param or None,
            ) from error


def _check_text(param: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            400,
            f"`{param}` holds half of a surrogate pair, which is no Unicode text.",
            code="invalid_value",
            param=param,
        ) from error
    if param == "metadata" and "\0" in text:
        raise RequestError(
            400, "`metadata` may not hold NUL characters.", code="invalid_value", param=param
        )


def new_job(
    request: CreateResponse,
    tokens: TokenCounter,
    idempotency_key: str | None = None,
    request_digest: str | None = None,
) -> NewJob:
    """Complete a valid request with what it leaves open.

    Args:
        request: what is asked.
        tokens: counts the prompt's.
        idempotency_key, request_digest: the caller's, and the `digest` of what it came with.

    Raises:
        RequestError: it does not fit the model's context.
    """
    card = Sampling()
    limit = _output_limit(request, tokens)

    def given(value: Any, default: Any) -> Any:
        return default if value is None else value

    return NewJob(
        question=request.question,
        system=request.system,
        sampling=Sampling(
            temperature=given(request.temperature, card.temperature),
            top_k=given(request.top_k, card.top_k),
            top_p=given(request.top_p, card.top_p),
            max_output_tokens=limit,
            seed=given(request.seed, secrets.randbits(32)),
        ),
        rounds=given(request.rounds, 1),
        priority=given(request.priority, pipeline.DEFAULT_PRIORITY),
        background=bool(request.background),
        labels=request.metadata or {},
        idempotency_key=idempotency_key,
        request_digest=request_digest,
    )


def _output_limit(request: CreateResponse, tokens: TokenCounter) -> int:
    """Settle the tokens of each stage so that all of them are sure to fit the context.

    The last prompt holds the answer and the critique, and leaves room for a third text.
    """
    wanted = request.max_output_tokens
    card = Sampling().max_output_tokens
    prompts = [
        pipeline.prompt(Stage(2, role, 1), request.system, request.question, ["", ""])
        for role in Role
    ]
    counted = tokens.count(prompts)
    if counted is None:
        return wanted or card  # no worker has started yet; the engine will tell
    lengths, context = counted
    room = (context - max(lengths) - SLACK) // len(Role)
    if room < (wanted or LEAST_OUTPUT):
        if room < LEAST_OUTPUT:
            message = (
                f"The question is too long: with its prompt it has {max(lengths)} tokens, and the "
                f"model's context of {context} should also hold the answer, the critique and the "
                "regeneration; shorten it."
            )
            raise RequestError(400, message, code="context_length_exceeded", param="input")
        message = (
            f"max_output_tokens={wanted} is too much: the question has {max(lengths)} tokens with "
            f"its prompt, so that the model's context of {context} has room for three stages of "
            f"{room} tokens."
        )
        raise RequestError(400, message, code="context_length_exceeded", param="max_output_tokens")
    return wanted or min(card, room)


def _explained(error: ValidationError) -> RequestError:
    """Turn pydantic's first complaint into OpenAI's words."""
    first = error.errors()[0]
    # What follows these two names the kind that was given, not a field.
    before = (None, *first["loc"])
    path = [p for prev, p in zip(before, first["loc"], strict=False) if prev not in UNIONS]
    param = ".".join(str(part) for part in path)
    kind = first["type"]
    if kind == "missing":
        message, code = f"`{param}` is missing.", "missing_required_parameter"
    elif kind == "extra_forbidden":
        names = ", ".join(CreateResponse.model_fields)
        message = f"There is no parameter `{param}`" + (
            "." if len(path) > 1 else f"; there are {names}."
        )
        code = "unknown_parameter"
    elif kind == "list_type" and path[-1] in UNIONS:
        what = "messages" if path[-1] == "input" else "parts"
        message, code = f"`{param}` should be a text or a list of {what}.", "invalid_type"
    elif kind == "model_type":
        message, code = f"`{param}` should be an object.", "invalid_type"
    else:
        reason = first["msg"].removeprefix("Input ")
        message = f"`{param}` {reason}."
        code = "invalid_type" if kind.endswith("_type") else "invalid_value"
    return RequestError(400, message, code=code, param=param)
