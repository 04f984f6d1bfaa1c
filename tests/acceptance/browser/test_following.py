"""A job's page follows its job, whatever happens to the connection."""

from __future__ import annotations

import os
import re
import signal
import time
from contextlib import closing
from typing import Any

import pytest
import sqlalchemy as sa
from playwright.sync_api import Browser, Page, Route, expect

from jobs.database import Database
from jobs.database_clock import utcnow
from jobs.models import ANONYMOUS, Worker
from jobs.pipeline import Sampling
from jobs.progress import Progress, TextDeltas
from jobs.use_cases import stages, submission, workers
from jobs.use_cases.submission import NewJob
from jobs.use_cases.workers import Runtime
from tests import servers
from tests.acceptance.browser.leases import hold, let_run_out
from tests.acceptance.browser.page import (
    JOB_PAGE,
    PATIENCE,
    QUESTION,
    opened,
    outputs,
    settled,
    status,
    stay,
    stayed,
    text,
    texts,
)
from tests.acceptance.conftest import Service
from tests.conftest import LONG

pytestmark = pytest.mark.browser

#: Keeps what the page has told, since the next notice takes its place.
KEEP_NOTICES = """
notices = [];
const place = document.querySelector("[data-notice]");
new MutationObserver(() => notices.push(place.textContent)).observe(place, {childList: true, characterData: true, subtree: true});
"""


def told(page: Page, notice: str) -> None:
    """Wait until the page has told something, which may have made place for something else."""
    give_up = time.monotonic() + PATIENCE / 1000
    while notice not in (notices := page.evaluate("notices")):
        assert time.monotonic() < give_up, notices
        page.wait_for_timeout(50)


class FirstFails:
    """A route whose first request gets an error; later ones get this reply, or the server's."""

    def __init__(self, **answer: Any) -> None:
        self.count = 0
        self._answer = answer

    def __call__(self, route: Route) -> None:
        self.count += 1
        if self.count == 1:
            route.fulfill(status=503, content_type="text/html", body="<h1>Away</h1>")
        elif self._answer:
            route.fulfill(**self._answer)
        else:
            route.continue_()


def test_text_streams_until_a_cancel(page: Page, slow: Service) -> None:
    job_id = slow.submit(QUESTION, max_output_tokens=LONG)
    page.goto(f"{slow.url}/jobs/{job_id}")
    stay(page)
    answer = text(page, "Answer")
    expect(answer).not_to_be_empty()
    first_text = answer.text_content() or ""
    expect(answer).not_to_have_text(first_text)
    assert (answer.text_content() or "").startswith(first_text)
    expect(status(page)).to_have_text("In progress")
    expect(page.get_by_role("region", name="Answer", exact=True)).to_contain_text("writing")
    expect(page.get_by_role("region", name="Critique", exact=True)).to_contain_text("waiting")
    assert stayed(page)
    shown = answer.text_content() or ""

    page.get_by_role("button", name="Cancel").click()
    expect(status(page)).to_have_text("Cancelled")
    # The text so far stays.
    expect(answer).to_contain_text(shown.strip())
    # Stages that will never run take no room.
    for title in ("Critique", "Regeneration"):
        expect(page.get_by_role("region", name=title, exact=True)).to_have_count(0)
    expect(page.get_by_text("Critique and Regeneration did not run.")).to_be_visible()
    expect(page.get_by_role("button", name="Cancel")).to_have_count(0)
    assert slow.wait(job_id)["status"] == "cancelled"


def test_a_cancel_survives_a_lost_connection(browser: Browser, slow: Service) -> None:
    with opened(browser) as (page, complaints):
        for loses_reply in (False, True):
            job_id = slow.submit(QUESTION, max_output_tokens=LONG)
            page.goto(f"{slow.url}/jobs/{job_id}")
            stay(page)
            expect(text(page, "Answer")).not_to_be_empty()
            cancel = page.get_by_role("button", name="Cancel")
            if loses_reply:
                # The server cancels, and the page hears of it otherwise.
                def lose(route: Route) -> None:
                    route.fetch(max_redirects=0)
                    route.abort("connectionreset")

                page.route("**/jobs/*/cancel", lose)
                cancel.click()
            else:
                page.evaluate(KEEP_NOTICES)
                page.context.set_offline(True)
                cancel.click()
                told(page, "The server does not respond. Try again.")
                expect(status(page)).to_contain_text("In progress")
                expect(cancel).to_be_enabled()
                page.context.set_offline(False)
                cancel.click()
            expect(status(page)).to_have_text("Cancelled")
            settled(page)
            assert stayed(page)
            assert slow.wait(job_id)["status"] == "cancelled"
            assert text(page, "Answer").text_content() == outputs(slow, job_id)[0]
        assert all("net::ERR_" in complaint for complaint in complaints)
        complaints.clear()


def test_a_cancel_in_another_tab_is_shown_and_keeps_focus(page: Page, slow: Service) -> None:
    job_id = slow.submit(QUESTION, max_output_tokens=LONG)
    page.goto(f"{slow.url}/jobs/{job_id}")
    expect(text(page, "Answer")).not_to_be_empty()
    stay(page)
    page.get_by_role("button", name="Cancel").focus()
    page.get_by_text("Request details").click()
    page.get_by_role("button", name="Cancel").focus()
    with slow.http() as http:
        http.post(f"/v1/responses/{job_id}/cancel")
    expect(status(page)).to_have_text("Cancelled")
    assert stayed(page)
    expect(page.get_by_role("main")).to_be_focused()
    expect(page.get_by_text("System prompt")).to_be_visible()
    settled(page)
    assert text(page, "Answer").text_content() == outputs(slow, job_id)[0]


