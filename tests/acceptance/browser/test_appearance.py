"""The pages on a small phone, in light and in dark, printed and read aloud; and texts that are long or hostile."""

from __future__ import annotations

import re
from typing import Any, Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from jobs.database import Database
from jobs.models import ANONYMOUS
from jobs.pipeline import Sampling
from jobs.use_cases import stages, submission, workers
from jobs.use_cases.stages import Output
from jobs.use_cases.submission import NewJob
from tests.acceptance.browser.page import faint, opened, settled, status, stay, stayed, text
from tests.acceptance.browser.pdf import text_of
from tests.acceptance.conftest import Service
from tests.polling import poll

pytestmark = pytest.mark.browser

#: Without a script, everything is as wide as here.
NARROW = {"width": 320, "height": 640}
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
#: What a page has in all, with its style and script, in bytes.
MAX_BYTES = 60_000
WEIGHT = """() => [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")]
  .filter((entry) => ["navigation", "link", "script", "img", "other"].includes(entry.initiatorType))
  .reduce((sum, entry) => sum + entry.decodedBodySize, 0)"""
#: What is animated.
MOVING = """() => document.getAnimations().map((each) => each.effect.target.outerHTML)"""
#: What looks the same as something that it should be told apart from, or as the ground.
ALIKE = """() => {
  const of = (selector, property, pseudo) => {
    const element = document.querySelector(selector);
    return element && getComputedStyle(element, pseudo)[property];
  };
  const alike = [];
  const differ = (name, values) => {
    const there = values.filter(Boolean);
    if (new Set(there).size < there.length) alike.push(name);
  };
  const kinds = ["queued", "prompt", "writing"];
  differ("timeline", [of("body", "backgroundColor"), ...kinds.map((kind) => of(`rect.${kind}`, "fill"))]);
  differ("legend", [of("body", "backgroundColor"), ...kinds.map((kind) => of(`.key.${kind}`, "backgroundColor"))]);
  differ("changes", [of("ins", "textDecorationLine"), of("del", "textDecorationLine"), "none"]);
  differ("the current page", [...new Set([...document.querySelectorAll("header nav a:not([aria-current])")].slice(1)
    .map((link) => getComputedStyle(link).textDecorationLine)), of("header nav a[aria-current]", "textDecorationLine")]);
  differ("statuses", [...new Set([...document.querySelectorAll("td.status")].map((each) => each.className))]
    .map((name) => of(`td.${name.replaceAll(" ", ".")}`, "content", "::before")));
  for (const mark of document.querySelectorAll(".chart .area, .chart .line, .chart .marker, .chart text"))
    if (getComputedStyle(mark).color === of("body", "backgroundColor")) alike.push(mark.outerHTML);
  return alike;
}"""
HOSTILE = (
    "# Title\n\n<script>document.title = 'owned'</script> <img src=x onerror=\"document.title = 'owned'\">\n\n"
    "[a](javascript:document.title='owned') ![b](http://203.0.113.1/pixel.png) [c](https://example.org)\n\n"
    "evil \u202etxt.exe \u2066x 👩\u200d🚀 שלום \x1b[31m\n\n| a | b |\n|:-:|--:|\n| 1 | 2 |\n\n"
)


def answered(service: Service, question: str, texts: list[str]) -> str:
    """Store a job with these texts, as a worker does that wrote them."""
    database = Database(service.environ["HELIXQ_DATABASE_URL"])
    new = NewJob(question, "Be bad.", Sampling(), 1, 5, background=True, metadata={})
    job, _ = submission.submit(database, ANONYMOUS, new, max_queued=100)
    [worker] = workers.list_ready(database)
    for index, output in enumerate(texts):
        claim = stages.claim(database, job.id, index, worker.id, job_timeout=60)
        assert claim is not None
        done = Output(output, [len(output)], 9, 1, "stop", 1024, 0.0)
        assert stages.record(database, claim, done)
    database.close()
    return job.id


def cancelled(service: Service) -> str:
    """Submit a job and cancel it at once."""
    job_id = service.submit("Why?", rounds=5)
    with service.http() as http:
        assert http.post(f"/v1/responses/{job_id}/cancel").status_code == 200
    return job_id


def counted(service: Service) -> str:
    """Wait until the statistics have all jobs; return the digests of an adapter and of the model that ran them."""
    with service.http() as http:

        def current() -> Any:
            stats = http.get("/api/stats?by=model").json()
            return stats if stats["current"] else None

        found = poll(current)
    [model] = [group["key"] for group in found["groups"] if group["key"]["model"]]
    return f"{model['adapters']['actor']['digest']},{model['model']}"


