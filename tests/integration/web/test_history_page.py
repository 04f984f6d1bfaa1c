"""The page with the list of jobs: search, filters, pages, and what is done with the selected jobs."""

from __future__ import annotations

import html
import json
import re
from typing import Any

import pytest

from jobs.database import Database
from jobs.models import Attempt, Scope
from jobs.use_cases import indexing, overview, stages
from jobs.use_cases.stages import Output
from tests.conftest import WORKER
from tests.integration.web.client import Client, ask, finish
from tests.integration.web.with_keys import browser, program
from web import summary_cache


def index(database: Database) -> None:
    """Index what has ended, as the duty does."""
    indexing.put(database, indexing.prepare(database))


def questions(page: str) -> list[str]:
    """Return the questions of a page, in their order."""
    found = re.findall(r"<a dir=auto id=q\d+ href=/jobs/resp_\w+>(.*?)</a>", page)
    return [re.sub("</?mark>", "", question) for question in found]


def link(page: str, name: str) -> str:
    """Return where a link of a page leads."""
    found = re.search(rf'<a href="([^"]*)"[^>]*>{name}</a>', page)
    assert found is not None
    return html.unescape(found[1])


def test_a_search_finds_words_and_shows_where(web: Client, database: Database) -> None:
    for question in ("Why is the sky blue?", "Why do cats purr?"):
        finish(database, ask(web, input=question)["id"])
    index(database)
    page = web.get("/jobs?q=purr").text
    assert questions(page) == ["Why do cats purr?"]
    assert 'value="purr"' in page, "the form keeps what was asked"
    assert "Why do cats <mark>purr</mark>?</a>" in page
    page = web.get("/jobs?q=text").text
    assert "A <mark>text</mark>." in page, "the answers have the word"
    page = web.get("/jobs?q=nothing").text
    assert questions(page) == []
    assert "No job matches." in page
    assert "Best matches first." not in page
    assert link(page, "Show all jobs") == "/jobs"
    page = web.get("/jobs?q=no*").text
    assert "At least 3 letters or digits" in page
    assert "No job matches." not in page, "it was not searched for"


def test_filters_are_in_the_address_and_in_the_form(web: Client, database: Database) -> None:
    done, _ = ask(web, input="Done?"), ask(web, input="Open?")
    finish(database, done["id"])
    page = web.get("/jobs?status=completed").text
    assert questions(page) == ["Done?"]
    assert '<input type="hidden" name="status" value="completed">' in page
    sent = web.get("/jobs?q=&status=completed&rating=&adapter=++&worker=")
    assert (sent.status_code, sent.location) == (303, "/jobs?status=completed")
    job_id = done["id"]
    web.post(f"/api/jobs/{job_id}/reviews", json={"regeneration": -1})
    page = web.get("/jobs?rating=-1").text
    assert questions(page) == ["Done?"]
    assert '<td class="rating">-1' in page
    web.post(f"/api/jobs/{job_id}/reviews", json={"critique": 0})
    page = web.get("/jobs?critique_rating=0").text
    assert questions(page) == ["Done?"]
    assert '<td class="rating">-1 <span>critique 0</span>' in page
    assert page.count('<option value="0" selected>') == 1


def test_pairs_of_metadata_are_added_and_removed_and_may_be_empty(
    web: Client, database: Database
) -> None:
    for metadata in ({"team": ""}, {"team": "blue", "a=b": " x"}, {}):
        finish(database, ask(web, input=str(metadata), metadata=metadata)["id"])
    page = web.get("/jobs?min_attempts=1&metadata.team=blue&metadata.a%3Db=+x").text
    assert questions(page) == ["{&#39;team&#39;: &#39;blue&#39;, &#39;a=b&#39;: &#39; x&#39;}"]
    # The form keeps the pairs, has one field for the next, and each has a link to the list without it.
    assert '<input type="hidden" name="metadata.team" value="blue">' in page
    assert '<input type="hidden" name="metadata.a=b" value=" x">' in page
    assert '<details class="wide" open>' in page
    assert '<input name="metadata" placeholder' in page
    removed = re.findall(r'href="([^"]*)" aria-label="Remove ([^"]*)"', page)
    assert [(html.unescape(address), name) for address, name in removed] == [
        ("/jobs?min_attempts=1&metadata.a%3Db=+x", "team = blue"),
        ("/jobs?min_attempts=1&metadata.team=blue", "a=b =  x"),
    ]
    sent = web.get("/jobs?metadata=team+%3D+a%3Db&owner=&metadata.team=x")
    assert (sent.status_code, sent.location) == (303, "/jobs?metadata.team=a%3Db")
    # An empty value is one, too.
    sent = web.get("/jobs?metadata=team%3D&owner=")
    assert (sent.status_code, sent.location) == (303, "/jobs?metadata.team=")
    page = web.get(sent.location).text
    assert questions(page) == ["{&#39;team&#39;: &#39;&#39;}"]
    assert '<input type="hidden" name="metadata.team" value="">' in page
    export = html.unescape(re.findall(r'href="(/api/jobs/export\?[^"]*)"', page)[0])
    assert len(web.get(export).text.splitlines()) == 1
    refused = web.get("/jobs?metadata=team")
    assert refused.status_code == 400
    assert "Metadata must be a key and a value, such as project=apollo." in refused.text


