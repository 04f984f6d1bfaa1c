"""``/v1``: OpenAI's Responses API, its chat completions and its webhook endpoints, for the pipeline."""

from web.v1 import chat as _chat  # noqa: F401 (adds its endpoint to the blueprint)
from web.v1 import webhooks as _webhooks  # noqa: F401 (adds its endpoints to the blueprint)
from web.v1.routes import blueprint

__all__ = ["blueprint"]
