"""Characters that deceive are shown as marks."""

from __future__ import annotations

import re

from web.pages.marks import marked, plain


def without_tags(html: str) -> str:
    return re.sub("<[^>]*>", "", html)


def test_an_override_is_shown_and_reaches_no_further() -> None:
    html = marked("evil \u202etxt.exe")
    assert html == (
        'evil <bdi class="mark" data-name="RLO" title="U+202E RIGHT-TO-LEFT OVERRIDE">\u202e</bdi>txt.exe'
    )
    assert plain("evil \u202etxt.exe") == "evil ⟨RLO⟩txt.exe"


def test_marks_change_no_text() -> None:
    text = "a\u202eb\x1bc\x7f\x85\u2066d\u2069\n\te\u200bf 👩\u200d🚀 <b>&\xa0\ufeff"
    for invisible in (False, True):
        assert without_tags(marked(text, invisible)) == text.replace("&", "&amp;").replace(
            "<b>", "&lt;b&gt;"
        )


def test_only_what_deceives_is_marked_unless_asked_for() -> None:
    harmless = "naïve שלום 日本語 👩\u200d🚀\n\tx"
    assert "mark" not in marked(harmless)
    assert re.findall('data-name="([^"]*)"', marked(harmless, True)) == ["ZWJ", "↵", "→"]
    assert marked("a\r\n") == (
        'a<bdi class="mark" data-name="CR" title="U+000D control character">&#13;</bdi>\n'
    )
    # HTML cannot have a NUL.
    assert 'data-name="NUL"' in marked("\0")
    assert marked(None) == ""
