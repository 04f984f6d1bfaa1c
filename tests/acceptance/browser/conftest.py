"""A real browser, and services for it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests import chromium, servers
from tests.acceptance.browser.page import PATIENCE, opened
from tests.acceptance.conftest import PACED, Service, running


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
    request: pytest.FixtureRequest,
    browser: Browser,  # noqa: ARG001 (without one there is nothing to start)
    checkpoint: Path,
    socket_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Service]:
    """A service whose texts are short."""
    database = f"sqlite:///{tmp_path_factory.mktemp('db') / 'jobs.sqlite3'}"
    folder = socket_folder / request.path.stem
    with running(checkpoint, database, folder) as running_service:
        yield running_service


@pytest.fixture(scope="module")
def slow(
    request: pytest.FixtureRequest,
    browser: Browser,  # noqa: ARG001 (without one there is nothing to start)
    long_texts: Path,
    socket_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Service]:
    """A service whose texts do not end."""
    database = f"sqlite:///{tmp_path_factory.mktemp('db') / 'jobs.sqlite3'}"
    folder = socket_folder / f"{request.path.stem}-slow"
    with running(long_texts, database, folder, program=PACED, HELIXQ_SLOTS="1") as running_service:
        yield running_service
        running_service.web.stop()  # a test may have replaced it


@pytest.fixture(autouse=True)
def _nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """End the endless texts that a failed test left; start the web again if it left that dead."""
    yield
    if "slow" in request.fixturenames:
        service: Service = request.getfixturevalue("slow")
        if service.web.popen.poll() is not None:
            service.web = servers.web(service.environ)
            service.web.wait_for("listening")
        service.cancel_all()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A tab without script errors or violations of the CSP."""
    with opened(browser) as (page, _):
        yield page
