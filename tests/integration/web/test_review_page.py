"""Reviewing one job after another, without a script."""

from __future__ import annotations

import re
from html import unescape
from typing import Any

from jobs.database import Database
from jobs.models import ANONYMOUS
from tests.integration.web.client import Client, ask, finish
from tests.integration.web.test_job_page import CRITIQUE, DRAFT, FINAL, answer, text_of


def shown(page: str) -> str | None:
    """Return the id of the job that a page asks about."""
    found = re.search(r'<a href="/jobs/(resp_\w+)">Full job</a>', page)
    return found and found[1]


def link(page: str, pattern: str) -> str:
    found = re.search(pattern, page)
    assert found is not None, text_of(page)
    return unescape(found[1])


def save(web: Client, page: str, **fields: str) -> Any:
    """Send the form of a page; return the reply."""
    return web.post(
        link(page, r'<form class="part rating" method="post" action="([^"]*)"'), data=fields
    )


def skip(web: Client, page: str) -> str:
    return str(web.get(link(page, r'<a class="button" href="([^"]*)" data-key="s">')).text)


def told(page: str) -> str:
    return " ".join(text_of(page).split())


def test_one_job_after_another_is_reviewed(web: Client, database: Database) -> None:
    page = web.get("/review").text
    assert "There is no completed job to review." in told(page)
    assert told(page).count("needs two reviewers of the same job") == 2
    ids = {ask(web, input=f"Question {number}?")["id"] for number in range(3)}
    ask(web)
    for job_id in ids:
        answer(database, job_id, DRAFT, CRITIQUE, FINAL)

    cleaned = web.get("/review?reviewer=ann&kind=&seed=")
    assert cleaned.headers["Location"] == "/review?reviewer=ann"
    page = web.get("/review?reviewer=ann").text
    first = shown(page)
    assert "0 of 3 reviewed by you, 0 by anyone" in told(page)
    for part in ("<del>**five**.</del>", "<ins>**four**.", CRITIQUE, "Question", "-1 bad"):
        assert part in page
    inline = web.get(link(page, r'<a href="([^"]*)"[^>]*>inline</a>')).text
    assert "<del>**five**.</del><ins>**four**." in inline
    assert shown(inline) == first

    empty = save(web, page, reviewer="ann", corrected_answer=" ", tags="a, b" * 40)
    assert empty.status_code == 400
    assert 'role="alert"' in empty.text
    assert "a, ba, b" in empty.text, "what was typed stays"
    assert shown(empty.text) == first

    saved = save(
        web, inline, reviewer="ann", regeneration="1", critique="-1", note="a\r\nb", tags="x, y"
    )
    assert saved.status_code == 303
    assert "reviewer=ann" in saved.headers["Location"]
    assert "diff=inline" in saved.headers["Location"]
    [stored] = web.get(f"/api/jobs/{first}/reviews").json["data"]
    assert (stored["regeneration"], stored["critique"], stored["note"]) == (1, -1, "a\nb")
    assert (stored["tags"], stored["reviewer"]) == (["x", "y"], "ann")

    page = web.get(saved.headers["Location"]).text
    assert "✓ Saved." in page
    assert f'href="/jobs/{first}#reviews"' in page
    assert "1 of 3 reviewed by you, 1 by anyone" in told(page)
    second = shown(page)
    page = skip(web, page)
    third = shown(page)
    assert {first, second, third} == ids
    assert "1 skipped" in told(page)
    page = web.get(save(web, page, reviewer="ann", regeneration="0").headers["Location"]).text
    assert "That was the last one. You skipped 1 of them." in told(page)
    page = web.get(link(page, r'<a href="([^"]*)">Go through these')).text
    assert shown(page) == second
    page = web.get(save(web, page, reviewer="ann", critique="1").headers["Location"]).text
    assert "You have reviewed all of them." in told(page)
    assert "3 of 3 reviewed by you" in told(page)


def test_others_verdicts_are_seen_where_reviewers_disagree(web: Client, database: Database) -> None:
    assert "no job that two reviewers rated differently" in told(
        web.get("/review?kind=disagreements").text
    )
    ids = [ask(web)["id"] for _ in range(2)]
    for job_id in ids:
        finish(database, job_id)
        for reviewer, rating in (("ann", 1), ("bob", -1)):
            body = {"regeneration": rating, "note": "Of <i>course.", "reviewer": reviewer}
            assert web.post(f"/api/jobs/{job_id}/reviews", json=body).status_code == 201
    page = web.get("/review?reviewer=cat").text
    assert "Of &lt;i&gt;course." not in page, "the sample is reviewed without the others' verdicts"
    page = web.get("/review?reviewer=cat&kind=disagreements").text
    assert "2 jobs that reviewers disagree on, 0 reviewed by you" in told(page)
    assert page.count("Of &lt;i&gt;course.") == 2
    assert "Cohen's kappa 0.00, 2 jobs that ann and bob rated" in told(page)
    first = shown(page)
    page = web.get(save(web, page, reviewer="cat", regeneration="1").headers["Location"]).text
    assert {first, shown(page)} == set(ids)
    assert "Krippendorff's alpha" in told(page)
    page = skip(web, page)
    assert "That was the last one. Start again." in told(page)
    assert shown(web.get(link(page, r'<a href="([^"]*)">Start again')).text) == first


def test_what_cannot_be_reviewed_is_said(web: Client, database: Database) -> None:
    job_id = ask(web)["id"]
    assert web.post(f"/review/{job_id}", data={"critique": "1"}).status_code == 409
    assert "once it has ended" in told(web.get(f"/review?job={job_id}").text)
    finish(database, job_id)
    assert web.get(f"/review?job={job_id}").status_code == 200
    for address in ("kind=x", "seed=x", "since=x", "reviewer=" + "x" * 41):
        assert web.get(f"/review?{address}").status_code == 400, address
    for address in ("job=resp_none", "job=%00"):
        assert web.get(f"/review?{address}").status_code == 404, address
    assert web.get("/review?after=%00&saved=%3Cb%3E&reviewed=2").status_code == 200
    assert web.post(f"/review/{job_id}", data={"critique": "1"}).status_code == 303
    [stored] = web.get(f"/api/jobs/{job_id}/reviews").json["data"]
    assert stored["reviewer"] == ANONYMOUS
