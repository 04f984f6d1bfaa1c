"""The list of jobs: by keyboard, on a phone, without a script; new jobs, selection, saved views."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, expect

from jobs.database import Database
from jobs.models import ANONYMOUS
from jobs.pipeline import Sampling
from jobs.use_cases import stages, submission, workers
from jobs.use_cases.stages import Output
from jobs.use_cases.submission import NewJob
from jobs.use_cases.workers import Runtime
from tests.acceptance.browser.in_process import served
from tests.acceptance.browser.page import faint, opened, stay, stayed
from tests.acceptance.browser.pdf import text_of

pytestmark = pytest.mark.browser

NARROW = {"width": 320, "height": 640}
#: Rows of the list.
ROWS = "table tbody tr"
LONG = "Supercalifragilistic" * 20


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Database]]:
    """A web with one job of each kind: its URL and its database."""
    with served(tmp_path_factory.mktemp("db"), "off") as (url, database):
        runtime = Runtime({"engine": "none"}, 4096, "{}")
        workers.register(database, "w", "localhost", 1, runtime)
        for question in ("Evil \u202etxt.exe?", LONG):
            job_id = add(database, question)
            for index in range(3):
                claim = stages.claim(database, job_id, index, "w", job_timeout=60)
                assert claim is not None
                text = f"{question} {LONG}"
                stages.record(database, claim, Output(text, [], 9, 1, "stop", 1024, 0.0))
        claim = stages.claim(database, add(database, "Failed?"), 0, "w", job_timeout=60)
        assert claim is not None
        stages.fail(database, claim, "server_error", "no memory")
        yield url, database


def add(database: Database, question: str) -> str:
    """Submit a job without a worker; return its id."""
    new = NewJob(question, "Be brief.", Sampling(), 1, 5, background=True, metadata={})
    job, _ = submission.submit(database, ANONYMOUS, new, max_queued=100)
    return job.id


def test_a_printed_list_says_which_it_is(browser: Browser, web: tuple[str, Database]) -> None:
    url, _ = web
    with opened(browser) as (page, _):
        page.goto(f"{url}/jobs?status=failed&rating=none")
        page.get_by_label("Save as").fill("Failures")
        page.keyboard.press("Enter")
        expect(page.get_by_role("link", name="Failures")).to_be_visible()
        expect(page.get_by_text("Filters: status = failed")).to_be_hidden()
        printed = text_of(page.pdf())
        for part in ("Filters:status=failed;rating=none", "Failed?", "Nomemory"):
            assert part in printed, part
        # Nothing to click on.
        for part in ("Views", "Failures", "Save", "Search", "elect", "Export", "Keys", "7days"):
            assert part not in printed, part
        page.emulate_media(media="print")
        expect(page.get_by_role("checkbox")).to_be_hidden()


def test_the_list_by_keyboard(browser: Browser, web: tuple[str, Database]) -> None:
    url, database = web
    for number in range(30):
        add(database, f"Number {number}?")
    with opened(browser) as (page, _):
        page.clock.install()
        page.goto(f"{url}/jobs?status=queued")
        page.wait_for_load_state()
        stay(page)
        expect(page.locator(ROWS)).to_have_count(25)
        expect(page.locator("time").first).to_contain_text(re.compile("[A-Z]{3}|GMT"))
        for keys, question in (("jj", "Number 28?"), ("k", "Number 29?"), ("k", "Number 29?")):
            for key in keys:
                page.keyboard.press(key)
            expect(page.get_by_role("link", name=question)).to_be_focused()
        page.keyboard.press("x")
        box = page.get_by_role("checkbox", name="Number 29?")
        expect(box).to_be_checked()
        expect(page.get_by_text("1 selected:")).to_be_visible()
        # From the box too.
        box.focus()
        page.keyboard.press("j")
        page.keyboard.press("x")
        expect(page.get_by_text("2 selected:")).to_be_visible()
        page.keyboard.press("/")
        expect(page.get_by_label("Search")).to_be_focused()
        page.keyboard.type("jx/")
        expect(page.get_by_label("Search")).to_have_value("jx/")

        # Rows stay where they are while jobs arrive.
        first = page.locator(ROWS).first.inner_text()
        with page.expect_response(re.compile("/jobs/news")):
            page.clock.fast_forward(15_000)
        expect(page.get_by_text("new job")).to_have_count(0)
        for number in (30, 31):
            add(database, f"Number {number}?")
        page.clock.fast_forward(15_000)
        expect(page.get_by_role("link", name="2 new jobs")).to_be_visible()
        expect(page).to_have_title("(2) Jobs · HelixQ")
        assert page.locator(ROWS).first.inner_text() == first
        assert stayed(page)

        page.get_by_role("button", name="Cancel").click()
        expect(page.get_by_role("heading", name="2 of 2 jobs were cancelled")).to_be_visible()
        page.get_by_role("link", name="Back to the list").click()
        expect(page).to_have_url(f"{url}/jobs?status=queued")
        expect(page.locator(ROWS).first).to_contain_text("Number 31?")
        page.wait_for_load_state()
        page.get_by_role("link", name="Select all on this page").last.click()
        expect(page.get_by_text("25 selected:")).to_be_visible()

        # A view has a name, and forgets it.
        page.get_by_label("Save as").fill("To <b>do")
        page.keyboard.press("Enter")
        page.goto(f"{url}/jobs")
        expect(page.get_by_label("Save as")).to_be_hidden()
        page.get_by_role("link", name="To <b>do").click()
        expect(page).to_have_url(f"{url}/jobs?status=queued")
        page.get_by_role("button", name="Forget To <b>do").click()
        expect(page.get_by_role("link", name="To <b>do")).to_have_count(0)

        page.get_by_role("link", name="Older").click()
        expect(page.locator(ROWS)).to_have_count(5)
        page.wait_for_load_state()
        page.keyboard.press("j")
        page.keyboard.press("Enter")
        expect(page).to_have_url(re.compile(r"/jobs/resp_\w+$"))

        # Keys of one character can be switched off, on all pages and for good (WCAG 2.1.4).
        page.wait_for_load_state()
        address = page.url
        page.keyboard.press("?")
        dialog = page.get_by_role("dialog", name="Keyboard shortcuts")
        expect(dialog).to_contain_text("show the changes in another way")
        found = Axe().run(page)
        assert found.violations_count == 0, found.generate_report()
        dialog.get_by_label("Single keys are on").uncheck()
        page.keyboard.press("Escape")
        expect(dialog).to_be_hidden()
        for key in ("d", "?"):
            page.keyboard.press(key)
        expect(dialog).to_be_hidden()
        page.goto(f"{url}/jobs")
        page.wait_for_load_state()
        expect(page.get_by_text("next and previous job")).to_be_hidden()
        for key in ("j", "/", "?"):
            page.keyboard.press(key)
        expect(page.locator("body")).to_be_focused()
        page.get_by_role("button", name="Shortcuts").click()
        expect(dialog).to_contain_text("next and previous job")
        dialog.get_by_label("Single keys are on").check()
        dialog.get_by_role("button", name="Close").click()
        # The dialog, which has the same words, is emptied after it has closed.
        expect(page.locator("[data-key-hint]")).to_be_visible()
        page.keyboard.press("/")
        expect(page.get_by_label("Search")).to_be_focused()
        page.goto(address)
        page.wait_for_load_state()
        page.keyboard.press("d")
        expect(page).to_have_url(re.compile("diff=inline"))


def test_the_list_on_a_phone_and_without_a_script(
    browser: Browser, web: tuple[str, Database]
) -> None:
    url, _ = web
    for scheme in ("light", "dark"):
        with opened(browser, viewport=NARROW, color_scheme=scheme) as (page, _):
            for path in ("/jobs?order=asc&select=page", "/jobs?status=failed"):
                page.goto(url + path)
                page.wait_for_load_state()
                page.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
                assert page.evaluate("document.documentElement.scrollWidth") <= 320, path
                assert faint(page) == [], (path, scheme)
                if scheme == "light":
                    found = Axe().run(page)
                    assert found.violations_count == 0, (path, found.generate_report())
            page.set_viewport_size({"width": 1280, "height": 800})
            assert page.evaluate("document.documentElement.scrollWidth") <= 1280
            assert faint(page) == []
    with opened(browser, java_script_enabled=False) as (page, _):
        page.goto(f"{url}/jobs?order=asc&limit=3")
        row = page.locator(ROWS).first
        expect(row.locator(".status")).to_have_text("Completed")
        expect(row.locator(".mark")).to_have_count(2)
        page.get_by_role("link", name="Newer").click()
        page.get_by_role("link", name="Older").click()
        expect(row.locator(".status")).to_have_text("Completed")
        page.get_by_role("link", name="Select all on this page").last.click()
        expect(page.get_by_role("checkbox", checked=True)).to_have_count(3)
        page.get_by_role("button", name="Retry").click()
        expect(page.get_by_role("heading", name="1 of 3 jobs were retried")).to_be_visible()
        expect(page.get_by_role("listitem").filter(has_text="only a failed job")).to_have_count(2)
        page.get_by_role("link", name="Back to the list").click()
        expect(page.locator(ROWS)).to_have_count(3)
        for box in page.get_by_role("checkbox").all()[:2]:
            box.check()
        page.get_by_role("button", name="Compare").click()
        expect(page).to_have_url(re.compile(r"/compare\?left=resp_\w+&right=resp_\w+$"))
