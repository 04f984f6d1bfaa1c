"""Reviewing by keyboard, and the system's page that updates by itself."""

from __future__ import annotations

import re
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.acceptance.browser.page import opened
from tests.acceptance.browser.test_appearance import answered
from tests.acceptance.conftest import Service

pytestmark = pytest.mark.browser


def reviews(service: Service, job_id: str) -> Any:
    with service.http() as http:
        return http.get(f"/api/jobs/{job_id}/reviews").json()["data"]


def job_of(page: Page) -> str:
    href = page.get_by_role("link", name="Full job").get_attribute("href")
    return str(href).rsplit("/", 1)[1]


def test_reviews_by_keyboard(browser: Browser, service: Service) -> None:
    for number in range(3):
        answered(service, f"Question {number}?", ["One two.", "Three.", "One four."])
    with opened(browser, viewport={"width": 1300, "height": 800}) as (page, _):
        page.goto(f"{service.url}/review?reviewer=ann")
        page.wait_for_load_state()
        expect(page.get_by_text("rate the regeneration")).to_be_visible()
        first = job_of(page)
        regeneration = page.get_by_role("group", name="Regeneration")
        critique = page.get_by_role("group", name="Critique")

        # A key of another display keeps the job and what was chosen.
        page.keyboard.press("1")
        expect(regeneration.get_by_label("bad")).to_be_checked()
        page.keyboard.press("3")
        page.keyboard.press("d")
        expect(page.locator(".stage del")).to_have_text("two.")
        expect(page.locator(".stage.regenerator del")).to_have_count(1)
        page.wait_for_load_state()
        page.keyboard.press("q")
        expect(regeneration.get_by_label("good")).to_be_checked()
        expect(critique.get_by_label("bad")).to_be_checked()
        # In a field, keys are text.
        page.keyboard.press("n")
        page.keyboard.type("see 1 and s")
        page.keyboard.press("Escape")
        page.keyboard.press("c")
        page.keyboard.type("One five.")
        page.keyboard.press("Control+Enter")
        expect(page.get_by_text("✓ Saved.")).to_be_visible()
        [review] = reviews(service, first)
        assert (review["regeneration"], review["critique"], review["reviewer"]) == (1, -1, "ann")
        assert (review["note"], review["corrected_answer"]) == ("see 1 and s", "One five.")

        page.wait_for_load_state()
        second = job_of(page)
        assert second != first
        page.keyboard.press("s")
        expect(page.get_by_text("1 skipped")).to_be_visible()
        page.wait_for_load_state()
        third = job_of(page)
        page.keyboard.press("2")
        page.keyboard.press("Enter")
        expect(page.get_by_text("You skipped 1 of them.")).to_be_visible()
        assert [each["regeneration"] for each in reviews(service, third)] == [0]
        assert reviews(service, second) == []


def test_the_systems_page_updates_by_itself(page: Page, service: Service) -> None:
    page.clock.install()
    page.goto(f"{service.url}/system")
    page.wait_for_load_state()
    workers = page.get_by_role("table", name="Workers", exact=True)
    expect(workers.get_by_text("ready")).to_be_visible()
    attempts = page.locator("#rescues")
    before = attempts.inner_text()
    answered(service, "Why?", ["One.", "Two.", "Three."])
    page.clock.fast_forward(5000)
    expect(attempts).not_to_have_text(before)
    expect(attempts).to_have_text(re.compile(r"None of the last \d+ attempts was lost"))
