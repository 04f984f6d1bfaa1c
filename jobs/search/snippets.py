"""Snippets: the piece of a text where it matches a query."""

from __future__ import annotations

import re
from dataclasses import dataclass

from jobs.search.query import Node, phrases
from jobs.search.words import FOLDING, canonical, fold

#: Characters of a snippet before its first match, and altogether.
BEFORE = 60
LENGTH = 240


@dataclass(frozen=True)
class Snippet:
    """A piece of a text."""

    #: Where it begins in the text, in characters. The text is in NFC, as most texts are anyway.
    start: int
    #: The pieces that it consists of, in order, and whether each of them matches.
    parts: list[tuple[str, bool]]


class Highlighter:
    """Finds what matches a query in texts."""

    def __init__(self, query: Node) -> None:
        wanted = list(phrases(query))
        #: What a text has at least one of, to leave most other texts out quickly.
        self._first = {phrase.words[0] for phrase in wanted}
        # The longest first: a phrase rather than its first word.
        alternatives = sorted(
            (r"\s+".join(phrase.words) + (r"\S*" if phrase.prefix else "") for phrase in wanted),
            key=len,
            reverse=True,
        )
        pattern = "|".join(alternatives)
        self._pattern = re.compile(rf"(?<!\S)(?:{pattern})(?!\S)") if wanted else None

    def snippet(self, text: str) -> Snippet | None:
        """Return the piece of a text around its first match; None if nothing matches."""
        text = canonical(text)
        folded = fold(text)
        if self._pattern is None or not any(word in folded for word in self._first):
            return None
        match = self._pattern.search(folded)
        if match is None:
            return None
        first = _position(text, match.start())
        start = _word_start(text, max(0, first - BEFORE), first)
        end = _word_end(text, min(len(text), start + LENGTH))
        parts: list[tuple[str, bool]] = []
        piece = text[start:end]
        done = 0
        lengths = [len(FOLDING[ord(c)]) for c in piece]
        for match in self._pattern.finditer(fold(piece)):
            begin, stop = _span(lengths, *match.span())
            if begin < done:
                continue
            parts += [(piece[done:begin], False), (piece[begin:stop], True)]
            done = stop
        parts.append((piece[done:], False))
        return Snippet(start, [part for part in parts if part[0]])


def _position(text: str, folded_position: int) -> int:
    """Return the position in a text of the character that a position in the folded text is of."""
    if text.isascii():  # Each character became one.
        return folded_position
    passed = 0
    for position, character in enumerate(text):
        passed += len(FOLDING[ord(character)])
        if passed > folded_position:
            return position
    return len(text)


def _span(lengths: list[int], first: int, last: int) -> tuple[int, int]:
    """Return begin and end in a text of a span of the folded text, whose characters have these lengths."""
    begin = end = passed = 0
    begun = False
    for position, length in enumerate(lengths):
        if not begun and passed + length > first:
            begin, begun = position, True
        if passed >= last and length:
            break
        passed += length
        end = position + 1
    return begin, end


def _word_start(text: str, position: int, limit: int) -> int:
    """Return where a word begins, from a position on and before a limit."""
    if position == 0:
        return 0
    space = text.find(" ", position, limit)
    return position if space < 0 else space + 1


def _word_end(text: str, position: int) -> int:
    """Return where a word ends, up to a position and not far before it."""
    if position == len(text):
        return position
    space = text.rfind(" ", position - 30, position)
    return position if space < 0 else space
