"""The README's pictures: ``python -m tests.screenshots`` asks the demo, and writes docs/images.

It starts `helixq up` on an empty data folder, asks one question with a fixed seed in a real Chromium,
and photographs the finished job's page down to the timeline, light and dark.
"""

from __future__ import annotations

import io
import re
import signal
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import FloatRect, expect, sync_playwright

from tests import chromium
from tests.servers import free_port, helixq

FOLDER = Path(__file__).parent.parent / "docs" / "images"
#: A question that the actor gets wrong and the regenerator right.
QUESTION = "What is 47 * 36?"
SEED = 3
#: Size in pixels: wide enough for three texts side by side.
WIDTH, MARGIN = 1300, 24
#: Timeout of an answer in milliseconds, on a busy machine.
PATIENCE = 60_000


def main() -> None:
    """Write job-light.png and job-dark.png."""
    executable = chromium.executable()
    if executable is None:
        raise SystemExit(chromium.MISSING)
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="helixq-") as folder, sync_playwright() as playwright:
        up = helixq("up", environ={"HELIXQ_DATA_DIR": folder, "HELIXQ_PORT": str(port)})
        try:
            url = re.sub(r".*is ready: (\S+).*", r"\1", up.wait_for("is ready: ").strip())
            browser = playwright.chromium.launch(
                executable_path=executable, args=chromium.ARGUMENTS
            )
            page = browser.new_page(viewport={"width": WIDTH, "height": WIDTH})
            job = page.request.post(
                f"{url}/v1/responses",
                data={"input": QUESTION, "seed": SEED, "background": True},
            ).json()
            page.goto(f"{url}/jobs/{job['id']}")
            expect(page.get_by_role("status")).to_have_text("Completed", timeout=PATIENCE)
            expect(page.locator("[data-response]")).to_have_count(0)
            box = page.locator("#timeline").bounding_box()
            assert box is not None
            height = box["y"] + box["height"] + MARGIN
            clip: FloatRect = {"x": 0, "y": 0, "width": WIDTH, "height": height}
            for scheme in ("light", "dark"):
                page.emulate_media(color_scheme=scheme)
                save(page.screenshot(clip=clip), FOLDER / f"job-{scheme}.png")
            browser.close()
        finally:
            up.signal(signal.SIGINT)
            up.wait()


def save(picture: bytes, file: Path) -> None:
    """Write a PNG in 64 colours: a page has few."""
    FOLDER.mkdir(exist_ok=True)
    quantized = (
        Image.open(io.BytesIO(picture)).convert("RGB").quantize(64, dither=Image.Dither.NONE)
    )
    quantized.save(file, optimize=True)
    print(f"{file}: {file.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
