"""A job's texts as HTML: marks of deceptive characters, and which words a regeneration changed."""

from __future__ import annotations

from functools import lru_cache

from markupsafe import Markup

from jobs.word_changes import Change, changes
from web.pages.marks import marked
from web.pages.options import Options

#: Of the texts of an ended job, which never change.
_changes = lru_cache(maxsize=32)(changes)


def draft(text: str, final: str, options: Options) -> Markup:
    """Return a draft, with the words marked that the final text does not have."""
    if options.diff != "side":
        return marked(text, options.invisible)
    return _joined(_changes(text, final), options, removed=True, added=False)


def final(before: str, text: str, options: Options) -> Markup:
    """Return a final text, with the words marked that its draft does not have; inline, also those removed."""
    if options.diff == "off":
        return marked(text, options.invisible)
    inline = options.diff == "inline"
    return _joined(_changes(before, text), options, removed=inline, added=True)


def changed_words(before: str, after: str) -> tuple[int, int]:
    """Return how many words were removed and added."""
    different = [change for change in _changes(before, after) if not change.equal]
    return (
        sum(len(change.before.split()) for change in different),
        sum(len(change.after.split()) for change in different),
    )


def _joined(passages: list[Change], options: Options, *, removed: bool, added: bool) -> Markup:
    parts: list[Markup] = []
    for change in passages:
        # White space alone is no change of words.
        if change.equal or not (change.before.strip() or change.after.strip()):
            parts.append(marked(change.after if added else change.before, options.invisible))
            continue
        if removed and change.before:
            parts.append(Markup("<del>{}</del>").format(marked(change.before, options.invisible)))
        if added and change.after:
            parts.append(Markup("<ins>{}</ins>").format(marked(change.after, options.invisible)))
    return Markup("").join(parts)
