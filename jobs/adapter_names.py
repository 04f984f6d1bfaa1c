"""Finds the adapters that a filter names: by name, by the last parts of a name that is a path, or by digest."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any


def of_model(description: Mapping[str, Any]) -> Collection[Mapping[str, Any]]:
    """Return the adapters of a model, each with ``name`` and ``digest``, from what a worker said of it."""
    found: Mapping[str, Mapping[str, Any]] = description.get("adapters", {})
    return found.values()


def is_meant(adapter: Mapping[str, Any], wanted: str) -> bool:
    """Return whether a name or a digest stands for an adapter."""
    return wanted == adapter.get("digest") or _is_name(adapter.get("name") or "", wanted)


def names(models: Mapping[str, Mapping[str, Any]], wanted: str) -> set[str]:
    """Return all names that a name stands for, and the name itself. A digest stands for itself.

    Args:
        models: the descriptions of all models.
        wanted: the name or the digest.
    """
    known = (each.get("name") or "" for model in models.values() for each in of_model(model))
    return {wanted, *(name for name in known if _is_name(name, wanted))}


def _is_name(name: str, wanted: str) -> bool:
    # Pages show the last parts of the path of a folder.
    return name == wanted or name.rstrip("/").endswith(f"/{wanted}")