def test_the_last_days_are_one_click_away(web: Client) -> None:
    ask(web)

    def days(address: str) -> list[tuple[str, bool, str]]:
        nav = web.get(address).text.split('aria-label="Created"')[1].split("</nav>")[0]
        found = re.findall(r'<a href="([^"]*)"( aria-current="true")?>(.*?)</a>', nav)
        return [(name, bool(current), html.unescape(url)) for url, current, name in found]

    every, *last = days("/jobs?order=changed&until=2026-01-01")
    assert every == ("Any day", False, "/jobs?order=changed")
    assert [(name, current) for name, current, _ in last] == [
        ("Today", False),
        ("7 days", False),
        ("30 days", False),
    ]

    def is_current(number: int) -> bool:
        _, _, url = days("/jobs?order=changed")[number]
        assert re.fullmatch(r"/jobs\?order=changed&since=\d{4}-\d\d-\d\d", url)
        return days(url)[number][1]

    # The day may end between two requests, but not twice.
    assert all(is_current(number) or is_current(number) for number in (1, 2, 3))
    assert '<details class="wide" open>' in web.get("/jobs?since=2026-01-01T12:00Z").text
    assert '<details class="wide" open>' not in web.get(days("/jobs")[1][2]).text
    assert len(questions(web.get(last[0][2].replace("order=changed&", "")).text)) == 1


def test_headings_order_the_list(web: Client, database: Database) -> None:
    for question in ("One?", "Two?"):
        finish(database, ask(web, input=question)["id"])
    ask(web, input="Open?")
    index(database)
    page = web.get("/jobs?status=completed").text
    assert re.findall(r'<th aria-sort="(\w+)"><a[^>]*>(\w+)', page) == [("descending", "Created")]
    for name, order in (("Changed", "changed"), ("Took", "duration")):
        assert link(page, name) == f"/jobs?status=completed&order={order}"
        ordered = web.get(f"/jobs?order={order}").text
        assert sorted(questions(ordered)) == ["One?", "Two?"]
        assert f'<th aria-sort="descending"><a href="/jobs?order={order}">{name}' in ordered
        assert f'<option value="{order}" selected>' in ordered
        assert link(ordered, "Newest first") == "/jobs?order=desc"
        assert re.search(r"<a[^>]*>Completed</a>", ordered), "open jobs are not in it"
        first = web.get(f"/jobs?order={order}&limit=1").text
        second = web.get(link(first, "Next page")).text
        assert sorted(questions(first) + questions(second)) == ["One?", "Two?"]
        assert "Next page" not in second
        assert web.get(f"/jobs?order={order}&before=resp_1").status_code == 400
    oldest = web.get(link(page, "Created")).text
    assert questions(oldest) == ["One?", "Two?"]
    assert re.findall(r'<th aria-sort="(\w+)">', oldest) == ["ascending"]
    assert link(oldest, "Created") == "/jobs?status=completed&order=desc"
    for search in ("q=text", "q=text&order=desc"):
        page = web.get(f"/jobs?{search}").text
        assert re.findall('<option value="(desc|asc|relevance)"', page) == ["desc", "asc"]
    page = web.get("/jobs?order=changed&min_changed=1").text
    assert "This order has jobs that have ended." in page


