"""Logins of browsers with an API key."""

from __future__ import annotations

from typing import Any

from tests.integration.web.with_keys import new_key
from web.access import COOKIE


def test_a_browser_logs_in_and_out(app: Any) -> None:
    web = app.test_client()
    refused = web.post("/login", data={"key": "hq_wrong", "next": "/jobs?after=x"})
    assert refused.status_code == 401
    assert "wrong, or it was revoked" in refused.text
    assert 'value="/jobs?after=x"' in refused.text
    key, secret = new_key(app)
    reply = web.post("/login", data={"key": f" {secret}\n", "next": "/jobs?after=x"})
    assert (reply.status_code, reply.headers["Location"]) == (303, "/jobs?after=x")
    cookie = reply.headers["Set-Cookie"]
    assert {"HttpOnly", "SameSite=Lax", "Path=/"} <= set(cookie.split("; "))
    assert "Secure" not in cookie
    assert secret not in cookie
    page = web.get("/")
    assert key.name in page.text
    assert page.headers["Cache-Control"] == "private, no-cache"
    assert web.post("/", data={"question": "Why?"}).status_code == 303
    # The cookie does not help a page of another site.
    for path, data in (("/", {"question": "Why?"}), ("/login", {"key": secret}), ("/logout", {})):
        reply = web.post(path, data=data, headers={"Origin": "https://evil.example"})
        assert reply.status_code == 403
    stolen = web.get_cookie(COOKIE)
    assert web.post("/logout").headers["Location"] == "/login"
    assert web.get_cookie(COOKIE) is None
    web.set_cookie(COOKIE, stolen.value)
    assert web.get("/jobs").status_code == 303, "the session itself has ended"


def test_a_session_cannot_be_fixed(app: Any) -> None:
    """A login begins a session of its own, whatever cookie the browser had, and ends the one before."""
    (_, mine), (_, other) = new_key(app), new_key(app)
    attacker, web = app.test_client(), app.test_client()
    attacker.post("/login", data={"key": other})
    planted = attacker.get_cookie(COOKIE).value
    for before in ("planted", planted):
        web.set_cookie(COOKIE, before)
        assert web.post("/login", data={"key": mine}).status_code == 303
        assert web.get_cookie(COOKIE).value not in (before, planted)
        assert attacker.get("/jobs").status_code == (303 if before == planted else 200)
    first = web.get_cookie(COOKIE).value
    web.post("/login", data={"key": mine})
    stolen = app.test_client()
    stolen.set_cookie(COOKIE, first)
    assert stolen.get("/jobs").status_code == 303
    assert web.get("/jobs").status_code == 200


def test_a_login_redirects_to_own_paths_only(app: Any) -> None:
    _, secret = new_key(app)
    for target in (
        "https://evil.example",
        "//evil.example",
        "/\\evil.example",
        "/\t/evil.example",
        "javascript:alert(1)",
        "jobs",
        "",
        "/jobs\r\nSet-Cookie: a=b",
    ):
        reply = app.test_client().post("/login", data={"key": secret, "next": target})
        assert reply.headers["Location"] == "/", target


def test_a_login_over_tls_sets_a_secure_cookie(app: Any) -> None:
    _, secret = new_key(app)
    headers = {"Host": "helixq.example", "Origin": "https://helixq.example"}
    reply = app.test_client().post("/login", data={"key": secret}, headers=headers)
    assert "Secure" in reply.headers["Set-Cookie"].split("; ")