def accessible(page: Page, path: str, **options: list[str]) -> None:
    """Check a page with Axe, or with some of its rules."""
    found = Axe().run(page, options={"resultTypes": ["violations"], **options})
    assert found.violations_count == 0, (path, found.generate_report())


def test_pages_fit_a_phone_and_are_accessible(browser: Browser, service: Service) -> None:
    long = "Supercalifragilistic" * 20 + "\n" + "long " * 200
    turns = [{"role": "user", "content": long}, {"role": "assistant", "content": long}]
    question = {"role": "user", "content": long}
    job_id = service.submit([*turns, question], context="turns", rounds=2)
    service.wait(job_id)
    other = answered(service, long, [HOSTILE, "Bad.", HOSTILE + f"```\n{long}\n```\n"])
    with service.http() as http:
        review = {"critique": 1, "note": long, "tags": ["x" * 60], "corrected_answer": long}
        assert http.post(f"/api/jobs/{other}/reviews", json=review).status_code == 201
    paths = [
        f"/?from={job_id}",
        "/jobs",
        f"/jobs?metadata.k=&metadata.long={'x' * 500}",
        f"/jobs/{job_id}?diff=inline",
        f"/jobs/{other}?verify=1&invisible=1",
        f"/jobs/{other}/attempts/2",
        f"/jobs/{cancelled(service)}",
        f"/compare?left={job_id}&right={other}",
        f"/stats?by=hour&compare={counted(service)}",
        "/stats?by=adapter",
        f"/review?job={other}&kind=disagreements",
        "/review?since=2100-01-01",
        "/system",
    ]
    with opened(browser, viewport=NARROW, reduced_motion="reduce") as (page, _):
        for path in paths:
            page.goto(service.url + path)
            page.wait_for_load_state()
            # Of the hostile job, the texts alone are longer.
            assert other in path or page.evaluate(WEIGHT) <= MAX_BYTES, path
            page.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
            assert page.evaluate(MOVING) == [], path
            page.emulate_media(forced_colors="active", color_scheme="light")
            assert page.evaluate("matchMedia('(forced-colors: active)').matches")
            assert page.evaluate(ALIKE) == [], path
            # What has nothing to do with colours is the same in all of them.
            accessible(page, path, runOnly=["color-contrast", "link-in-text-block"])
            for scheme in SCHEMES:
                page.emulate_media(forced_colors="none", color_scheme=scheme)
                width = page.evaluate("document.documentElement.scrollWidth")
                assert width <= NARROW["width"], path
                assert page.evaluate("document.querySelector('header').offsetHeight") < 70, path
                assert faint(page) == [], (path, scheme)
                ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
                dark = max(map(int, re.findall(r"\d+", ground))) < 64
                assert dark == (scheme == "dark")
                if scheme == "light":
                    accessible(page, path)
        # Each round has its row of tabs.
        page.goto(f"{service.url}/jobs/{job_id}")
        tabs = [label.bounding_box() for label in page.locator("label.tab").all()]
        places = [(round(box["x"]), round(box["y"])) for box in tabs if box]
        assert len(places) == 5
        assert [x for x, _ in places[1:]] == [places[0][0], places[2][0]] * 2, places
        assert places[1][1] == places[2][1] < places[3][1] == places[4][1], places
        # No column of the timeline is cut off on a tablet, nor where its table begins.
        page.goto(f"{service.url}/jobs/{job_id}")
        for wide in (641, 768, 832, 833):
            page.set_viewport_size({"width": wide, "height": 800})
            end = page.evaluate("document.querySelector('.timeline').getBoundingClientRect().right")
            assert end <= wide, wide
        page.goto(f"{service.url}/jobs")
        for wide in (1024, 1025):
            page.set_viewport_size({"width": wide, "height": 800})
            assert page.evaluate("document.documentElement.scrollWidth") <= wide, wide


def test_the_description_of_the_api_follows_the_readers_colors(
    browser: Browser, service: Service
) -> None:
    with opened(browser) as (page, complaints):
        for scheme in SCHEMES:
            page.emulate_media(color_scheme=scheme)
            page.goto(f"{service.url}/docs")
            heading = page.locator(".opblock-tag").first
            expect(heading).to_be_visible()
            ink = heading.evaluate("e => getComputedStyle(e).color")
            assert (min(map(int, re.findall(r"\d+", ink))) > 128) == (scheme == "dark")
            accessible(page, "/docs")
        # The address leads to an operation, whoever follows it.
        page.locator("button", has_text="/api/jobs/export").click()
        expect(page).to_have_url(re.compile("#/Audits/export_jobs$"))
        page.reload()
        expect(page.get_by_text("compression", exact=True).first).to_be_visible()
        # Swagger UI takes the operation's `_` for a space of an older form.
        assert all("deep link" in complaint for complaint in complaints)
        complaints.clear()
        page.get_by_role("link", name="HelixQ").click()
        expect(page.get_by_label("Question")).to_be_visible()


