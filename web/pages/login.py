"""The login page: a key is typed in once, and the browser gets a session for it."""

from __future__ import annotations

import re

from flask import Blueprint, redirect, render_template, request, url_for
from werkzeug.wrappers import Response

from jobs.use_cases import keys
from web.access import CHALLENGE, COOKIE
from web.services import get_services

blueprint = Blueprint("login", __name__)

#: Paths of this site: not of another one, whatever a browser makes of backslashes and control characters.
_OWN_PATH = re.compile(r"/(?![/\\])[^\\\x00-\x20\x7f]*")


@blueprint.get("/login")
def form() -> Response | str:
    """Show the form."""
    if not get_services().settings.auth_required:
        return redirect(url_for("pages.ask"), code=303)
    return render_template("login.html", next=request.args.get("next", ""))


@blueprint.post("/login")
def log_in() -> Response | tuple[str, int, dict[str, str]]:
    """Begin a session with the key of the form, and redirect to the page that asked for it."""
    services = get_services()
    after = request.form.get("next", "")
    key = services.keys.find(request.form.get("key", "").strip())
    if key is None:
        message = "This key is wrong, or it was revoked or has expired."
        page = render_template("login.html", next=after, message=message)
        return page, 401, {"WWW-Authenticate": CHALLENGE}
    _end_session()
    reply = redirect(after if _OWN_PATH.fullmatch(after) else url_for("pages.ask"), code=303)
    reply.set_cookie(
        COOKIE,
        keys.log_in(services.database, key),
        max_age=int(keys.SESSION_LIFETIME),
        httponly=True,
        samesite="Lax",
        # The proxy in front speaks TLS, and it or the browser says so.
        secure=request.is_secure or request.headers.get("Origin", "").startswith("https://"),
    )
    return reply


@blueprint.post("/logout")
def log_out() -> Response:
    """End the browser's session, and redirect to the login page."""
    _end_session()
    reply = redirect(url_for("login.form"), code=303)
    reply.delete_cookie(COOKIE, httponly=True, samesite="Lax")
    return reply


def _end_session() -> None:
    """End the session of the browser, if it has one."""
    services = get_services()
    if secret := request.cookies.get(COOKIE):
        keys.log_out(services.database, secret)
        services.keys.forget_session(secret)
