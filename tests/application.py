"""The web's application in the process of a test."""

from __future__ import annotations

from collections.abc import Mapping

from flask import Flask
from jinja2 import BytecodeCache
from jinja2.bccache import Bucket

from jobs import settings
from web import create_app


class _Compiled(BytecodeCache):
    """Templates that were compiled for another application already, which takes a tenth of a second for a page."""

    def __init__(self) -> None:
        self._by_key: dict[str, bytes] = {}

    def load_bytecode(self, bucket: Bucket) -> None:
        if bucket.key in self._by_key:
            bucket.bytecode_from_string(self._by_key[bucket.key])

    def dump_bytecode(self, bucket: Bucket) -> None:
        self._by_key[bucket.key] = bucket.bytecode_to_string()


_COMPILED = _Compiled()


def make(environ: Mapping[str, str]) -> Flask:
    """Make the application, as `web.serve` does.

    Args:
        environ: its settings.
    """
    app = create_app(settings.load(environ))
    app.jinja_env.bytecode_cache = _COMPILED
    return app
