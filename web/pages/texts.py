"""A job's texts as HTML: marks of deceptive characters, and which words a regeneration changed."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from markupsafe import Markup

from jobs.word_changes import Change, changes
from web.pages.marks import marked
from web.pages.options import Options

#: Of the texts of an ended job, which never change.
_changes = lru_cache(maxsize=32)(changes)


def inline(before: str, text: str, options: Options) -> Markup:
    """Return a text with marks at the words that it added to the text before it, and at those that it removed."""
    parts: list[Markup] = []
    for change in _changes(before, text):
        # White space alone is no change of words.
        if change.equal or not (change.before.strip() or change.after.strip()):
            parts.append(marked(change.after, options.invisible))
            continue
        if change.before:
            parts.append(_removed(marked(change.before, options.invisible)))
        if change.after:
            parts.append(_added(marked(change.after, options.invisible)))
    return Markup("").join(parts)


def beside(before: str | None, text: str, after: str | None, options: Options) -> Markup:
    """Return a text with marks at the words that it added to the text before it, or that the text after it removed.

    Args:
        before, after: the texts beside it; None for none.
        text: the text.
        options: of the reader.
    """
    added = removed = [(text, False)]
    if before is not None:
        added = [_piece(change, change.after) for change in _changes(before, text)]
    if after is not None:
        removed = [_piece(change, change.before) for change in _changes(text, after)]
    parts: list[Markup] = []
    for piece, is_added, is_removed in _both(added, removed):
        part = marked(piece, options.invisible)
        if is_removed:
            part = _removed(part)
        parts.append(_added(part) if is_added else part)
    return Markup("").join(parts)


def changed_words(before: str, after: str) -> tuple[int, int]:
    """Return how many words were removed and added."""
    different = [change for change in _changes(before, after) if not change.equal]
    return (
        sum(len(change.before.split()) for change in different),
        sum(len(change.after.split()) for change in different),
    )


def _removed(text: Markup) -> Markup:
    return Markup("<del>{}</del>").format(text)


def _added(text: Markup) -> Markup:
    return Markup("<ins>{}</ins>").format(text)


def _piece(change: Change, text: str) -> tuple[str, bool]:
    """Return a piece of a text, and whether words of it changed."""
    return text, not change.equal and bool(text.strip())


def _both(
    first: list[tuple[str, bool]], second: list[tuple[str, bool]]
) -> Iterator[tuple[str, bool, bool]]:
    """Yield the pieces that two divisions of the same text have in common, with the marks of both."""
    ends = [[], []]  # type: list[list[tuple[int, bool]]]
    for pieces, found in ((first, ends[0]), (second, ends[1])):
        end = 0
        for piece, mark in pieces:
            end += len(piece)
            found.append((end, mark))
    text = "".join(piece for piece, _ in first)
    start, places = 0, [0, 0]
    while start < len(text):
        (one, first_mark), (other, second_mark) = (ends[n][places[n]] for n in (0, 1))
        end = min(one, other)
        if end > start:
            yield text[start:end], first_mark, second_mark
        places = [places[0] + (one == end), places[1] + (other == end)]
        start = end