def test_metadata_of_a_job_lead_to_the_jobs_that_have_them(web: Client) -> None:
    one = ask(web, input="One?", metadata={"a team": "blue & <red>", "empty": " "})["id"]
    ask(web, input="Other?", metadata={"a team": "blue"})
    page = web.get(f"/jobs/{one}").text
    paths = re.findall(r'href="(/jobs\?metadata[^"]*)"', page)
    assert len(paths) == 2
    for path in paths:
        assert questions(web.get(html.unescape(path)).text) == ["One?"]


def test_ratings_are_in_one_order_and_times_say_their_zone(web: Client, database: Database) -> None:
    job_id = ask(web)["id"]
    finish(database, job_id)
    lists, job, review, stats = (
        web.get(path).text for path in ("/jobs", f"/jobs/{job_id}", "/review", "/stats")
    )
    order = ["-1", "0", "1"]
    for page in (job, review):
        for name in ("critique", "regeneration"):
            assert re.findall(f'name="{name}" value="([^"]*)"', page) == order
    assert re.findall(r'<option value="(-?\d)"', lists.split("</select>")[0]) == order
    for page in (lists, review, stats):
        assert "Created since (UTC)" in page, "times on the page are in the reader's zone"
        assert "Created before (UTC)" in page


def test_a_wrong_filter_is_named_beside_the_form(web: Client) -> None:
    fields = {"q", "min_attempts", "since"}
    for address, named in (
        ("q=OR", "query"),
        ("min_attempts=many", "Attempts at a stage, at least must be an integer"),
        ("since=yesterday", "Created since (UTC) must be a time"),
        (
            "since=2026-01-02&until=2026-01-01",
            "Created since (UTC) must be earlier than Created before (UTC)",
        ),
        ("after=nowhere", "nowhere"),
        ("color=red", "color"),
    ):
        reply = web.get(f"/jobs?{address}")
        assert reply.status_code == 400, address
        assert named in reply.text.split('role="alert">')[1].split("</p>")[0], address
        # The field that is wrong is marked, and no other.
        marked = re.findall(r'<input[^>]* name="(\w+)"[^>]*aria-invalid', reply.text)
        assert marked == ([name] if (name := address.split("=")[0]) in fields else []), address


def test_pages_keep_the_search(web: Client, database: Database) -> None:
    for number in range(3):
        finish(database, ask(web, input=f"Question {number}?")["id"])
    index(database)
    page = web.get("/jobs?q=question&limit=2").text
    assert len(questions(page)) == 2
    page = web.get(link(page, "Next page")).text
    assert len(questions(page)) == 1
    assert "Newer" not in page, "there is no way back in a ranked list, but to its beginning"
    assert len(questions(web.get(link(page, "First page")).text)) == 2
    page = web.get(link(page, "Newest first")).text
    assert questions(page) == ["Question 2?", "Question 1?"]
    older = web.get(link(page, "Older")).text
    assert questions(older) == ["Question 0?"]
    newer = web.get(link(older, "Newer"), follow_redirects=True).text
    assert questions(newer) == ["Question 2?", "Question 1?"]


@pytest.mark.parametrize("filters", ["", "&status=queued", "&metadata.n=1&order=desc"])
def test_both_ways_through_the_pages_while_jobs_arrive(
    web: Client, database: Database, filters: str
) -> None:
    def add(*numbers: int) -> None:
        for number in numbers:
            job = ask(web, input=f"{number}", metadata={"n": "1"})
            if "metadata" in filters:
                finish(database, job["id"])
        index(database)

    add(*range(7))
    first = web.get(f"/jobs?limit=3{filters}").text
    second = web.get(link(first, "Older")).text
    third = web.get(link(second, "Older")).text
    pages = [questions(page) for page in (first, second, third)]
    assert pages == [["6", "5", "4"], ["3", "2", "1"], ["0"]]
    assert "Older</a>" not in third
    add(7, 8)
    back = web.get(link(third, "Newer")).text
    assert questions(back) == ["3", "2", "1"]
    back = web.get(link(back, "Newer")).text
    assert questions(back) == ["6", "5", "4"]
    assert questions(web.get(link(back, "Older")).text) == ["3", "2", "1"]
    # Two jobs are newer: less than a page, so that it is the newest page.
    reply = web.get(link(back, "Newer"))
    assert reply.status_code == 303
    newest = web.get(reply.headers["Location"]).text
    assert questions(newest) == ["8", "7", "6"]
    assert "Newer</a>" not in newest
    assert questions(web.get(link(third, "First page")).text) == ["8", "7", "6"]
    oldest = web.get(f"/jobs?limit=3&order=asc{filters.removesuffix('&order=desc')}").text
    assert questions(oldest) == ["0", "1", "2"]
    newer = web.get(link(oldest, "Newer")).text
    assert questions(web.get(link(newer, "Older"), follow_redirects=True).text) == ["0", "1", "2"]