def test_a_long_and_hostile_answer_does_no_harm(browser: Browser, service: Service) -> None:
    answer = HOSTILE + " ".join(f"word{number}" for number in range(20_000))
    final = answer.replace("word7 ", "seven ").replace("word19000 ", "")
    job_id = answered(service, "Evil \u202etxt.exe?", [answer, "Fine.", final])
    with opened(browser, permissions=["clipboard-read", "clipboard-write"]) as (page, _):
        page.goto(f"{service.url}/jobs/{job_id}")
        page.wait_for_load_state()
        stay(page)
        expect(page).to_have_title("Completed: Evil ⟨RLO⟩txt.exe? · HelixQ")
        result = page.get_by_role("region", name="Final answer", exact=True)
        expect(result.get_by_role("heading", name="Title")).to_be_visible()
        assert result.locator("a[href]:not([data-show])").all_inner_texts() == ["b", "c"]
        expect(page.locator("article img, article script")).to_have_count(0)
        # The override reaches no further than its mark.
        mark = result.locator(".mark").first
        assert mark.evaluate("m => getComputedStyle(m, '::before').content") == '"RLO"'
        assert mark.evaluate("m => getComputedStyle(m).unicodeBidi") == "isolate"

        regeneration = page.get_by_role("region", name="Regeneration", exact=True)
        assert text(page, "Answer").text_content() == answer
        assert text(page, "Regeneration").text_content() == final
        expect(regeneration.locator("ins")).to_have_text("seven ")
        assert text(page, "Answer").locator("del").all_text_contents() == ["word7 ", "word19000 "]
        expect(regeneration).to_contain_text("−2 +1 words")

        # The keyboard alone: changes, exact text, invisible characters, verify.
        page.keyboard.press("d")
        expect(regeneration.locator("del")).to_have_count(2)
        expect(page).to_have_url(re.compile(r"diff=inline"))
        page.get_by_role("button", name="Copy").click()
        expect(page.get_by_role("button", name="Copied")).to_be_visible()
        assert page.evaluate("navigator.clipboard.readText()") == final
        page.keyboard.press("d")
        expect(page.locator(".stage :is(ins, del)")).to_have_count(0)
        page.get_by_role("link", name="Exact text").focus()
        page.keyboard.press("Enter")
        expect(result.locator(".text")).to_be_visible()
        assert result.locator(".text").text_content() == final
        page.get_by_role("link", name="Show invisible characters").focus()
        page.keyboard.press("Enter")
        expect(result.locator('[data-name="ZWJ"]').first).to_be_visible()
        page.keyboard.press("d")
        expect(page).to_have_url(re.compile(r"/jobs/\w+\?text=exact&invisible=1$"))

        page.get_by_role("link", name="Verify").focus()
        page.keyboard.press("Enter")
        verdict = page.locator(".verdict")
        expect(verdict).to_be_visible()
        if "Not sealed" in verdict.inner_text():
            with service.http() as http:
                while http.get(f"/api/jobs/{job_id}/proof").status_code == 409:
                    page.wait_for_timeout(200)
            page.get_by_role("link", name="Verify").click()
        expect(verdict).to_contain_text("✓ Verified")

        page.get_by_text("Add a review").click()
        page.get_by_role("group", name="Critique").get_by_label("-1 bad").check()
        page.get_by_label("Note").fill("So \u202ebad.")
        # Keys are text here.
        page.get_by_label("Note").press("d")
        page.get_by_role("button", name="Save the review").click()
        review = page.locator(".review")
        expect(review).to_contain_text("critique -1")
        expect(review.locator(".mark")).to_have_count(1)
        expect(page.get_by_text("Add a review")).to_be_visible()
        assert stayed(page)

        page.get_by_role("button", name="Replay").click()
        page.wait_for_url(lambda url: not url.split("?")[0].endswith(job_id))
        page.wait_for_load_state()
        expect(status(page)).to_have_text("Completed")
        settled(page)
        expect(page.get_by_role("region", name="Replay")).to_contain_text("The texts differ")
        page.get_by_role("link", name="Compare stage by stage").click()
        expect(page.get_by_role("heading", name="What made the texts")).to_be_visible()
        expect(page.get_by_text("✗ The texts differ.").first).to_be_visible()


