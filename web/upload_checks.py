"""Refuses uploads as soon as their headers have arrived, before their bodies are stored in temporary files.

The application gets a request once all of it has arrived, and an upload may be large. So the server first asks
here whether the application would refuse it: for its key, or for the page that it comes from.
"""

from __future__ import annotations

from collections.abc import Mapping

from flask import Flask
from sqlalchemy.exc import SQLAlchemyError

from web import access, security
from web.errors import HTTPError
from web.services import Services


def refusal(app: Flask, path: str, headers: Mapping[str, str]) -> HTTPError | None:
    """Return why an upload is refused; None if it may go on.

    Args:
        app: the application.
        path: of the request.
        headers: of the request, named as WSGI names them, without ``HTTP_``.
    """
    services: Services = app.extensions["helixq"]
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    with app.test_request_context(path, method="POST", headers=named):
        try:
            security.check_request(services.settings)
            access.authenticate(services.settings)
        except HTTPError as error:
            return error
        except SQLAlchemyError:
            pass  # The application replies with this error once the whole upload has arrived.
    return None
