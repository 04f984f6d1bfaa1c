"""What can go wrong with a server."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from typing import Any

from jobs.errors import UserError

#: Characters of a server's message that are kept.
MAX_MESSAGE = 500
#: How servers say that a prompt, or a prompt and its limit, exceed the context: vLLM, SGLang, TGI, llama.cpp.
_CONTEXT = re.compile(
    r"context[_ ](length|size|window)|max_model_len|exceed_context|max_total_tokens"
    r"|(max_tokens|max_new_tokens).{0,80}(too large|must be <=|exceed)"
    r"|(input|prompt).{0,40}(too long|longer than)",
    re.IGNORECASE | re.DOTALL,
)


class RemoteError(UserError):
    """The servers cannot be used as they are set. The message is one sentence for the operator."""


class ServerUnavailableError(Exception):
    """A server does not respond, or asks for another try later."""

    def __init__(
        self,
        reason: str,
        *,
        retry_after: float | None = None,
        fault: bool = False,
        unreachable: bool = False,
    ) -> None:
        """
        Args:
            reason: why, for the log and the history.
            retry_after: seconds that the server asked to wait.
            fault: whether the server failed while it served the request, which may be the cause.
            unreachable: whether it could not be connected to.
        """
        super().__init__(reason)
        self.retry_after = retry_after
        self.fault = fault
        self.unreachable = unreachable


class ServerRefusedError(Exception):
    """A server refused a request. The same request would be refused again."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message

    @property
    def is_about_context(self) -> bool:
        """Whether it says that the prompt, or the prompt and its limit, exceed the context."""
        return self.status in (400, 413, 422) and bool(_CONTEXT.search(self.message))

    def names(self, parameter: str) -> bool:
        """Return whether it says that a parameter of the request is wrong."""
        return self.status in (400, 422) and bool(re.search(rf"\b{parameter}\b", self.message))


def message_of(body: bytes, secret: str | None) -> str:
    """Return what the body of an error says: OpenAI's shape, FastAPI's and TGI's, or the text itself.

    Args:
        body: of a reply.
        secret: what must not be in the message: the API key.
    """
    text = body.decode(errors="replace").strip()
    with suppress(ValueError, RecursionError):
        text = _text(json.loads(text))
    if secret:
        text = text.replace(secret, "…")
    text = " ".join(text.split())
    return text if len(text) <= MAX_MESSAGE else f"{text[:MAX_MESSAGE]}…"


def _text(value: Any) -> str:
    if isinstance(value, dict):
        for name in ("error", "message", "detail", "msg"):
            if value.get(name):
                text = _text(value[name])
                # FastAPI's: the place of a wrong field. Not its input, which is the whole request.
                place = value.get("loc") if name == "msg" else None
                if isinstance(place, list) and place:
                    return f"{'.'.join(map(str, place))}: {text}"
                return text
        return json.dumps(value)
    if isinstance(value, list):
        return "; ".join(map(_text, value))
    return str(value)
