"""Protection against other sites in a user's browser: DNS rebinding, cross-site requests, framing."""

from __future__ import annotations

from urllib.parse import urlsplit

from flask import Flask, Response, request

from jobs.settings import Settings
from web.errors import HTTPError

#: Scripts and styles only from our own files: no inline code, no other origins, no frames.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}


def init_app(app: Flask, settings: Settings) -> None:
    """Protect an application."""
    app.before_request(lambda: check_request(settings))
    app.after_request(_add_headers)


def check_request(settings: Settings) -> None:
    """Check where the current request comes from.

    Raises:
        HTTPError: from another site's page (403), or by a name that is not this machine's (400).
    """
    # Where keys are required, a page that has another name for this machine has neither key nor cookie.
    if settings.loopback and not settings.auth_required:
        _check_host({"localhost", "127.0.0.1", "::1", settings.host})
    _check_origin()


def _check_host(hosts: set[str]) -> None:
    """Refuse other host names, which a site can make resolve to this machine (DNS rebinding)."""
    try:
        name = urlsplit(f"//{request.host}").hostname
    except ValueError:
        name = None
    if name not in hosts:
        raise HTTPError(
            400,
            "The `Host` header must name this machine: the server listens on a loopback address.",
            code="untrusted_host",
        )


def _check_origin() -> None:
    """Refuse changes that a page of another origin requests (CSRF)."""
    if request.method in SAFE_METHODS:
        return
    site = request.headers.get("Sec-Fetch-Site", "none")
    origin = request.headers.get("Origin")
    if site not in ("none", "same-origin") or (origin is not None and _is_foreign(origin)):
        raise HTTPError(
            403, "Requests from pages of other sites are not allowed.", code="cross_site_request"
        )


def _is_foreign(origin: str) -> bool:
    try:
        return urlsplit(origin).netloc != request.host
    except ValueError:
        return True


def _add_headers(response: Response) -> Response:
    response.headers.setdefault("Content-Security-Policy", CONTENT_SECURITY_POLICY)
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    response.headers.setdefault("Referrer-Policy", "same-origin")
    response.headers.setdefault("Cross-Origin-Opener-Policy", "same-origin")
    response.headers.setdefault("Cross-Origin-Resource-Policy", "same-origin")
    return response
