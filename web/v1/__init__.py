"""``/v1``: OpenAI's Responses API for the pipeline."""

from web.v1.routes import blueprint

__all__ = ["blueprint"]
