"""Logging in and out in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from jobs.database import Database
from jobs.models import Scope
from jobs.pipeline import Sampling
from jobs.use_cases import keys, submission
from jobs.use_cases.submission import NewJob
from tests.acceptance.browser.in_process import served
from tests.acceptance.browser.page import JOB_PAGE, faint, opened, status
from web import key_cache

pytestmark = pytest.mark.browser


@pytest.fixture
def guarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Database]]:
    """A web that requires API keys, without a worker and in this process: its URL and its database."""
    monkeypatch.setattr(key_cache, "TTL", 0)
    with served(tmp_path, "required") as web:
        yield web


def test_login_and_logout(browser: Browser, guarded: tuple[str, Database]) -> None:
    url, database = guarded
    scopes = [Scope.ASK, Scope.AUDIT]  # So that the page has all links.
    key, secret = keys.create(database, "alice's phone", scopes, owner="alice")
    new = NewJob("Why?", "Be brief.", Sampling(), 1, 5, background=True, metadata={})
    job, _ = submission.submit(database, key.owner, new, max_queued=10)
    for scheme in ("light", "dark"):
        options = {"viewport": {"width": 360, "height": 740}, "color_scheme": scheme}
        with opened(browser, **options) as (page, complaints):
            page.goto(f"{url}/jobs/{job.id}")
            expect(page.get_by_label("API key")).to_be_focused()
            assert faint(page) == []
            page.keyboard.type("hq_wrong")
            page.keyboard.press("Enter")
            expect(page.get_by_role("alert")).to_contain_text("wrong")
            assert faint(page) == []
            expect(page.get_by_label("API key")).to_be_focused()
            page.keyboard.type(secret)
            page.keyboard.press("Enter")
            expect(page).to_have_url(JOB_PAGE)
            expect(status(page)).to_have_text("Queued")
            for path in ("/", "/jobs", f"/jobs/{job.id}"):
                page.goto(url + path)
                assert page.evaluate("document.documentElement.scrollWidth") <= 360, path
                for width in (320, 360):  # The links and the way out are one line.
                    page.set_viewport_size({"width": width, "height": 740})
                    height = page.evaluate("document.querySelector('header').offsetHeight")
                    assert height < 70, (path, width)
                assert faint(page) == [], (path, scheme)
            if scheme == "light":
                page.get_by_role("button", name="Log out").click()
            else:  # The page is open, and follows the job.
                keys.revoke(database, key.id)
            expect(page.get_by_role("heading", name="Log in")).to_be_visible()
            assert all("401" in complaint for complaint in complaints)
            complaints.clear()
