"""Markdown becomes HTML that can do no harm."""

from __future__ import annotations

import re
import time

import pytest

from web.pages.markdown import MAX_TEXT, render


def test_what_answers_have_is_rendered() -> None:
    html = render("# Title\n\n- **bold** `code`\n\n| a |\n|:-:|\n| 1 |\n\n```py\nx < 1\n```\n")
    assert html is not None
    for part in (
        "<h3>Title</h3>",
        "<li><strong>bold</strong> <code>code</code></li>",
        "<th>a</th>",
    ):
        assert part in html
    assert "x &lt; 1" in html
    assert "style=" not in html  # The policy allows none.


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "a <b onclick=x>b</b>",
        "[a](javascript:alert(1))",
        "[a](JaVaScRiPt:alert(1))",
        "[a](&#106;avascript:alert(1))",
        "[a](java\tscript:alert(1))",
        "[a](data:text/html,<script>)",
        "[a](vbscript:x)",
        "[a](/logout)",
        "[a](//evil.example)",
        "<javascript:alert(1)>",
        "![a](data:image/svg+xml,x)",
        "[a]: javascript:x\n\n[a]",
    ],
)
def test_nothing_runs_and_nothing_is_loaded(text: str) -> None:
    html = render(text)
    assert html is not None
    assert not re.search(r"<(?!/?(p|em|strong|code|pre)\b)", html), html


def test_links_lead_elsewhere_openly() -> None:
    html = render(
        "[bank](https://evil.example/?a=1&b) ![pixel](http://t.example/x.png) <mailto:a@b.c>"
    )
    assert html is not None
    assert re.findall('href="([^"]*)"', html) == re.findall('title="([^"]*)"', html)
    assert re.findall('href="([^"]*)"', html) == [
        "https://evil.example/?a=1&amp;b",
        "http://t.example/x.png",
        "mailto:a@b.c",
    ]
    assert html.count("noopener noreferrer") == 3
    assert "<img" not in html


def test_overrides_are_marked() -> None:
    for text in (
        "evil \u202etxt.exe",
        "`\u202etxt`",
        "    \u202etxt",
        "[\u202ea](https://b.example)",
    ):
        assert 'data-name="RLO"' in str(render(text))


def test_hostile_texts_take_no_longer_than_others() -> None:
    started = time.process_time()
    for part in ("[", "*a ", "[a](", "<a:", "`a``b", "![[]()", "> ", "a**b", "&amp"):
        assert render(part * (20_000 // len(part)))
    assert time.process_time() - started < 15
    assert render("a" * (MAX_TEXT + 1)) is None
