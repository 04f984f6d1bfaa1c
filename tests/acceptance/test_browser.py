"""The pages in a real browser."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, Route, expect, sync_playwright
from werkzeug.serving import make_server

import migrations
from jobs import settings
from jobs.database import Database
from jobs.models import ANONYMOUS, Scope
from jobs.pipeline import Sampling
from jobs.use_cases import keys, stages, submission, workers
from jobs.use_cases.stages import Claim, Output
from jobs.use_cases.submission import NewJob
from tests import chromium, servers
from tests.acceptance.conftest import Service, running
from tests.conftest import LONG
from web import create_app, key_cache
from web.services import Services

pytestmark = pytest.mark.browser

QUESTION = "What is the relationship between Earth's atmosphere, magnetic field and gravity?"
TITLES = ["Answer", "Critique", "Regeneration"]
JOB_PAGE = re.compile(r"/jobs/resp_\w+$")
#: Timeout of a page in milliseconds, on a busy machine.
PATIENCE = 30_000

#: A function that returns the texts whose contrast is below WCAG's AA.
FAINT = """() => {
  const channels = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = (color) => {
    const [r, g, b] = channels(color).slice(0, 3).map((c) => c / 255)
      .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    const color = getComputedStyle(element).backgroundColor;
    return channels(color)[3] === 0 ? behind(element.parentElement) : color;
  };
  return [...document.querySelectorAll("body *")]
    .filter((e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()))
    .filter((e) => e.checkVisibility())
    .filter((e) => {
      const [a, b] = [light(getComputedStyle(e).color), light(behind(e))];
      return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) < 4.5;
    })
    .map((e) => e.outerHTML);
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    executable = chromium.executable()
    if executable is None:
        if os.environ.get("REQUIRE_BROWSER"):
            pytest.fail(chromium.MISSING)
        pytest.skip(chromium.MISSING)
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=chromium.ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def service(
    browser: Browser,  # noqa: ARG001 (without one there is nothing to start)
    checkpoint: Path,
    socket_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Service]:
    """A service whose texts are short."""
    database = f"sqlite:///{tmp_path_factory.mktemp('db') / 'jobs.sqlite3'}"
    with running(checkpoint, database, socket_folder / "browser") as running_service:
        yield running_service


@pytest.fixture(scope="module")
def slow(
    browser: Browser,  # noqa: ARG001 (without one there is nothing to start)
    endless: Path,
    socket_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Service]:
    """A service whose texts do not end."""
    database = f"sqlite:///{tmp_path_factory.mktemp('db') / 'jobs.sqlite3'}"
    with running(
        endless, database, socket_folder / "browser-slow", HELIXQ_SLOTS="1"
    ) as running_service:
        yield running_service
        running_service.web.stop()  # a test may have replaced it


