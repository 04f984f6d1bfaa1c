"""Access: every request needs an API key or a login with one, where keys are required.

`Authorization: Bearer hq_…` names the key of a program. A browser has a cookie of a login session
(`web.pages.login`). The cookie is safe from other sites' pages: it is ``SameSite=Lax``, and
`web.security` refuses changes that come from another origin.
"""

from __future__ import annotations

from flask import Flask, Response, g, redirect, request, url_for
from sqlalchemy.exc import SQLAlchemyError
from werkzeug.wrappers import Response as BaseResponse

from jobs.models import Scope
from jobs.settings import Settings
from web.caller import EVERYBODY, Caller, get_caller, of_key, set_caller
from web.errors import HTTPError
from web.security import SAFE_METHODS
from web.services import get_services

#: The cookie with the secret of a login session.
COOKIE = "helixq_session"
#: What is open to everybody: health checks, logging in, the API's description, and the files of the pages. The log,
#: too: it has digests only, and whoever checks the service with it should not need a key that reads everything.
OPEN_BLUEPRINTS = {"health", "log", "login", "openapi"}
OPEN_ENDPOINTS = {"pages.static"}
#: What may be changed with the scope `audit` too.
AUDITOR_ENDPOINTS = {"api.add_review", "pages.review", "pages.submit_review"}
#: What only operators may change.
ADMIN_ENDPOINTS = {"api.pause_queue", "api.resume_queue", "pages.pause", "pages.resume"}
CHALLENGE = 'Bearer realm="HelixQ"'


def init_app(app: Flask, settings: Settings) -> None:
    """Set the caller of every request of an application, or refuse the request."""
    app.before_request(lambda: authenticate(settings))
    if settings.auth_required:
        app.after_request(_keep_private)


def authenticate(settings: Settings) -> BaseResponse | None:
    """Set the caller of the current request, or return a redirection to the login page.

    Raises:
        HTTPError: it has no valid key (401), or one that does not allow it (403).
    """
    if not settings.auth_required:
        set_caller(EVERYBODY)
        return None
    # A request without an endpoint gets 404 or 405.
    if (
        request.endpoint is None
        or request.endpoint in OPEN_ENDPOINTS
        or request.blueprint in OPEN_BLUEPRINTS
    ):
        return None
    cache = get_services().keys
    given = _bearer_token()
    by_header = given is not None
    secret = request.cookies.get(COOKIE, "") if given is None else given
    find = cache.find if by_header else cache.find_by_session
    key = find(secret)
    if key is None:
        if by_header:
            raise _unauthorized(
                "invalid_api_key",
                "The API key is wrong, or it was revoked or has expired.",
                ', error="invalid_token"',
            )
        if request.blueprint == "pages":
            return _to_login()
        raise _unauthorized(
            "missing_api_key", "No API key was given. Send it as `Authorization: Bearer hq_…`."
        )
    # The pages read /v1 as well, to show the texts of a running job to those who audit it.
    audits = not by_header or request.blueprint != "v1"

    def is_valid() -> bool:
        try:
            return find(secret) is not None
        except SQLAlchemyError:
            return True  # The database does not respond: nobody has revoked the key.

    caller = of_key(key, audits=audits, is_valid=is_valid)
    reads = request.method in SAFE_METHODS or request.endpoint in AUDITOR_ENDPOINTS
    _check_scope(caller, reads=audits and reads)
    set_caller(caller)
    return None


def _bearer_token() -> str | None:
    """Return the token of the `Authorization` header; None if it has another scheme, such as a proxy's."""
    authorization = request.authorization
    if authorization is None or authorization.type != "bearer":
        return None
    return authorization.token or ""


def check_scope(scope: Scope) -> None:
    """Check that the caller has a scope.

    Raises:
        HTTPError: the API key lacks it (403).
    """
    if not get_caller().may(scope):
        raise _insufficient(scope)


def _check_scope(caller: Caller, *, reads: bool) -> None:
    if request.endpoint in ADMIN_ENDPOINTS:
        if not caller.may(Scope.ADMIN):
            raise _insufficient(Scope.ADMIN)
    elif not caller.may(Scope.ASK, *([Scope.AUDIT] if reads else [])):
        raise _insufficient(Scope.ASK)


def _insufficient(scope: Scope) -> HTTPError:
    return HTTPError(
        403,
        f"This needs an API key with the scope `{scope}`.",
        code="insufficient_scope",
        headers={"WWW-Authenticate": f'{CHALLENGE}, error="insufficient_scope", scope="{scope}"'},
    )


def _unauthorized(code: str, message: str, details: str = "") -> HTTPError:
    headers = {"WWW-Authenticate": CHALLENGE + details}
    return HTTPError(401, message, code=code, headers=headers)


def _to_login() -> BaseResponse:
    """Redirect to the login page, and from there back to a page that was read."""
    read = request.method in SAFE_METHODS
    back = request.full_path.removesuffix("?") if read else None
    return redirect(url_for("login.form", next=back), code=303)


def _keep_private(response: Response) -> Response:
    """Keep what a key allowed out of the caches of proxies."""
    if "caller" in g:
        response.cache_control.private = True
        if request.blueprint == "pages":
            response.cache_control.no_cache = True
    return response
