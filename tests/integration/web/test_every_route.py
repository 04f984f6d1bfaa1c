"""What holds for every route, generated from Flask's route table: who gets in, whose things are there, headers.

A new route fails the first test until `ROUTES` says who may request it.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import pytest
from flask import Flask

from jobs.models import Scope
from tests.integration.web.client import ask, finish, services_of
from tests.integration.web.with_keys import browser, program


class Access(StrEnum):
    """Who may request a route."""

    #: Everybody, without a key.
    OPEN = "open"
    #: Keys with the scope `ask`.
    ASK = "ask"
    #: Those, and keys with the scope `audit`.
    READ = "read"
    #: Keys with the scope `audit` alone.
    AUDIT = "audit"
    #: Keys with the scope `admin` alone.
    ADMIN = "admin"


@dataclass(frozen=True)
class Route:
    """A method of a path, and what makes a request of it that gets as far as the thing that it names."""

    access: Access
    query: dict[str, str] = field(default_factory=dict)
    json: Any = None
    form: dict[str, str] | None = None
    #: Whether it names somebody's thing that is not in the path: in ``query``, ``json`` or ``form``.
    names: bool = False
    #: What somebody gets who may not have the thing.
    foreign: int = 404
    #: Whether the owner's request would leave this machine.
    leaves: bool = False


OPEN, ASK, READ, AUDIT, ADMIN = (Route(access) for access in Access)

#: By method and rule. ``{job}`` and so on stand for the ids of somebody's things.
ROUTES: dict[str, Route] = {
    "GET /assets/<path:filename>": OPEN,
    "GET /docs": OPEN,
    "GET /docs/assets/<path:filename>": OPEN,
    "GET /docs/swagger-ui/<name>": OPEN,
    "GET /health": OPEN,
    "GET /healthz": OPEN,
    "GET /livez": OPEN,
    "GET /log/checkpoint": OPEN,
    "GET /log/tile/<level>/<path:path>": OPEN,
    "GET /login": OPEN,
    "GET /openapi.json": OPEN,
    "GET /readyz": OPEN,
    "POST /login": OPEN,
    "POST /logout": OPEN,
    # Pages.
    "GET /": Route(Access.READ, {"from": "{job}"}, names=True),
    "GET /compare": Route(Access.READ, {"left": "{job}", "right": "{job}"}, names=True),
    "GET /jobs": Route(Access.READ, {"after": "{job}"}, names=True, foreign=400),
    "GET /jobs/<job_id>": READ,
    "GET /jobs/<job_id>/attempts/<int:index>": READ,
    "GET /jobs/<job_id>/markdown": READ,
    "GET /jobs/<job_id>/news": READ,
    "GET /jobs/news": READ,
    "GET /jobs/selected": Route(
        Access.READ, {"action": "export", "job": "{job}"}, names=True, foreign=404
    ),
    "GET /review": Route(Access.READ, {"job": "{job}"}, names=True),
    "GET /stats": READ,
    "GET /system": AUDIT,
    "POST /": Route(Access.ASK, form={"question": "Why?"}),
    "POST /jobs/<job_id>/cancel": ASK,
    "POST /jobs/<job_id>/replay": ASK,
    "POST /jobs/<job_id>/retry": ASK,
    "POST /jobs/<job_id>/review": Route(Access.READ, form={"critique": "1"}),
    # The page says of each job what came of it.
    "POST /jobs/selected": Route(
        Access.ASK, form={"action": "cancel", "job": "{job}"}, names=True, foreign=200
    ),
    "POST /review/<job_id>": Route(Access.READ, form={"critique": "1"}),
    "POST /system/deliveries/<delivery_id>/redeliver": ASK,
    "POST /system/pause": ADMIN,
    "POST /system/resume": ADMIN,
    # Auditing.
    "DELETE /api/jobs/<job:job_id>": ASK,
    "GET /api/jobs": Route(Access.READ, {"after": "{job}"}, names=True, foreign=400),
    "GET /api/jobs/<job:job_id>": READ,
    "GET /api/jobs/<job_id>/place": READ,
    "GET /api/jobs/<job_id>/proof": READ,
    "GET /api/jobs/<job_id>/reviews": READ,
    "GET /api/jobs/export": Route(Access.READ, {"ids": "{job}"}, names=True),
    "GET /api/reviews/agreement": READ,
    "GET /api/reviews/queue": READ,
    "GET /api/stats": READ,
    "GET /api/system": AUDIT,
    "GET /metrics": AUDIT,
    "POST /api/system/pause": Route(Access.ADMIN, json={}),
    "POST /api/system/resume": ADMIN,
    "POST /api/jobs/<job_id>/erase": Route(Access.ASK, json={"texts": ["/system"]}),
    "POST /api/jobs/<job_id>/replay": ASK,
    "POST /api/jobs/<job_id>/retry": ASK,
    "POST /api/jobs/<job_id>/reviews": Route(Access.READ, json={"critique": 1}),
    # They erase and delete what matches among one's own.
    "POST /api/jobs/erase": Route(
        Access.ASK, json={"owner": "{owner}", "texts": "all"}, names=True, foreign=200
    ),
    "POST /api/jobs/delete": Route(Access.ASK, json={"owner": "{owner}"}, names=True, foreign=200),
    # Asking.
    "DELETE /v1/chat/completions/<completion:job_id>": ASK,
    "DELETE /v1/files/<file_id>": ASK,
    "DELETE /v1/responses/<response:job_id>": ASK,
    "DELETE /v1/webhook_endpoints/<endpoint_id>": ASK,
    "GET /v1/batches": Route(Access.ASK, {"after": "{batch}"}, names=True, foreign=400),
    "GET /v1/batches/<batch_id>": ASK,
    "GET /v1/chat/completions/<completion:job_id>": ASK,
    "GET /v1/chat/completions/<completion:job_id>/messages": ASK,
    "GET /v1/files": Route(Access.ASK, {"after": "{file}"}, names=True, foreign=400),
    "GET /v1/files/<file_id>": ASK,
    "GET /v1/files/<file_id>/content": ASK,
    "GET /v1/models": ASK,
    "GET /v1/models/<name>": ASK,
    "GET /v1/responses": Route(Access.ASK, {"after": "{job}"}, names=True, foreign=400),
    "GET /v1/responses/<job_id>/input_items": ASK,
    "GET /v1/responses/<response:job_id>": ASK,
    "GET /v1/webhook_endpoints": Route(
        Access.ASK, {"after": "{endpoint}"}, names=True, foreign=400
    ),
    "GET /v1/webhook_endpoints/<endpoint_id>": ASK,
    "GET /v1/webhook_endpoints/<endpoint_id>/deliveries": ASK,
    "GET /v1/webhook_event_types": ASK,
    "POST /v1/batches": Route(
        Access.ASK,
        json={
            "input_file_id": "{file}",
            "endpoint": "/v1/responses",
            "completion_window": "24h",
        },
        names=True,
        foreign=400,
    ),
    "POST /v1/batches/<batch_id>/cancel": ASK,
    "POST /v1/chat/completions": Route(Access.ASK, json={"messages": []}),
    "POST /v1/files": ASK,
    "POST /v1/responses": Route(
        Access.ASK,
        json={
            "input": "Why?",
            "context": "turns",
            "previous_response_id": "{job}",
            "background": True,
        },
        names=True,
        foreign=400,
    ),
    "POST /v1/responses/<job_id>/cancel": ASK,
    "POST /v1/responses/input_tokens": Route(
        Access.ASK,
        json={"input": "Why?", "context": "turns", "previous_response_id": "{job}"},
        names=True,
        foreign=400,
    ),
    "POST /v1/webhook_deliveries/<delivery_id>/redeliver": ASK,
    "POST /v1/webhook_endpoints": Route(Access.ASK, json={}),
    "POST /v1/webhook_endpoints/<endpoint_id>": Route(Access.ASK, json={"name": "b"}),
    "POST /v1/webhook_endpoints/<endpoint_id>/rotate_secret": Route(Access.ASK, json={}),
    "POST /v1/webhook_endpoints/<endpoint_id>/test": Route(
        Access.ASK, json={"event_type": "response.cancelled"}, leaves=True
    ),
}
#: What the variables of rules stand for.
VARIABLES = {
    "job_id": "{job}",
    "file_id": "{file}",
    "batch_id": "{batch}",
    "endpoint_id": "{endpoint}",
    "delivery_id": "{delivery}",
    "index": "0",
    "name": "helixnet",
    "filename": "helixq.css",
    "level": "0",
    "path": "000",
}
#: Of the ids of somebody's things.
OWNED = {"job_id", "file_id", "batch_id", "endpoint_id", "delivery_id"}


def served(app: Flask) -> list[str]:
    """Return the method and the rule of each route."""
    return sorted(
        f"{method} {rule.rule}"
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    )


def variables(rule: str) -> list[str]:
    return re.findall(r"<(?:\w+:)?(\w+)>", rule)


def names_a_thing(route: str) -> bool:
    return ROUTES[route].names or not OWNED.isdisjoint(variables(route))


def make_things(owner: Any) -> dict[str, str]:
    """Make one of each thing that belongs to an owner; return their ids."""
    endpoint = owner.post(
        "/v1/webhook_endpoints",
        json={
            "url": "https://example.com/",
            "name": "a",
            "event_types": ["response.cancelled"],
        },
    ).json["id"]
    cancelled = ask(owner)["id"]
    assert owner.post(f"/v1/responses/{cancelled}/cancel").status_code == 200
    [delivery] = owner.get(f"/v1/webhook_endpoints/{endpoint}/deliveries").json["data"]
    form = {"purpose": "batch", "file": (io.BytesIO(b"{}\n"), "in.jsonl")}
    file = owner.post("/v1/files", data=form, content_type="multipart/form-data").json["id"]
    body = {"input_file_id": file, "endpoint": "/v1/responses", "completion_window": "24h"}
    job = ask(owner)["id"]
    finish(services_of(owner).database, job, 1)
    return {
        "job": job,
        "file": file,
        "batch": owner.post("/v1/batches", json=body).json["id"],
        "endpoint": endpoint,
        "delivery": delivery["id"],
        "owner": owner.key.owner,
    }


def filled(value: Any, things: dict[str, str]) -> Any:
    """Return a value with the ids of somebody's things in it."""
    if isinstance(value, str):
        return re.sub(r"\{(\w+)\}", lambda match: things.get(match[1], "resp_0"), value)
    if isinstance(value, dict):
        return {name: filled(each, things) for name, each in value.items()}
    return value


