"""Asking on the pages in a real browser."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from jobs.database import Database
from jobs.models import ANONYMOUS
from jobs.pipeline import Sampling
from jobs.use_cases import stages, submission, workers
from jobs.use_cases.stages import Claim, Output
from jobs.use_cases.submission import NewJob
from tests.acceptance.browser.leases import hold
from tests.acceptance.browser.page import (
    JOB_PAGE,
    QUESTION,
    TITLES,
    ask,
    job_of,
    opened,
    outputs,
    status,
    stay,
    stayed,
    text,
    texts,
)
from tests.acceptance.conftest import Service

pytestmark = pytest.mark.browser


def test_a_question_shows_its_three_texts_live(page: Page, service: Service) -> None:
    ask(page, service)
    expect(page).to_have_url(JOB_PAGE)
    stay(page)
    expect(page.locator("main")).to_contain_text(QUESTION)
    expect(status(page)).to_have_text("Completed")
    assert [h.text_content() for h in page.get_by_role("heading", level=3).all()] == TITLES
    assert texts(page) == outputs(service, job_of(page))
    for title in TITLES:  # which may be empty with this model
        expect(page.get_by_role("region", name=title, exact=True)).to_contain_text("finished")
    expect(page.get_by_role("button", name="Cancel")).to_have_count(0)
    assert stayed(page)
    page.reload()
    assert texts(page) == outputs(service, job_of(page))

    page.get_by_role("link", name="Jobs").click()
    newest = page.locator("tbody tr").first
    expect(newest).to_contain_text("Completed")
    newest.get_by_role("link", name=QUESTION).click()
    expect(page).to_have_url(JOB_PAGE)
    expect(status(page)).to_have_text("Completed")


def test_an_invalid_question_shows_an_error_in_the_form(browser: Browser, service: Service) -> None:
    with service.http() as http, opened(browser) as (page, complaints):
        before = http.get("/v1/responses").json()["first_id"]
        page.goto(service.url)
        question = page.get_by_label("Question")
        page.get_by_role("button", name="Ask").click()
        assert question.evaluate("q => q.validationMessage"), "the browser reports an empty field"
        expect(question).to_be_focused()

        question.fill(" \n ")
        page.get_by_role("button", name="Ask").click()
        expect(page.get_by_role("alert")).to_have_text("Enter a question.")
        expect(question).to_have_value(" \n ")

        tokens = page.get_by_text(re.compile(r"\d of [\d,]+ tokens"))
        question.fill("Why?")
        expect(tokens).to_be_visible()
        expect(tokens).not_to_contain_text("too long")
        long = "\nWhy, oh why? " * 1000
        question.fill(long)
        expect(tokens).to_contain_text("too long")
        page.get_by_role("button", name="Ask").click()
        expect(page.get_by_role("alert")).to_contain_text("too long")
        expect(page.get_by_role("alert")).to_contain_text("Shorten the question")
        expect(question).to_have_value(long)
        expect(question).to_have_accessible_description(re.compile("too long"))

        question.fill("Why?")
        page.get_by_text("Settings", exact=True).click()
        stop = page.get_by_label("Stop strings")
        expect(stop).to_have_accessible_description(re.compile("ends before the first of"))
        stop.fill("Q:")
        page.get_by_role("button", name="Ask").click()
        expect(page.get_by_role("alert")).to_contain_text("straight quotation marks")
        expect(stop).to_be_focused()
        expect(stop).to_have_accessible_description(re.compile("straight quotation marks"))

        # Larger than the server's limit: the page reports it.
        page.wait_for_load_state()
        question.evaluate("q => { q.value = 'why '.repeat(3e5); }")
        page.get_by_role("button", name="Ask").click()
        assert "too long" in question.evaluate("q => q.validationMessage")
        question.fill("short")
        assert question.evaluate("q => q.validationMessage") == ""
        assert http.get("/v1/responses").json()["first_id"] == before
        assert all("400" in complaint for complaint in complaints)
        complaints.clear()


def test_the_keyboard_is_enough(page: Page, service: Service) -> None:
    def tab_to(target: Locator) -> None:
        for _ in range(60):  # more than a page of jobs has before its first row
            page.keyboard.press("Tab")
            if target.evaluate("e => e === document.activeElement"):
                # The focus must be visible.
                assert target.evaluate("e => getComputedStyle(e).outlineStyle") == "solid"
                return
        raise AssertionError(f"the tab key does not lead to {target}")

    page.goto(service.url)
    expect(page.get_by_label("Question")).to_be_focused()
    page.keyboard.type("By Ctrl and Enter?")
    page.keyboard.press("Control+Enter")
    expect(page).to_have_url(JOB_PAGE)
    expect(status(page)).to_have_text("Completed")

    tab_to(page.get_by_role("link", name="Skip to the content"))
    page.keyboard.press("Enter")
    expect(page.get_by_role("main")).to_be_focused()
    tab_to(page.get_by_text("Request details"))
    page.keyboard.press("Enter")
    expect(page.get_by_text("System prompt")).to_be_visible()

    page.goto(service.url)
    expect(page.get_by_label("Question")).to_be_focused()
    page.keyboard.type("By Tab?")
    page.keyboard.press("Enter")
    page.keyboard.type("And Enter?")
    tab_to(page.get_by_role("button", name="Ask"))
    page.keyboard.press("Enter")
    expect(page).to_have_url(JOB_PAGE)
    expect(page.locator(".question")).to_have_text("By Tab?\nAnd Enter?", use_inner_text=True)
    job_url = page.url

    page.goto(service.url)
    tab_to(page.get_by_role("button", name="Ask"))
    tab_to(page.get_by_role("link", name="Jobs"))
    page.keyboard.press("Enter")
    tab_to(page.get_by_role("link", name="By Tab?"))
    page.keyboard.press("Enter")
    expect(page).to_have_url(job_url)


def test_a_failed_job_is_retried_on_its_page(page: Page, service: Service) -> None:
    database = Database(service.environ["HELIXQ_DATABASE_URL"])
    new = NewJob("Why?", "Be brief.", Sampling(), 1, 5, background=True, metadata={})
    job, _ = submission.submit(database, ANONYMOUS, new, max_queued=100)
    [worker] = workers.list_ready(database)
    claim = stages.claim(database, job.id, 0, worker.id, job_timeout=60)
    assert claim is not None
    stages.fail(database, claim, "server_error", "evil \u202egnp.exe")
    database.close()
    page.goto(f"{service.url}/jobs/{job.id}")
    expect(page.get_by_role("alert").locator(".mark")).to_have_count(1)
    page.get_by_role("button", name="Retry").click()
    expect(status(page)).to_have_text("Completed")
    expect(page.get_by_role("alert")).to_be_empty()
    expect(page.get_by_role("region", name="Answer", exact=True)).to_contain_text("attempt 2")
    expect(page).to_have_title("Completed: Why? · HelixQ")


def test_without_javascript(browser: Browser, service: Service, slow: Service) -> None:
    with opened(browser, java_script_enabled=False) as (page, _):
        ask(page, service)
        expect(page).to_have_url(JOB_PAGE)
        expect(status(page)).to_have_text("Completed")
        assert texts(page) == outputs(service, job_of(page))
        expect(page.locator("meta[http-equiv=refresh]")).to_have_count(0)

        ask(page, slow)
        expect(status(page)).to_have_text("In progress")
        slow.wait_for_text(job_of(page))
        page.get_by_role("button", name="Cancel").click()
        expect(status(page)).to_have_text("Cancelled")
        expect(text(page, "Answer")).not_to_be_empty()


def test_html_in_texts_is_escaped(page: Page, service: Service) -> None:
    question = "<b>x</b><script>document.title = 'owned'</script>&amp; </textarea>"
    written = (
        "<img src=x onerror=\"document.title = 'owned'\"><h1>&lt;</h1>\n\n\u202etxt\x1b  <!-- "
    )
    ask(page, service, question)
    expect(page).to_have_url(JOB_PAGE)
    expect(status(page)).to_have_text("Completed")
    expect(page.locator(".question")).to_have_text(question)
    expect(page.locator("main b, main script")).to_have_count(0)
    expect(page).to_have_title(re.compile("^Completed: <b>x</b><script>"))
    page.goto(f"{service.url}/jobs")
    expect(page.get_by_role("link", name=question)).to_be_visible()

    # A fake worker that generates HTML, shown first from an event and later from the page.
    database = Database(service.environ["HELIXQ_DATABASE_URL"])
    new = NewJob("Why?", "Be bad.", Sampling(), 1, 5, background=True, metadata={})
    job, _ = submission.submit(database, ANONYMOUS, new, max_queued=100)
    [worker] = workers.list_ready(database)

    def start(stage_index: int) -> Claim:
        claim = stages.claim(database, job.id, stage_index, worker.id, job_timeout=3600)
        assert claim is not None
        hold(database, job.id)
        return claim

    def finish(claim: Claim, text: str) -> None:
        assert stages.record(database, claim, Output(text, [len(text)], 9, 1, "stop", 1024, 0.0))

    actor = start(0)
    page.goto(f"{service.url}/jobs/{job.id}")
    expect(page.get_by_role("region", name="Answer", exact=True)).to_contain_text("writing")
    stay(page)
    finish(actor, written)
    critic = start(1)
    expect(text(page, "Answer")).not_to_be_empty()
    assert text(page, "Answer").text_content() == written
    expect(text(page, "Answer").locator(".mark")).to_have_count(2)
    finish(critic, "")
    finish(start(2), written)
    expect(status(page)).to_have_text("Completed")
    assert stayed(page)
    assert texts(page) == [written, "", written]
    expect(page.get_by_role("region", name="Critique", exact=True)).to_contain_text(
        "The text is empty."
    )
    page.reload()
    assert texts(page) == [written, "", written]
    expect(page).to_have_title(re.compile("^Completed: Why"))
    database.close()
