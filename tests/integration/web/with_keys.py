"""Clients with API keys of their own, for tests of a service that requires keys."""

from __future__ import annotations

import itertools
from typing import Any

from flask.testing import FlaskClient

from jobs.models import ApiKey, Scope
from jobs.use_cases import keys

_names = (f"owner-{number}" for number in itertools.count())


class Program(FlaskClient):
    """A client that sends a key with every request."""

    key: ApiKey
    secret = ""

    def open(self, *arguments: Any, **options: Any) -> Any:
        headers = {"Authorization": f"Bearer {self.secret}", **options.pop("headers", {})}
        return super().open(*arguments, headers=headers, **options)


def new_key(app: Any, *scopes: Scope, **options: Any) -> tuple[ApiKey, str]:
    database = app.extensions["helixq"].database
    return keys.create(database, next(_names), scopes or [Scope.ASK], **options)


def program(app: Any, *scopes: Scope, **options: Any) -> Any:
    """Return a client with a new key."""
    client = Program(app, app.response_class)
    client.key, client.secret = new_key(app, *scopes, **options)
    return client


def browser(app: Any, *scopes: Scope, **options: Any) -> Any:
    """Return a client that has logged in with a new key."""
    client = app.test_client()
    _, secret = new_key(app, *scopes, **options)
    assert client.post("/login", data={"key": secret}).status_code == 303
    return client


def code(reply: Any) -> tuple[int, str]:
    body = reply.json
    return reply.status_code, body["error"]["code"] if "error" in body else body["code"]
