"""What the page of statistics calls models and adapters: short names, and which whole names and digests they stand for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from jobs.use_cases.statistics import AdapterKey
from web.pages.filters import short_name
from web.pages.marks import plain

#: Characters of a digest where it tells two of a name apart: of an adapter with `sha256:`, of a model without.
DIGEST = 12


class Whole(NamedTuple):
    """What a short name stands for."""

    label: str
    #: The whole name; None if it is not known.
    name: str | None
    digest: str | None


class ModelNames:
    """The names of models and of their adapters, each unlike all others."""

    def __init__(self, models: Mapping[str, Mapping[str, Any]]) -> None:
        """
        Args:
            models: what workers said of them, by their digests.
        """
        self._models = models
        #: All adapters, in the order of the models; each has a name or a digest.
        self.adapters = dict.fromkeys(
            AdapterKey(role, adapter.get("name") or "", adapter.get("digest") or "")
            for model in models.values()
            for role, adapter in model.get("adapters", {}).items()
            if adapter.get("name") or adapter.get("digest")
        )
        self._counts = Counter((key.role, short_name(key.name)) for key in self.adapters)

    def adapter(self, key: AdapterKey) -> str:
        """Return the role of an adapter and its short name, with the beginning of its digest if that has several."""
        short = short_name(key.name)
        digest = key.digest.removeprefix("sha256:")[:DIGEST]
        if not short:
            return f"{key.role.capitalize()}: {digest}"
        several = digest and self._counts[key.role, short] > 1
        return f"{key.role.capitalize()}: {plain(short)}{f' ({digest})' if several else ''}"

    def model(self, digest: str | None) -> str:
        """Return the beginning of a model's digest, which survives where a label is cut off, and its adapters' names."""
        if not digest:
            return "Not started"
        adapters = self._models.get(digest, {}).get("adapters", {}).values()
        names = dict.fromkeys(
            plain(short_name(adapter["name"])) for adapter in adapters if adapter.get("name")
        )
        adapted = f" ({', '.join(names)})" if names else ""
        return f"{digest[:DIGEST]}{adapted}"

    def whole(self) -> list[Whole]:
        """Return what the short names stand for."""
        bases = dict.fromkeys(
            (base.get("name"), base.get("digest"))
            for model in self._models.values()
            if (base := model.get("base"))
        )
        return [
            *(Whole(self.model(digest), None, f"sha256:{digest}") for digest in self._models),
            *(
                Whole(f"Base: {plain(short_name(name or ''))}", name and plain(name), digest)
                for name, digest in bases
            ),
            *(
                Whole(self.adapter(key), plain(key.name) or None, key.digest or None)
                for key in self.adapters
            ),
        ]
