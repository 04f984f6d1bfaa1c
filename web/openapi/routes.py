"""The endpoints of the description. They need no API key."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import flask_swagger_ui
from flask import Blueprint, Response, current_app, render_template, request, send_from_directory
from werkzeug.exceptions import NotFound

blueprint = Blueprint(
    "openapi",
    __name__,
    template_folder="templates",
    static_folder="static",
    static_url_path="/docs/assets",
)

#: The files of Swagger UI that the page uses, as the package `flask-swagger-ui` has them.
SWAGGER_UI = Path(flask_swagger_ui.__file__).parent / "dist"
FILES = ("swagger-ui-bundle.js", "swagger-ui.css")
#: As that of other pages. Swagger UI has icons in its style sheet.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)

_lock = threading.Lock()


@blueprint.get("/openapi.json")
def document() -> Response:
    """Reply with the description."""
    reply = Response(_document(), mimetype="application/json")
    reply.headers["Cache-Control"] = "no-cache"
    reply.add_etag()
    reply.make_conditional(request)
    return reply


@blueprint.get("/docs")
def page() -> Response:
    """Show the description."""
    reply = Response(render_template("docs.html"))
    reply.headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
    return reply


@blueprint.get("/docs/swagger-ui/<name>")
def swagger_ui(name: str) -> Response:
    """Reply with a file of Swagger UI."""
    if name not in FILES:
        raise NotFound
    return send_from_directory(SWAGGER_UI, name, max_age=3600)


def _document() -> str:
    """Return the description of the current application. It is made once, when it is asked for."""
    with _lock:
        made: str | None = current_app.extensions.get("helixq.openapi")
        if made is None:
            # Takes as long to import as the rest of the web, which starts faster without it.
            from web.openapi.document import describe

            made = json.dumps(describe(current_app), ensure_ascii=False, separators=(",", ":"))
            current_app.extensions["helixq.openapi"] = made
    return made