def request(client: Any, route: str, things: dict[str, str], **options: Any) -> Any:
    """Make a request of a route about somebody's things."""
    method, rule = route.split(" ")
    path = re.sub(r"<(?:\w+:)?(\w+)>", lambda match: VARIABLES[match[1]], rule)
    given = ROUTES[route]
    content = {} if given.json is None else {"json": filled(given.json, things)}
    if given.form is not None:
        content = {"data": filled(given.form, things)}
    return client.open(
        filled(path, things),
        method=method,
        query_string=filled(given.query, things),
        buffered=True,
        **content,
        **options,
    )


def test_every_route_says_who_may_request_it(site: Any) -> None:
    assert served(site) == sorted(ROUTES)


def test_no_key_no_entry(site: Any) -> None:
    nobody = site.test_client()
    for route, given in ROUTES.items():
        reply = request(nobody, route, {})
        if given.access is Access.OPEN:
            assert reply.status_code not in (403, 500), route
            assert reply.headers.get("Location", "/") in ("/", "/login"), route
            continue
        if route.split(" ")[1].startswith(("/v1", "/api", "/metrics")):
            assert reply.status_code == 401, route
            assert reply.headers["WWW-Authenticate"] == 'Bearer realm="HelixQ"', route
            wrong = request(nobody, route, {}, headers={"Authorization": "Bearer hq_wrong"})
            assert wrong.status_code == 401, route
        else:
            assert reply.status_code == 303, route
            assert reply.headers["Location"].startswith("/login"), route
        wrong = request(nobody, route, {}, headers={"Cookie": "helixq_session=wrong"})
        assert wrong.status_code == reply.status_code, route


