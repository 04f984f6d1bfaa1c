"""What a server says of itself and of its models, as data. `worker.remote.server` asks it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from jobs.pipeline import Role
from worker.remote import parameters

#: What a server says of a model that does not change while it serves the same one.
_STABLE = ("root", "parent", "owned_by", "meta")
#: The ``owned_by`` of llama.cpp's models.
_LLAMA_CPP = "llamacpp"
#: Where servers say what they are, outside of ``/v1``: whose `owned_by` asks there, the path and its older name, and
#: what is kept.
_ABOUT = (
    ("vllm", ("/version",), ("version",)),
    ("sglang", ("/model_info", "/get_model_info"), ("model_path", "weight_version")),
    (_LLAMA_CPP, ("/props",), ("build_info", "model_path")),
    (None, ("/info",), ("version", "model_id", "model_sha", "model_dtype", "max_total_tokens")),
)
#: The fields of `_ABOUT` that name weights.
_WEIGHTS = ("model_id", "model_sha", "model_dtype", "model_path", "weight_version")


@dataclass(frozen=True)
class Description:
    """What a server says of itself and of the roles' models."""

    #: By role: the model's name, and what the server lists of it.
    served: dict[str, Any]
    #: Parameters that it refuses (`parameters.OPTIONAL`).
    omitted: tuple[str, ...]
    #: Tokens of prompt and output together; None if it does not say.
    max_model_len: int | None
    #: Whether it has a list of models.
    listed: bool
    #: For the record: its software, and the like.
    about: dict[str, Any]

    @classmethod
    def of(
        cls,
        listed: Listed,
        models: Mapping[Role, str],
        omitted: Collection[str],
        about: dict[str, Any],
    ) -> Self:
        """Put together what a server says.

        Args:
            listed: what it lists.
            models: the model's name of each role.
            omitted: parameters that it has refused.
            about: what it says of itself.
        """
        served = listed.served(models)
        if weights := {name: about[name] for name in _WEIGHTS if name in about}:
            served["base"] = weights
        max_model_len = listed.max_model_len(models)
        if max_model_len is None and isinstance(about.get("max_total_tokens"), int):
            max_model_len = about["max_total_tokens"]
        if max_model_len is not None:
            about = {**about, "max_model_len": max_model_len}
        return cls(served, tuple(sorted(omitted)), max_model_len, listed.answered, about)

    @property
    def parent(self) -> str | None:
        """The base of the roles' models, if the server says it."""
        parents = {of.get("parent") for of in self.served.values()} - {None}
        return str(parents.pop()) if len(parents) == 1 else None

    @property
    def identity(self) -> tuple[dict[str, Any], tuple[str, ...]]:
        """What a text depends on, as far as it is known. All servers of a worker have the same."""
        return self.served, tuple(n for n in self.omitted if n in parameters.CHANGE_TEXTS)


@dataclass
class Listed:
    """What ``/v1/models`` says."""

    entries: dict[str, dict[str, Any]]
    #: Whether there is a list at all. `transformers serve` has none where its hub cache is empty.
    answered: bool = True
    software: str | None = None
    #: The ``owned_by`` of all entries, such as ``vllm``.
    owners: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, data: object, *, answered: bool, software: str | None) -> Self:
        """Read the list of a reply.

        Args:
            data: the reply's ``data``. What is no model's entry is left out.
            answered: whether there is a list.
            software: the reply's header ``Server``.
        """
        listed = cls({}, answered, software)
        for entry in data if isinstance(data, list) else []:
            if isinstance(entry, dict) and isinstance(entry.get("id"), str):
                listed.entries[entry["id"]] = entry
                listed.owners.add(str(entry.get("owned_by")))
        for entry in list(listed.entries.values()):
            aliases = entry.get("aliases")
            for alias in aliases if isinstance(aliases, list) else []:
                listed.entries.setdefault(str(alias), entry)
        return listed

    def entry(self, name: str) -> dict[str, Any]:
        """Return what is listed of a model. SGLang's ``base:adapter`` has the entry of its base."""
        return self.entries.get(name) or self.entries.get(name.rpartition(":")[0], {})

    def served(self, models: Mapping[Role, str]) -> dict[str, Any]:
        """Return what is listed of the roles' models, by role."""
        return {
            role.value: {
                "name": name,
                **_stable(self.entry(name)),
            }
            for role, name in models.items()
        }

    def is_loading(self, models: Mapping[Role, str]) -> bool:
        """Return whether a role's model is not loaded yet, as llama.cpp says it: the model has no ``meta``."""
        entries = map(self.entry, models.values())
        return any(
            entry.get("owned_by") == _LLAMA_CPP and entry.get("meta", {}) is None
            for entry in entries
        )

    def max_model_len(self, models: Mapping[Role, str]) -> int | None:
        """Return the context of the roles' models in tokens, the smallest one; None if none is listed."""
        lengths = [length for name in models.values() if (length := self._length(name))]
        return min(lengths, default=None)

    def more(self) -> Iterator[tuple[Sequence[str], Sequence[str]]]:
        """Yield where such a server says more of itself, the names of a path, and what is kept of that."""
        for owner, paths, names in _ABOUT:
            if owner is None or owner in self.owners:
                yield paths, names

    def _length(self, name: str) -> int | None:
        """Return the context of a model: its own, or that of the base that it is an adapter of."""
        entry = self.entry(name)
        for candidate in (entry, self.entries.get(str(entry.get("parent")), {})):
            for length in _lengths(candidate):
                if isinstance(length, int) and length > 0:
                    return length
        return None


def _lengths(entry: Mapping[str, Any]) -> Iterator[Any]:
    """Yield where an entry may have the context of its model."""
    yield entry.get("max_model_len")  # vLLM and SGLang
    if isinstance(meta := entry.get("meta"), dict):
        yield meta.get("n_ctx")  # llama.cpp: the context of a slot
    yield entry.get("context_length")  # llama-swap, Lemonade, OpenRouter


def _stable(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of an entry does not change while the same model is served."""
    stable = {key: entry[key] for key in _STABLE if entry.get(key) is not None}
    if isinstance(meta := stable.get("meta"), dict):
        # The context only limits the length of a text.
        stable["meta"] = {key: value for key, value in meta.items() if key != "n_ctx"}
    if "status" in entry:
        # llama.cpp's router has it of loaded models alone.
        stable.pop("meta", None)
    return stable
