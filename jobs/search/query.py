"""Search queries: parsed into a tree, and written in the syntax of each database.

The index has terms without positions. So it answers a phrase with all jobs that have its words, whose texts are then
searched for the words in a row; it answers everything else exactly.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from jobs.search.words import is_single, required_terms, words

#: The maximum number of characters and of words of a query.
MAX_LENGTH = 1000
MAX_WORDS = 50
#: The minimum number of characters before a ``*``: with fewer, half of the index would match.
MIN_PREFIX = 3
#: A term that every document has: a query may have nothing but exclusions.
EVERY = "_doc"

_TOKEN = re.compile(r'(?P<minus>-)?(?:"(?P<quoted>[^"]*)(?:"|$)|(?P<bare>[^\s"]+))')


class QueryError(ValueError):
    """A query that asks for nothing, or for too much. The message says it to the user."""


@dataclass(frozen=True)
class Phrase:
    """Words in a row; often a single one."""

    words: tuple[str, ...]
    #: Whether the last word may go on.
    prefix: bool


@dataclass(frozen=True)
class Not:
    """Jobs without something."""

    of: Node


@dataclass(frozen=True)
class And:
    """Jobs with all of some things."""

    of: tuple[Node, ...]


@dataclass(frozen=True)
class Or:
    """Jobs with any of some things."""

    of: tuple[Node, ...]


@dataclass(frozen=True)
class Term:
    """Jobs with a term of the index that is no word, such as their owner (`jobs.search.facets`)."""

    term: str


Node: TypeAlias = Phrase | Not | And | Or | Term


def parse(text: str) -> Node:
    """Return what a query asks for.

    Words must all be there. ``"several words"`` must follow each other, ``begin*`` is any word that begins so,
    ``-word`` must not be there, and of ``one OR other``, either may be. ``AND`` and ``NOT`` are read too. Quotes
    that are not closed end with the query. Whatever else there is separates words.

    Raises:
        QueryError: no word is left, or there are too many, or a ``*`` follows too few characters.
    """
    if len(text) > MAX_LENGTH:
        raise QueryError(f"A query has at most {MAX_LENGTH} characters.")
    groups: list[list[Node]] = []
    count, joined, negated = 0, False, False
    for token in _TOKEN.finditer(text):
        bare = token["bare"]
        if bare == "OR" or bare == "|":
            joined = bool(groups)
            continue
        if bare == "AND":
            continue
        if bare == "NOT":
            negated = True
            continue
        phrase = _phrase(token["quoted"] if bare is None else bare)
        if phrase is None:
            continue
        count += len(phrase.words)
        node: Node = Not(phrase) if negated or token["minus"] else phrase
        if joined:
            groups[-1].append(node)
        else:
            groups.append([node])
        joined = negated = False
    if not groups:
        raise QueryError(
            'The query has no word. Give words, a "phrase", a prefix*, and exclude with -word.'
        )
    if count > MAX_WORDS:
        raise QueryError(f"A query has at most {MAX_WORDS} words.")
    parts = tuple(group[0] if len(group) == 1 else Or(tuple(group)) for group in groups)
    return parts[0] if len(parts) == 1 else And(parts)


def _phrase(text: str) -> Phrase | None:
    found = tuple(words(text))
    if not found:
        return None
    prefix = text.rstrip().endswith("*") and not is_single(found[-1])
    if prefix and len(found[-1]) < MIN_PREFIX:
        raise QueryError(f"At least {MIN_PREFIX} letters or digits must come before a `*`.")
    return Phrase(found, prefix)


def is_exact(node: Node) -> bool:
    """Return whether the index alone answers a query."""
    match node:
        case Phrase():
            return required_terms(node.words)[1]
        case Not(of):
            return is_exact(of)
        case And(of) | Or(of):
            return all(map(is_exact, of))
        case Term():
            return True


def phrases(node: Node) -> Iterator[Phrase]:
    """Yield the phrases that a job may have in order to match: those that are not excluded."""
    match node:
        case Phrase():
            yield node
        case And(of) | Or(of):
            for part in of:
                yield from phrases(part)


def to_fts5(node: Node) -> str:
    """Return a query of SQLite's FTS5 that finds all jobs that match, and others only if not `is_exact`."""
    match node:
        case Term(term):
            return f'"{term}"'
        case Phrase():
            required, _ = required_terms(node.words)
            parts = [f'"{term}"' for term in required]
            if node.prefix:
                parts[-1] += "*"
            return _join(" AND ", parts)
        case Or(of):
            return _join(" OR ", map(to_fts5, of))
        case Not():
            return to_fts5(And((node,)))
        case And(of):
            wanted = [to_fts5(part) for part in of if not isinstance(part, Not)]
            unwanted = [to_fts5(part.of) for part in of if isinstance(part, Not) and is_exact(part)]
            found = _join(" AND ", wanted or [f'"{EVERY}"'])
            return f"({found} NOT {_join(' OR ', unwanted)})" if unwanted else found


def to_tsquery(node: Node) -> str:
    """Return the same as `to_fts5` in the words of PostgreSQL's ``tsquery``."""
    match node:
        case Term(term):
            return f"'{term}'"
        case Phrase():
            required, _ = required_terms(node.words)
            parts = [f"'{term}'" for term in required]
            if node.prefix:
                parts[-1] += ":*"
            return _join(" & ", parts)
        case Or(of):
            return _join(" | ", map(to_tsquery, of))
        case Not():
            return to_tsquery(And((node,)))
        case And(of):
            parts = [
                f"!{to_tsquery(part.of)}" if isinstance(part, Not) else to_tsquery(part)
                for part in of
                if not isinstance(part, Not) or is_exact(part)
            ]
            return _join(" & ", parts or [f"'{EVERY}'"])


def _join(operator: str, parts: Iterable[str]) -> str:
    listed = list(parts)
    return listed[0] if len(listed) == 1 else f"({operator.join(listed)})"


def has(node: Node, contains: Callable[[str], bool]) -> bool:
    """Return whether a job's words match a query; the reference that the databases are tested against.

    Args:
        node: the query, without a `Term`.
        contains: whether the job's words, each with a space before and after it, contain a text.
    """
    match node:
        case Phrase():
            return contains(needle(node))
        case Not(of):
            return not has(of, contains)
        case And(of):
            return all(has(part, contains) for part in of)
        case Or(of):
            return any(has(part, contains) for part in of)
        case Term():
            raise TypeError("a term is not among the words")


def needle(phrase: Phrase) -> str:
    """Return what the words of a job contain that has a phrase."""
    return f" {' '.join(phrase.words)}" + ("" if phrase.prefix else " ")