def test_too_small_a_scope_is_refused(site: Any) -> None:
    asker, auditor = program(site), program(site, Scope.AUDIT)
    things = make_things(asker)
    for route, given in ROUTES.items():
        for key, lacks in (
            (asker, (Access.AUDIT, Access.ADMIN)),
            (auditor, (Access.ASK, Access.ADMIN)),
        ):
            if given.access in lacks:
                reply = request(key, route, things)
                assert reply.status_code == 403, route
                wanted = f'scope="{given.access}"'
                assert wanted in reply.headers["WWW-Authenticate"], route
        if given.access is Access.READ:
            assert request(auditor, route, things).status_code not in (401, 403, 404), route


def test_what_belongs_to_another_owner_is_not_found(site: Any) -> None:
    owner, other = program(site), program(site)
    visitor = browser(site, owner=other.key.owner)
    things = make_things(owner)
    named = [route for route in ROUTES if names_a_thing(route)]
    assert len(named) > 40
    for route in named:
        for client in (other, visitor):
            reply = request(client, route, things)
            assert reply.status_code == ROUTES[route].foreign, route
            unknown = {name: f"{value[:-1]}z" for name, value in things.items()}
            # Nothing tells a thing of somebody else from none at all.
            absent = request(client, route, unknown)
            assert absent.status_code == reply.status_code, route
            texts = [each.text for each in (reply, absent)]
            for name in things:
                texts = [t.replace(things[name], "").replace(unknown[name], "") for t in texts]
            assert texts[0] == texts[1], route
    assert owner.get(f"/v1/responses/{things['job']}").json["status"] == "in_progress"
    assert owner.get(f"/v1/batches/{things['batch']}").json["status"] == "validating"
    assert owner.get(f"/v1/webhook_endpoints/{things['endpoint']}").json["name"] == "a"
    # The owner finds all of it, so the requests above were right.
    for route in sorted(named, key=lambda route: route.startswith("DELETE")):
        if not ROUTES[route].leaves and "selected" not in route:
            reply = request(owner, route, things)
            if ROUTES[route].access is not Access.AUDIT:
                assert reply.status_code not in (401, 403, 404), (route, reply.text)
        if route.startswith("DELETE") or route == "POST /api/jobs/delete":
            things = make_things(owner)


