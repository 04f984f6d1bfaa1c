"""Compiled statements that all engines of a process share.

SQLAlchemy compiles a statement once for each engine. A program has two engines for as long as it runs, but nearly each test
has two of its own, for its own database: compiling took a fifth of the time of the tests of the web.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import sqlalchemy as sa
from sqlalchemy.util import LRUCache

#: Several times what the program has.
SIZE = 3000


class _Shared:
    """A cache of SQLAlchemy: engines with the same kind of database, settings and version find the same statements."""

    def __init__(self) -> None:
        self._compiled: LRUCache[Any, Any] = LRUCache(SIZE)
        self._kinds: WeakKeyDictionary[sa.Dialect, object] = WeakKeyDictionary()

    def get(self, key: Any) -> Any:
        return self._compiled.get(self._shared(key))

    def __setitem__(self, key: Any, compiled: Any) -> None:
        self._compiled[self._shared(key)] = compiled

    def _shared(self, key: Any) -> tuple[object, ...]:
        """Return a key with the kind of the dialect in place of the engine's own one."""
        dialect, *statement = key
        if dialect not in self._kinds:
            settings = {
                name: value
                for name, value in vars(dialect).items()
                if isinstance(value, str | int | tuple | None)
            }
            functions = (dialect._json_serializer, dialect._json_deserializer)
            self._kinds[dialect] = (type(dialect), frozenset(settings.items()), functions)
        return (self._kinds[dialect], *statement)


_SHARED = _Shared()


def share() -> None:
    """Have all engines share them from now on."""

    @sa.event.listens_for(sa.Engine, "engine_connect")
    def _use(connection: sa.Connection) -> None:
        connection.execution_options(compiled_cache=_SHARED)
