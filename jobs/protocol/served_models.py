"""The models that the API lists: there is one, the pipeline."""

from __future__ import annotations

from typing import Any

from jobs.pipeline import MODEL
from jobs.protocol.errors import NotFoundError

#: 2023-11-05, when HelixNet was published, in seconds since 1970.
_CREATED = 1699142400


def model_list() -> dict[str, Any]:
    """Return OpenAI's list of models."""
    return {"object": "list", "data": [model(MODEL)]}


def model(name: str) -> dict[str, Any]:
    """Return OpenAI's description of a model.

    Raises:
        NotFoundError: there is no such model.
    """
    check_model(name)
    return {"id": name, "object": "model", "created": _CREATED, "owned_by": "helixq"}


def check_model(name: str, param: str = "model") -> None:
    """Check that a model exists.

    Args:
        name: of the model.
        param: the parameter that has the name.

    Raises:
        NotFoundError: it does not.
    """
    if name != MODEL:
        raise NotFoundError(
            f"No such model: {name!r}. This server has one model, {MODEL!r}.",
            code="model_not_found",
            param=param,
        )
