"""The Chromium that tests and screenshots drive."""

from __future__ import annotations

import shutil

NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = [
    "--no-sandbox",  # containers rarely allow a sandbox, and it visits our own pages only
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
MISSING = f"no Chromium is installed: none of {', '.join(NAMES)} is on the PATH"


def executable() -> str | None:
    """Return the path of the installed Chromium, if there is one."""
    return next(filter(None, map(shutil.which, NAMES)), None)
