"""What the tests of the pages do with a tab and look for in it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Browser, Locator, Page, expect

from tests.acceptance.conftest import Service

QUESTION = "What is the relationship between Earth's atmosphere, magnetic field and gravity?"
TITLES = ["Answer", "Critique", "Regeneration"]
JOB_PAGE = re.compile(r"/jobs/resp_\w+$")
#: Timeout of a page in milliseconds, on a busy machine.
PATIENCE = 60_000
_FAINT = """() => {
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


@contextmanager
def opened(browser: Browser, **options: Any) -> Iterator[tuple[Page, list[str]]]:
    """Open a tab; errors on its console are added to the list.

    Whoever expects complaints takes them out of the list: at the end it must be empty.
    """
    complaints: list[str] = []
    context = browser.new_context(**options)
    context.set_default_timeout(PATIENCE)
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


def faint(page: Page) -> list[str]:
    """Return the elements with texts whose contrast is below WCAG's AA."""
    # A page that a form led to has its elements before its style sheet.
    page.wait_for_load_state()
    found: list[str] = page.evaluate(_FAINT)
    return found


def status(page: Page) -> Locator:
    return page.get_by_role("status")


def text(page: Page, title: str) -> Locator:
    return page.get_by_role("region", name=title, exact=True).locator(".text")


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