def test_a_silent_worker_is_named_and_the_next_attempt_counted(page: Page, slow: Service) -> None:
    database = Database(slow.environ["HELIXQ_DATABASE_URL"])
    [worker] = workers.list_ready(database)
    tokenizer = workers.get_tokenizer(database, worker.tokenizer_digest)
    runtime = Runtime(worker.runtime, worker.context, tokenizer)
    workers.register(database, "worker-silent", "gpu-9", 1, runtime)
    new = NewJob("Why?", "Be brief.", Sampling(), 1, 5, background=True, metadata={})
    job, _ = submission.submit(database, ANONYMOUS, new, max_queued=100)
    page.goto(f"{slow.url}/jobs/{job.id}")
    stay(page)
    standing = page.locator("#standing")
    expect(standing).to_contain_text("1st of 1")
    claim = stages.claim(database, job.id, 0, "worker-silent", job_timeout=3600)
    assert claim is not None
    hold(database, job.id)
    answer = page.get_by_role("region", name="Answer", exact=True)
    expect(standing).to_contain_text("Answer on gpu-9, last heartbeat")
    with closing(Progress(slow.environ["HELIXQ_REDIS_URL"])) as progress:
        progress.publish([(job.id, TextDeltas(claim.text_id, 0, ["Other ", "words"]))])
    expect(text(page, "Answer")).to_have_text("Other words")
    with database.write() as connection:
        died = sa.update(Worker).where(Worker.id == "worker-silent")
        connection.execute(died.values(seen_at=utcnow(-60)))
    expect(standing).to_contain_text("no text for")
    expect(standing).to_contain_text("The worker gpu-9 is silent")
    expect(standing).to_contain_text("the stage is tried again in about")
    expect(answer).to_contain_text("worker silent")
    # The sweep of the other worker takes the stage back, and runs it.
    let_run_out(database, job.id)
    expect(answer).to_contain_text("writing, attempt 2")
    # Its text is another one, and takes the place of the one that was lost.
    expect(text(page, "Answer")).not_to_contain_text("Other words")
    expect(text(page, "Answer")).not_to_be_empty()
    expect(standing).to_contain_text("characters/s")
    expect(standing).to_contain_text(re.compile(r"running for \d+ s · \d+ characters"))
    page.get_by_role("button", name="Cancel").click()
    expect(status(page)).to_have_text("Cancelled")
    expect(answer).to_contain_text("attempt 2")
    expect(page.get_by_role("row", name=re.compile("Lost: the worker .* stopped"))).to_be_visible()
    expect(page).to_have_title("Cancelled: Why? · HelixQ")
    assert stayed(page)
    database.close()


def test_a_lost_connection_is_survived(browser: Browser, slow: Service) -> None:
    with opened(browser) as (page, complaints):
        job_id = slow.submit(QUESTION, max_output_tokens=40)
        slow.wait_for_text(job_id)
        # The job does not end before the connection is lost.
        slow.worker.signal(signal.SIGSTOP)
        try:
            page.goto(f"{slow.url}/jobs/{job_id}")
            stay(page)
            expect(text(page, "Answer")).not_to_be_empty()
            # With its children, which would go on for a moment.
            os.killpg(slow.web.popen.pid, signal.SIGKILL)
            slow.web.wait()
            slow.web.stop()
            expect(status(page)).to_contain_text("Connection lost. Reconnecting…")
        finally:
            slow.worker.signal(signal.SIGCONT)
        slow.web = servers.web(slow.environ)
        slow.web.wait_for("listening")
        expect(status(page)).to_have_text("Incomplete")
        assert texts(page) == outputs(slow, job_id)
        assert all(texts(page))
        assert stayed(page)
        assert all("net::ERR_" in complaint for complaint in complaints)
        complaints.clear()


def test_failed_requests_of_a_page_are_retried(browser: Browser, slow: Service) -> None:
    with opened(browser) as (page, complaints):
        page.add_init_script(
            "streams = []; EventSource = class extends EventSource {"
            " constructor(url) { super(url); streams.push(this); } }"
        )
        # The first request of every kind gets an error page, and streams stay silent.
        streams = FirstFails(content_type="text/event-stream", body=": waiting\n\n")
        polls, pages = FirstFails(), FirstFails()

        def job_page(route: Route) -> None:
            if route.request.resource_type == "fetch":
                pages(route)
            else:
                route.continue_()

        page.route("**/v1/responses/*?stream=true", streams)
        page.route("**/jobs/*/news", polls)
        page.route(JOB_PAGE, job_page)
        job_id = slow.submit(QUESTION, max_output_tokens=LONG)
        slow.wait_for_text(job_id)
        with page.expect_response(lambda r: r.ok and r.url.endswith(f"/jobs/{job_id}/news")):
            page.goto(f"{slow.url}/jobs/{job_id}")
            stay(page)
        expect(status(page)).to_contain_text("In progress")
        with slow.http() as http:
            http.post(f"/v1/responses/{job_id}/cancel")
        expect(status(page)).to_have_text("Cancelled")
        settled(page)
        assert text(page, "Answer").text_content() == outputs(slow, job_id)[0]
        assert stayed(page)
        assert min(streams.count, polls.count, pages.count) >= 2
        states = page.evaluate("streams.map((stream) => stream.readyState)")
        assert len(states) >= 2
        assert set(states) == {2}, "all streams are closed"
        assert all("status of 503" in complaint for complaint in complaints)
        complaints.clear()