def test_counts_stop_and_follow_the_filters(
    web: Client, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def chips(address: str) -> dict[str, str]:
        nav = web.get(address).text.split('aria-label="Status"')[1].split("</nav>")[0]
        found = re.findall(r"<a [^>]*>([^<]*?) <span>([^<]*)</span>", nav)
        return dict(found)

    for _ in range(3):
        done = ask(web)["id"]
    finish(database, done)
    counts = chips("/jobs?status=completed")
    assert (counts["All"], counts["Queued"], counts["Completed"], counts["Failed"]) == (
        "3",
        "2",
        "1",
        "0",
    )
    assert chips("/jobs?since=2100-01-01")["All"] == "0"
    assert chips("/jobs?owner=nobody")["All"] == "0"
    assert chips("/jobs?q=why") == {}, "an index by status has no words"
    page = web.get("/jobs?q=why&status=completed").text
    assert link(page, "Failed") == "/jobs?q=why&status=failed"
    assert re.search('href="/jobs[?]q=why&amp;status=completed" aria-current="true"', page)
    page = web.get("/jobs?status=completed,queued").text
    assert re.findall('aria-current="true">(.*?) <span>', page) == ["Queued", "Completed"]
    monkeypatch.setattr(overview, "MAX_COUNT", 2)
    counts = chips("/jobs")
    assert (counts["All"], counts["Queued"], counts["Completed"]) == ("2+", "2+", "1")


def test_rows_say_how_answers_begin(web: Client, database: Database) -> None:
    job_id = ask(web, input="Why?")["id"]
    for stage, text in enumerate(("A draft.", "A critique.", "Fine\n\n evil \u202etxt. " * 60)):
        claim = stages.claim(database, job_id, stage, WORKER, job_timeout=60)
        assert claim is not None
        page = web.get("/jobs").text
        assert ("<b>Draft</b>" in page) == (stage > 0)
        stages.record(database, claim, Output(text, [len(text)], 20, 3, "stop", 1024, 0.0))
    page = web.get("/jobs").text
    assert "A critique." not in page
    assert 'Fine evil <bdi class="mark" data-name="RLO"' in page
    assert page.count("Fine evil") < 15
    assert page.count("\u202e") == page.count("\u202e</bdi>")
    model = web.get(f"/api/jobs/{job_id}").json["model"]
    assert link(page, model[7:15]) == f"/jobs?model={model.replace(':', '%3A')}" or model in page
    index(database)
    assert questions(web.get(f"/jobs?model={model}").text) == ["Why?"]
    page = web.get("/jobs").text
    assert "<td class=attempts>1" in page
    # As `min_changed` compares it: the answer has none of the draft's words.
    assert web.get("/api/jobs").json["data"][0]["changed"] == 1.0
    assert "<td class=changed>100 %" in page


def test_new_jobs_are_counted(web: Client, database: Database) -> None:
    assert "data-news" not in web.get("/jobs").text
    first = ask(web)["id"]
    page = web.get("/jobs?status=queued,failed").text
    found = re.search('data-news="([^"]*)"', page)
    assert found is not None
    address = html.unescape(found[1])
    assert web.get(address).json == {"count": 0, "more": False}
    finish(database, ask(web)["id"])
    ask(web)
    assert web.get(address).json["count"] == 1, "the completed one is not on this list"
    assert web.get(f"/jobs/news?after={first}").json["count"] == 2
    assert web.get(f"/jobs/news?after={first}&owner=nobody").status_code == 400
    for wrong in ("", f"?after={first}&q=why", f"?after={first}&rating=1", "?after=resp_0"):
        assert web.get(f"/jobs/news{wrong}").status_code == 400, wrong
    for elsewhere in ("q=why", f"after={first}", "order=asc", "rating=none"):
        assert "data-news" not in web.get(f"/jobs?{elsewhere}").text, elsewhere


def act(web: Client, action: str, *job_ids: str) -> Any:
    """Press a button below the list."""
    return web.post(
        "/jobs/selected", data={"action": action, "job": list(job_ids), "back": "limit=3"}
    )


def text_of(page: str) -> str:
    return " ".join(html.unescape(re.sub("<[^>]*>", "", page.split("<h1>")[1])).split())


def test_selected_jobs_are_cancelled_retried_and_replayed(web: Client, database: Database) -> None:
    open_, done, failed = (ask(web, input=f"{name}?")["id"] for name in ("Open", "Done", "Failed"))
    finish(database, done)
    claim = stages.claim(database, failed, 0, WORKER, job_timeout=60)
    assert claim is not None
    stages.fail(database, claim, "server_error", "no memory")
    missing = "resp_0"
    page = web.get("/jobs?limit=3").text
    assert page.count("<input type=checkbox") == 3
    assert "checked" not in page
    assert web.get(link(page, "Select all on this page")).text.count(" checked") == 3
    assert 'name="back" value="limit=3"' in page

    page = act(web, "replay", open_, done, failed, missing).text
    said = text_of(page)
    assert said.startswith("1 of 4 jobs were replayed Not replayed Open?: No stage of")
    assert "resp_0: There is no such job." in said
    assert link(page, "Back to the list") == "/jobs?limit=3"
    replay = link(page, "the replay").rsplit("/", 1)[1]
    assert web.get(f"/api/jobs/{replay}").json["replay_of"] == done

    said = text_of(act(web, "retry", open_, failed).text)
    assert said.startswith("1 of 2 jobs were retried Not retried Open?:")
    assert "only a failed job can be retried" in said
    said = text_of(act(web, "cancel", open_, done, failed, open_).text)
    assert said.startswith(
        "2 of 3 jobs were cancelled Not cancelled Done?: It has ended already: it is completed. Cancelled"
    )
    statuses = [web.get(f"/api/jobs/{job}").json["status"] for job in (open_, done, failed)]
    assert statuses == ["cancelled", "completed", "cancelled"]

    pair = web.get(f"/jobs/selected?action=compare&job={done}&job={replay}&back=")
    assert pair.headers["Location"] == f"/compare?left={done}&right={replay}"
    file = web.get(f"/jobs/selected?action=export&job={done}&job={open_}", follow_redirects=True)
    assert "attachment" in file.headers["Content-Disposition"]
    assert [json.loads(line)["id"] for line in file.text.splitlines()] == [done, open_]
    every = web.get("/jobs?status=completed&limit=1").text
    file = web.get(link(every, "Export all jobs of this list"))
    assert [json.loads(line)["id"] for line in file.text.splitlines()] == [done]
    address = "/api/jobs/export?status=completed"
    assert [
        link(every, n) for n in ("CSV", "preference pairs", "fine-tuning", "reviews as CSV")
    ] == [
        f"{address}&format=csv",
        f"{address}&shape=preference",
        f"{address}&shape=sft",
        f"{address}&shape=review&format=csv",
    ]
    for shape in ("sft", "preference"):
        rows = web.get(f"/api/jobs/export?ids={done}&shape={shape}&format=csv")
        assert rows.status_code == 200
    for path, status, reason in (
        (f"/jobs/selected?action=compare&job={done}", 400, "exactly two jobs to compare, not 1"),
        ("/jobs/selected?action=export", 400, "Select 1 to 100 jobs, not 0"),
        (f"/jobs/selected?action=cancel&job={done}", 400, "`compare` or `export`"),
        (f"/jobs/selected?action=export&job={done}&job={missing}", 404, missing),
        (f"/api/jobs/export?ids={done},{missing}", 404, missing),
        (f"/api/jobs/export?ids={done}&status=failed", 400, "without other filters"),
        ("/api/jobs/export?ids=", 400, "`ids` must be 1 to 100 ids"),
    ):
        reply = web.get(path)
        assert reply.status_code == status, path
        assert reason in html.unescape(reply.text), path
    assert act(web, "cancel").status_code == 400
    assert act(web, "cancel", *(f"resp_{n}" for n in range(101))).status_code == 400
    assert act(web, "delete", done).status_code == 400
    foreign = web.post(
        "/jobs/selected",
        data={"action": "replay", "job": done},
        headers={"Origin": "https://example.org"},
    )
    assert foreign.status_code == 403


def test_selected_jobs_are_those_that_a_key_may_change(app: Any) -> None:
    alice, bob = program(app), program(app)
    job_id, own = ask(alice, input="Alice's?")["id"], ask(bob, input="Bob's?")["id"]
    said = text_of(act(bob, "cancel", job_id, own).text)
    assert said.startswith("1 of 2 jobs were cancelled")
    assert f"{job_id}: There is no such job." in said
    assert "Alice" not in said
    for path in (
        f"/jobs/selected?action=export&job={job_id}",
        f"/api/jobs/export?ids={job_id}",
        f"/compare?left={job_id}&right={own}",
    ):
        assert bob.get(path).status_code == 404, path
    assert bob.get(f"/jobs/news?after={job_id}").status_code == 400
    assert alice.get(f"/jobs/news?after={job_id}").json["count"] == 0
    assert "<span>1</span>" in bob.get("/jobs?status=cancelled").text

    auditor = browser(app, Scope.AUDIT)
    page = auditor.get(f"/jobs?owner={alice.key.owner}").text
    assert questions(page) == ["Alice&#39;s?"]
    assert f"<td class=owner>{alice.key.owner}" in page
    assert 'value="cancel"' not in page
    assert act(auditor, "cancel", job_id).status_code == 403
    path = f"/jobs/selected?action=export&job={job_id}"
    assert json.loads(auditor.get(path, follow_redirects=True).text)["id"] == job_id
    both = program(app, Scope.ASK, Scope.AUDIT)
    assert "It is another owner's job" in text_of(act(both, "cancel", job_id).text)
    assert "1 of 1 job was cancelled" in text_of(
        act(program(app, Scope.ADMIN), "cancel", job_id).text
    )


def test_a_long_page_is_small_and_costs_few_queries(
    web: Client, database: Database, selects: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The footer of all pages costs two queries every few seconds: here once.
    monkeypatch.setattr(summary_cache, "MAX_AGE", 3600)
    web.get("/jobs")
    few = selects(lambda: web.get("/jobs"))
    question = (
        "Which of these words are in the question, and which ones are in the answer that it gets?"
    )
    text = "An answer of a few sentences. It goes on for a while, so that only its beginning is shown. "
    for number in range(50):
        job = ask(web, input=f"{question} {number}")
        if number < 10:
            finish(database, job["id"], output=Output(text * 30, [], 20, 3, "stop", 1024, 0.0))
    with database.write() as connection:  # as if all had ended: they need no index
        columns = [c.name for c in Attempt.__table__.columns if c.name not in ("id", "job_id")]
        named = ", ".join(f'"{name}"' for name in columns)
        connection.exec_driver_sql(
            f"INSERT INTO attempts (job_id, {named}) SELECT j.id, {', '.join(f'a.{n}' for n in columns)} "
            "FROM jobs AS j, attempts AS a WHERE j.lease_token = 0 AND a.job_id = "
            "(SELECT min(job_id) FROM attempts)"
        )
    index(database)
    page = web.get("/jobs?limit=50")
    assert page.text.count("<q dir=auto>An answer of a few sentences.") == 50
    size = len(page.data)
    addresses = {
        *re.findall(r'(?:href|src)="(/assets/[^"]*)"', page.text),
        "/assets/keys.js",
        "/assets/times.js",
    }
    assert len(addresses) == 6
    for address in addresses:
        with web.get(address) as file:
            size += len(file.data)
    assert size <= 61_000
    assert selects(lambda: web.get("/jobs?limit=50")) <= few + 2
    assert selects(lambda: web.get("/jobs?limit=50")) <= 6


def test_what_people_write_is_text(web: Client, database: Database) -> None:
    finish(database, ask(web, input="<b>bold</b> <script>alert(1)</script>")["id"])
    index(database)
    page = web.get("/jobs?q=bold+%3Cscript%3E").text
    assert "<script>alert" not in page
    assert "<b>bold" not in page
    assert len(questions(page)) == 1
