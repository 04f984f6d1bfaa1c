"""What a browser may do to us on behalf of another site: nothing."""

from __future__ import annotations

from urllib.parse import urlsplit

from flask import Flask, Response, request

from jobs.settings import Settings
from web.errors import HTTPError

#: Scripts and styles are files of ours: no inline code, no other origin, no frames.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}


def init_app(app: Flask, settings: Settings) -> None:
    if settings.loopback:
        hosts = {"localhost", "127.0.0.1", "::1", settings.host}
        app.before_request(lambda: _refuse_other_names(hosts))
    app.before_request(_refuse_cross_site)
    app.after_request(_harden)


def _refuse_other_names(hosts: set[str]) -> None:
    """Refuse a name of another site that resolves to this machine (DNS rebinding)."""
    try:
        name = urlsplit(f"//{request.host}").hostname
    except ValueError:
        name = None
    if name not in hosts:
        raise HTTPError(400, "This server is for this machine only.", code="untrusted_host")


def _refuse_cross_site() -> None:
    """Refuse changes that a page of another origin asks for in the user's browser."""
    if request.method in SAFE_METHODS:
        return
    site = request.headers.get("Sec-Fetch-Site", "none")
    origin = request.headers.get("Origin")
    if site not in ("none", "same-origin") or (origin is not None and _foreign(origin)):
        raise HTTPError(403, "A page of another site may not do this.", code="cross_site_request")


def _foreign(origin: str) -> bool:
    try:
        return urlsplit(origin).netloc != request.host
    except ValueError:
        return True


def _harden(response: Response) -> Response:
    response.headers.setdefault("Content-Security-Policy", CONTENT_SECURITY_POLICY)
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    response.headers.setdefault("Referrer-Policy", "same-origin")
    response.headers.setdefault("Cross-Origin-Opener-Policy", "same-origin")
    return response
