"""The pages on a phone, in light and in dark."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Browser

from tests.acceptance.browser.page import faint, opened
from tests.acceptance.conftest import Service

pytestmark = pytest.mark.browser


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
                assert faint(page) == [], (path, scheme)
                ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
                dark = max(map(int, re.findall(r"\d+", ground))) < 64
                assert dark == (scheme == "dark")