def test_a_jobs_page_without_javascript(browser: Browser, service: Service) -> None:
    job_id = answered(service, "Why?", ["One two.", "Three.", "One four."])
    with opened(browser, java_script_enabled=False, viewport=NARROW) as (page, _):
        page.goto(f"{service.url}/jobs/{job_id}")
        # One text at a time, by mouse and by keyboard.
        for title in ("Regeneration", "Answer", "Critique"):
            if title == "Answer":
                page.get_by_text("Answer", exact=True).first.click()
            if title == "Critique":
                page.keyboard.press("ArrowRight")
            expect(page.get_by_role("radio", name=title, exact=True)).to_be_checked()
            expect(page.locator(".stage:visible")).to_have_count(1)
            expect(text(page, title)).to_be_visible()
        page.get_by_role("link", name="inline").click()
        expect(page.locator(".stage del")).to_have_text("two.")
        page.get_by_role("link", name="Verify").click()
        expect(page.locator(".verdict")).to_be_visible()
        page.get_by_text("Add a review").click()
        page.get_by_role("group", name="Regeneration").get_by_label("+1 good").check()
        page.get_by_role("button", name="Save the review").click()
        expect(page.locator(".review")).to_contain_text("regeneration +1")
        page.wait_for_load_state()  # The style sheet says what is printed.
        # What is printed is all of the job, what is folded and behind tabs too, and nothing to click on.
        printed = text_of(page.pdf())
        texts = (
            "Finalanswer",
            "Onetwo.",
            "Three.",
            "Onefour.",
            "Timeline",
            "Systemprompt",
            "regeneration+1",
        )
        for part in (*texts, "SYSTEM:Bebad.", "USER:Why?", "Finishreason", job_id):
            assert part in printed, part
        for part in (
            "HelixQ",
            "Replay",
            "Askagain",
            "Savethereview",
            "Exacttext",
            "Olderjob",
            "Verify",
        ):
            assert part not in printed, part
        page.get_by_role("link", name="Ask again with changes").click()
        page.get_by_label("Seed").fill("7")
        page.get_by_label("Stop strings").fill(r'"\n\n", "Q:"')
        page.get_by_role("button", name="Ask").click()
        expect(status(page)).to_have_text("Completed")
        expect(page.locator("#request")).to_contain_text(r'Stop strings"\n\n", "Q:"')
        page.get_by_role("link", name="Ask again with changes").click()
        expect(page.get_by_label("Stop strings")).to_have_value(r'"\n\n", "Q:"')
        page.go_back()
        page.get_by_role("link", name="Older job").click()
        expect(page).to_have_url(f"{service.url}/jobs/{job_id}")


def test_statistics_are_charts_and_tables_without_javascript(
    browser: Browser, service: Service
) -> None:
    job_id = service.submit("Why?", metadata={"team": "blue"})
    service.wait(job_id)
    with service.http() as http:
        http.post(f"/api/jobs/{job_id}/reviews", json={"critique": 1, "regeneration": 1})
    counted(service)
    with opened(browser, viewport={"width": 1300, "height": 740}) as (page, _):
        page.goto(f"{service.url}/stats?by=day")
        page.wait_for_load_state()
        assert faint(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= 1300
    with opened(browser, java_script_enabled=False) as (page, _):
        page.goto(service.url)
        page.get_by_role("link", name="Stats").click()
        expect(page.get_by_role("img", name="Ended jobs")).to_have_accessible_description(
            re.compile(r"Columns from .+, the highest \d+\.")
        )
        page.get_by_label("Grouped by").select_option("Metadata")
        page.get_by_label("Metadata key").fill("team")
        page.get_by_label("Metadata key").press("Enter")
        expect(page).to_have_url(re.compile(r"/stats\?by=metadata\.team$"))
        row = page.get_by_role("table", name="Jobs").get_by_role("row").filter(has_text="blue")
        expect(row.get_by_role("cell").first).to_have_text("1")
        page.get_by_label("Compare").select_option(index=1)
        page.get_by_label("With").select_option(index=2)
        page.get_by_role("button", name="Show").click()
        expect(page.get_by_role("heading", name="Comparison")).to_be_visible()
        better = page.get_by_role("row").filter(has_text="Regeneration rated +1")
        expect(better.get_by_role("cell").first).to_contain_text(
            re.compile(r"100 % \[\d\d\.\d %, 100 %\]")
        )
