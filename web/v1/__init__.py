"""``/v1``: OpenAI's Responses API, its chat completions, files, batches and webhook endpoints."""

from web.v1 import batches as _batches  # noqa: F401 (adds its endpoints to the blueprint)
from web.v1 import chat as _chat  # noqa: F401 (adds its endpoint to the blueprint)
from web.v1 import files as _files  # noqa: F401 (adds its endpoints to the blueprint)
from web.v1 import webhooks as _webhooks  # noqa: F401 (adds its endpoints to the blueprint)
from web.v1.routes import blueprint

__all__ = ["blueprint"]
