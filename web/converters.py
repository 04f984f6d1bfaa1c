"""Ids in paths, as converters of Werkzeug's routes."""

from __future__ import annotations

from flask import Flask
from werkzeug.routing import BaseConverter


class JobIdConverter(BaseConverter):
    """The id of a job, so that its methods are not those of other paths below ``/jobs``."""

    regex = "resp_[0-9a-z]+"


class ResponseIdConverter(BaseConverter):
    """The id of a response, so that its methods are not those of the path that counts tokens."""

    regex = "(?!input_tokens$)[^/]+"


class CompletionIdConverter(BaseConverter):
    """The id of a chat completion, as that of its job."""

    def to_python(self, value: str) -> str:
        return value.replace("chatcmpl-", "resp_", 1)


def init_app(app: Flask) -> None:
    """Let the routes of an application have these ids."""
    app.url_map.converters |= {
        "job": JobIdConverter,
        "response": ResponseIdConverter,
        "completion": CompletionIdConverter,
    }
