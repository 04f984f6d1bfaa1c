"""The web's application in the process of a test."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar
from unittest import mock

from flask import Flask
from jinja2 import BytecodeCache
from jinja2.bccache import Bucket
from werkzeug.routing import Rule

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

_Builder = Callable[..., tuple[str, str]]


class _Rule(Rule):
    """A route whose functions that build URLs were compiled for another application already.

    Werkzeug compiles two for each route, which takes three quarters of the time to make an application. They get the
    rule as an argument, so that rules with the same parts and defaults can share them.
    """

    _builders: ClassVar[dict[object, _Builder]] = {}

    def _compile_builder(self, append_unknown: bool = True) -> _Builder:
        key = (self.rule, *self._trace, repr(self.defaults), append_unknown)
        if key not in self._builders:
            self._builders[key] = super()._compile_builder(append_unknown)
        return self._builders[key]


def make(environ: Mapping[str, str]) -> Flask:
    """Make the application, as `web.serve` does.

    Args:
        environ: its settings.
    """
    with mock.patch.object(Flask, "url_rule_class", _Rule):
        app = create_app(settings.load(environ))
    app.jinja_env.bytecode_cache = _COMPILED
    return app
