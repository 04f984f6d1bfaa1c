"""Asking: OpenAI's Responses API over the HelixNet pipeline."""

from web.v1.routes import blueprint

__all__ = ["blueprint"]