@pytest.mark.parametrize("scopes", [(Scope.ASK, Scope.AUDIT), (Scope.ADMIN,)])
def test_scopes_for_all_owners_change_nothing_of_others_but_admins(
    site: Any, scopes: tuple[Scope, ...]
) -> None:
    owner, client = program(site), program(site, *scopes)
    things = make_things(owner)
    for route, given in ROUTES.items():
        changes = not route.startswith("GET") and given.access is Access.ASK
        # A replay is a job of who asks for it.
        if not changes or OWNED.isdisjoint(variables(route)) or route.endswith("/replay"):
            continue
        if Scope.ADMIN in scopes:
            if not given.leaves:
                assert request(client, route, things).status_code not in (401, 403, 404), route
            if route.startswith("DELETE"):
                things = make_things(owner)
        else:
            assert request(client, route, things).status_code == 404, route


def test_no_route_takes_a_change_from_a_page_of_another_site(site: Any) -> None:
    visitor = browser(site, Scope.ADMIN)
    owner = program(site)
    things = make_things(owner)
    foreign = (
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "http://localhost:81"},
    )
    changes = [route for route in ROUTES if not route.startswith("GET")]
    for route in changes:
        for headers in foreign:
            reply = request(visitor, route, things, headers=headers)
            assert reply.status_code == 403, (route, headers)
    assert owner.get(f"/v1/responses/{things['job']}").json["status"] == "in_progress"
    assert visitor.get("/jobs").status_code == 200, "it is still logged in"


def test_every_reply_has_the_headers_that_protect_a_browser(site: Any) -> None:
    visitor, nobody = browser(site, Scope.ADMIN), site.test_client()
    things = make_things(program(site))
    failing = site.view_functions["pages.stats"]
    site.config["PROPAGATE_EXCEPTIONS"] = False
    site.view_functions["pages.stats"] = lambda: 1 / 0
    try:
        replies = [
            (route, request(client, route, things))
            for route in sorted(
                ROUTES, key=lambda route: route.startswith(("DELETE", "POST /logout"))
            )
            if not ROUTES[route].leaves
            for client in (nobody, visitor)
        ]
        visitor = browser(site)
        replies += [
            (f"{status} {path}", visitor.open(path, method=method, data=data))
            for status, method, path, data in (
                *(
                    (404, "GET", path, None)
                    for path in ("/none", "/v1/none", "/api/none", "/log/x")
                ),
                *((405, "PATCH", path, None) for path in ("/", "/v1/responses", "/api/jobs")),
                (413, "POST", "/v1/responses", b" " * (1 << 21)),
                (413, "POST", "/", b" " * (1 << 21)),
            )
        ]
        replies += [("OPTIONS /", visitor.options("/")), ("HEAD /", visitor.head("/"))]
    finally:
        site.view_functions["pages.stats"] = failing
    statuses = {reply.status_code for _, reply in replies}
    assert {200, 303, 400, 401, 404, 405, 413, 500} <= statuses
    for route, reply in replies:
        check_headers(route, reply)


def check_headers(route: str, reply: Any) -> None:
    policy = dict(
        directive.strip().split(" ", 1)
        for directive in reply.headers["Content-Security-Policy"].split(";")
    )
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    for directive in ("script-src", "style-src", "connect-src"):
        assert policy[directive] == "'self'", route
    assert policy["form-action"] in ("'self'", "'none'"), route
    assert reply.headers["X-Content-Type-Options"] == "nosniff", route
    assert reply.headers["Referrer-Policy"] == "same-origin", route
    assert reply.headers["Cross-Origin-Opener-Policy"] == "same-origin", route
    assert reply.headers["Cross-Origin-Resource-Policy"] == "same-origin", route
    assert "Access-Control-Allow-Origin" not in reply.headers, route
    assert "Server" not in reply.headers, route
    if reply.mimetype == "text/html":
        # Scripts and styles are files: the policy would not run others, and no browser has to rely on it.
        page = reply.text
        assert not re.search(r"<script(?![^>]*\ssrc=)[^>]*>", page), route
        assert not re.search(r"<style|\sstyle\s*=|\son[a-z]+\s*=|javascript:", page, re.I), route
    for cookie in reply.headers.getlist("Set-Cookie"):
        assert {"HttpOnly", "SameSite=Lax", "Path=/"} <= set(cookie.split("; ")), route
    if "helixq_session" in str(reply.request.headers) and not route.startswith("GET /assets"):
        caches = reply.headers.get("Cache-Control", "")
        public = ROUTES.get(route, OPEN).access is Access.OPEN
        assert public or "private" in caches or "no-store" in caches, route
