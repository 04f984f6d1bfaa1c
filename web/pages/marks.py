"""Characters that deceive, shown as marks: controls and direction overrides always, all invisible ones on request.

A mark is an element that has the character itself and is isolated, so that an override reaches no further, and
copied text is exact. Its name comes from the style sheet. helixq.js makes the same marks in texts that it adds.
"""

from __future__ import annotations

import re
import unicodedata

from markupsafe import Markup, escape

#: Control characters but for tab and line feed, what embeds or overrides directions (Unicode's UAX #9), line and
#: paragraph separators, and interlinear annotations.
_DECEPTIVE = r"\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029\ufff9-\ufffb"
#: Characters without width, and spaces that look like the usual one. Emoji and some scripts need a few of them,
#: so these are shown on request only, together with tabs and ends of lines.
_INVISIBLE = (
    r"\t\n\xa0\xad\u034f\u061c\u115f\u1160\u1680\u17b4\u17b5\u180b-\u180e\u2000-\u200f\u202f\u205f-\u2065"
    r"\u206a-\u206f\u3000\u3164\ufe00-\ufe0f\ufeff\uffa0\U000e0000-\U000e0fff"
)
_MARKED = re.compile(f"[{_DECEPTIVE}]")
_ALL_MARKED = re.compile(f"[{_DECEPTIVE}{_INVISIBLE}]")

#: Names that are shorter and better known than the code.
_NAMES = {
    0x00: "NUL", 0x07: "BEL", 0x08: "BS", 0x09: "→", 0x0A: "↵", 0x0B: "VT", 0x0C: "FF", 0x0D: "CR", 0x1B: "ESC",
    0x7F: "DEL", 0x85: "NEL", 0xA0: "NBSP", 0xAD: "SHY", 0x061C: "ALM", 0x200B: "ZWSP", 0x200C: "ZWNJ",
    0x200D: "ZWJ", 0x200E: "LRM", 0x200F: "RLM", 0x2028: "LS", 0x2029: "PS", 0x202A: "LRE", 0x202B: "RLE",
    0x202C: "PDF", 0x202D: "LRO", 0x202E: "RLO", 0x2060: "WJ", 0x2066: "LRI", 0x2067: "RLI", 0x2068: "FSI",
    0x2069: "PDI", 0xFEFF: "BOM",
}  # fmt: skip


def name(character: str) -> str:
    """Return what a mark of a character says."""
    code = ord(character)
    return _NAMES.get(code, f"U+{code:04X}")


def marked(text: str | None, invisible: bool = False) -> Markup:
    """Return a text as HTML, with marks in it.

    Args:
        text: any text; None counts as empty.
        invisible: whether to mark all invisible characters.
    """
    pattern = _ALL_MARKED if invisible else _MARKED
    parts: list[str] = []
    at = 0
    for match in pattern.finditer(text or ""):
        parts += [str(escape(text[at : match.start()])), _mark(match[0])]  # type: ignore[index]  # no text has no matches
        at = match.end()
    parts.append(str(escape((text or "")[at:])))
    return Markup("".join(parts))  # noqa: S704 (all parts are escaped)


def plain(text: str) -> str:
    """Return a text with its deceptive characters written out, for places that have no elements: titles."""
    return _MARKED.sub(lambda match: f"⟨{name(match[0])}⟩", text)


def _mark(character: str) -> str:
    code = ord(character)
    full = unicodedata.name(character, "control character")
    title = f"U+{code:04X} {full}".strip()
    # HTML has no NUL, and would read a carriage return as a line feed.
    inner = {"\0": "", "\r": "&#13;"}.get(character, character)
    mark = f'<bdi class="mark" data-name="{name(character)}" title="{title}">'
    # The line still ends after the mark of its end, and a tab is still as wide.
    return f"{mark}</bdi>{inner}" if character in "\t\n" else f"{mark}{inner}</bdi>"