@contextmanager
def opened(browser: Browser, **options: Any) -> Iterator[tuple[Page, list[str]]]:
    """Open a tab; errors on its console are added to the list.

    Whoever expects complaints takes them out of the list: at the end it must be empty.
    """
    complaints: list[str] = []
    context = browser.new_context(**options)
    page = context.new_page()
    page.on(
        "console",
        lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None,
    )
    page.on("pageerror", lambda error: complaints.append(str(error)))
    try:
        yield page, complaints
    finally:
        context.close()
    assert complaints == []


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A tab without script errors or violations of the CSP."""
    with opened(browser) as (page, _):
        yield page


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


def status(page: Page) -> Locator:
    return page.get_by_role("status")


def text(page: Page, title: str) -> Locator:
    return page.get_by_role("region", name=title).locator(".text")


def texts(page: Page) -> list[str | None]:
    return [text(page, title).text_content() for title in TITLES]


def outputs(service: Service, job_id: str) -> list[str]:
    history: Any = service.history(job_id)
    return [attempt["output"] for attempt in history["attempts"]]


def job_of(page: Page) -> str:
    return page.url.rsplit("/", 1)[1]


def settled(page: Page) -> None:
    """Wait until the page is no longer live."""
    expect(page.locator("[data-response]")).to_have_count(0)


def stay(page: Page) -> None:
    """Mark the page; a reload would lose the mark."""
    page.evaluate("window.stayed = true")


def stayed(page: Page) -> bool:
    return bool(page.evaluate("window.stayed === true"))


def ask(page: Page, service: Service, question: str = QUESTION) -> None:
    page.goto(service.url)
    page.get_by_label("Question").fill(question)
    page.get_by_role("button", name="Ask").click()


def test_a_question_shows_its_three_texts_live(page: Page, service: Service) -> None:
    ask(page, service)
    expect(page).to_have_url(JOB_PAGE)
    stay(page)
    expect(page.locator("main")).to_contain_text(QUESTION)
    expect(status(page)).to_have_text("Completed")
    assert [h.text_content() for h in page.get_by_role("heading", level=2).all()] == TITLES
    assert texts(page) == outputs(service, job_of(page))
    for title in TITLES:  # which may be empty with this model
        expect(page.get_by_role("region", name=title)).to_contain_text("finished")
    expect(page.get_by_role("button", name="Cancel")).to_have_count(0)
    assert stayed(page)
    page.reload()
    assert texts(page) == outputs(service, job_of(page))

    page.get_by_role("link", name="Jobs").click()
    newest = page.get_by_role("listitem").first
    expect(newest).to_contain_text("Completed")
    newest.get_by_role("link", name=QUESTION).click()
    expect(page).to_have_url(JOB_PAGE)
    expect(status(page)).to_have_text("Completed")


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
    expect(page.get_by_role("region", name="Answer")).to_contain_text("writing")
    expect(page.get_by_role("region", name="Critique")).to_contain_text("waiting")
    assert stayed(page)
    shown = answer.text_content() or ""

    page.get_by_role("button", name="Cancel").click()
    expect(status(page)).to_have_text("Cancelled")
    # The text so far stays.
    expect(answer).to_contain_text(shown.strip())
    expect(page.get_by_role("region", name="Critique")).to_contain_text("not run")
    expect(page.get_by_role("button", name="Cancel")).to_have_count(0)
    assert slow.wait(job_id)["status"] == "cancelled"


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

        long = "\nWhy, oh why? " * 1000
        question.fill(long)
        page.get_by_role("button", name="Ask").click()
        expect(page.get_by_role("alert")).to_contain_text("too long")
        expect(page.get_by_role("alert")).to_contain_text("Shorten the question")
        expect(question).to_have_value(long)
        expect(question).to_have_accessible_description(re.compile("too long"))

        # Larger than the server's limit: the page reports it.
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
        for _ in range(20):
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


def test_without_javascript(browser: Browser, service: Service, slow: Service) -> None:
    with opened(browser, java_script_enabled=False) as (page, _):
        ask(page, service)
        expect(page).to_have_url(JOB_PAGE)
        expect(status(page)).to_have_text("Completed")
        assert texts(page) == outputs(service, job_of(page))
        expect(page.locator("meta[http-equiv=refresh]")).to_have_count(0)

        ask(page, slow)
        expect(status(page)).to_have_text("In progress")
        page.get_by_role("button", name="Cancel").click()
        expect(status(page)).to_have_text("Cancelled")
        expect(text(page, "Answer")).not_to_be_empty()


def test_a_lost_connection_is_survived(browser: Browser, slow: Service) -> None:
    with opened(browser) as (page, complaints):
        job_id = slow.submit(QUESTION, max_output_tokens=40)
        page.goto(f"{slow.url}/jobs/{job_id}")
        stay(page)
        expect(text(page, "Answer")).not_to_be_empty()
        # With its children, which would go on for a moment.
        os.killpg(slow.web.popen.pid, signal.SIGKILL)
        slow.web.wait()
        slow.web.stop()
        expect(status(page)).to_contain_text("Connection lost. Reconnecting…")
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
        page.route(re.compile(r"/v1/responses/resp_\w+$"), polls)
        page.route(JOB_PAGE, job_page)
        job_id = slow.submit(QUESTION, max_output_tokens=LONG)
        slow.wait_for_text(job_id)
        with page.expect_response(lambda r: r.ok and r.url.endswith(f"/v1/responses/{job_id}")):
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


def test_html_in_texts_is_escaped(page: Page, service: Service) -> None:
    question = "<b>x</b><script>document.title = 'owned'</script>&amp; </textarea>"
    written = "<img src=x onerror=\"document.title = 'owned'\"><h1>&lt;</h1>\n\n  <!-- "
    ask(page, service, question)
    expect(page).to_have_url(JOB_PAGE)
    expect(status(page)).to_have_text("Completed")
    expect(page.locator(".question")).to_have_text(question)
    expect(page.locator("main b, main script")).to_have_count(0)
    expect(page).to_have_title(re.compile("^<b>x</b><script>"))
    page.goto(f"{service.url}/jobs")
    expect(page.get_by_role("link", name=question)).to_be_visible()

    # A fake worker that generates HTML, shown first from an event and later from the page.
    database = Database(service.environ["HELIXQ_DATABASE_URL"])
    new = NewJob("Why?", "Be bad.", Sampling(), 1, 5, background=True, metadata={})
    job, _ = submission.submit(database, ANONYMOUS, new, max_queued=100)
    [worker] = workers.list_ready(database)

    def start(stage_index: int) -> Claim:
        claim = stages.claim(database, job.id, stage_index, worker.id, job_timeout=60)
        assert claim is not None
        return claim

    def finish(claim: Claim, text: str) -> None:
        assert stages.record(database, claim, Output(text, [len(text)], 9, 1, "stop", 1024, 0.0))

    actor = start(0)
    page.goto(f"{service.url}/jobs/{job.id}")
    expect(page.get_by_role("region", name="Answer")).to_contain_text("writing")
    stay(page)
    finish(actor, written)
    critic = start(1)
    expect(text(page, "Answer")).not_to_be_empty()
    assert text(page, "Answer").text_content() == written
    finish(critic, "")
    finish(start(2), written)
    expect(status(page)).to_have_text("Completed")
    assert stayed(page)
    assert texts(page) == [written, "", written]
    expect(page.get_by_role("region", name="Critique")).to_contain_text("The text is empty.")
    page.reload()
    assert texts(page) == [written, "", written]
    expect(page).to_have_title(re.compile("^Why"))
    database.close()


@pytest.fixture
def guarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Database]]:
    """A web that requires API keys, without a worker and in this process: its URL and its database."""
    monkeypatch.setattr(key_cache, "TTL", 0)
    app = create_app(
        settings.load(
            {
                "HELIXQ_AUTH": "required",
                "HELIXQ_DATABASE_URL": f"sqlite:///{tmp_path / 'jobs.sqlite3'}",
                "HELIXQ_REDIS_URL": "unix:///nowhere.sock",
            }
        )
    )
    services: Services = app.extensions["helixq"]
    migrations.migrate(services.database.engine)
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", services.database
    services.waiter.stopping = lambda: True
    server.shutdown()
    thread.join()
    server.server_close()
    services.database.close()
    services.progress.close()


def test_login_and_logout(browser: Browser, guarded: tuple[str, Database]) -> None:
    url, database = guarded
    key, secret = keys.create(database, "alice's phone", [Scope.ASK], owner="alice")
    new = NewJob("Why?", "Be brief.", Sampling(), 1, 5, background=True, metadata={})
    job, _ = submission.submit(database, key.owner, new, max_queued=10)
    for scheme in ("light", "dark"):
        options = {"viewport": {"width": 360, "height": 740}, "color_scheme": scheme}
        with opened(browser, **options) as (page, complaints):
            page.goto(f"{url}/jobs/{job.id}")
            expect(page.get_by_label("API key")).to_be_focused()
            assert page.evaluate(FAINT) == []
            page.keyboard.type("hq_wrong")
            page.keyboard.press("Enter")
            expect(page.get_by_role("alert")).to_contain_text("wrong")
            assert page.evaluate(FAINT) == []
            page.keyboard.type(secret)
            page.keyboard.press("Enter")
            expect(page).to_have_url(JOB_PAGE)
            expect(status(page)).to_have_text("Queued")
            for path in ("/", "/jobs", f"/jobs/{job.id}"):
                page.goto(url + path)
                assert page.evaluate("document.documentElement.scrollWidth") <= 360, path
                assert page.evaluate(FAINT) == [], (path, scheme)
            if scheme == "light":
                page.get_by_role("button", name="Log out").click()
            else:  # The page is open, and follows the job.
                keys.revoke(database, key.id)
            expect(page.get_by_role("heading", name="Log in")).to_be_visible()
            assert all("401" in complaint for complaint in complaints)
            complaints.clear()


def test_pages_fit_a_phone_and_have_enough_contrast(browser: Browser, service: Service) -> None:
    long = "Supercalifragilistic" * 20 + "\n" + "long " * 200
    turns = [{"role": "user", "content": long}, {"role": "assistant", "content": long}]
    question = {"role": "user", "content": long}
    job_id = service.submit([*turns, question], context="turns", rounds=2)
    service.wait(job_id)
    for scheme in ("light", "dark"):
        options = {"viewport": {"width": 360, "height": 740}, "color_scheme": scheme}
        with opened(browser, **options) as (page, _):
            for path in ("/", "/jobs", f"/jobs/{job_id}"):
                page.goto(service.url + path)
                for details in page.locator("summary").all():
                    details.click()
                width = page.evaluate("document.documentElement.scrollWidth")
                assert width <= 360, path
                assert page.evaluate(FAINT) == [], (path, scheme)
                ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
                dark = max(map(int, re.findall(r"\d+", ground))) < 64
                assert dark == (scheme == "dark")
