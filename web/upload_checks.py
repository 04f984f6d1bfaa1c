"""Refuses uploads when their headers have arrived, before what follows is stored in a file of the system.

All of a request arrives before the application gets it, and an upload may be large. So the server asks here
first whether the application would refuse it: by its key, or by the page that it comes from.
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
            pass  # The application says so once all of it is there.
    return None
