"""Words, queries, ranks and snippets of the search."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.search import facets
from jobs.search.query import (
    QueryError,
    has,
    needle,
    parse,
    phrases,
    to_fts5,
    to_tsquery,
)
from jobs.search.ranking import score
from jobs.search.snippets import Highlighter
from jobs.search.words import canonical, fold, is_single, required_terms, terms, words
from jobs.word_changes import changed_share


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Ærøskøbing, NAÏVE résumé!", "aeroskobing naive resume"),
        ("straße ＡＢＣ ﬁne", "strasse abc fine"),
        ("cafe\u0301 café", "cafe cafe"),
        ("Łódź İstanbul Ελλάδα Ёлка", "lodz istanbul ελλαδα елка"),
        ("東京都", "東 京 都"),
        ("GPT東京 ﾊﾞｽ か\u3099", "gpt 東 京 バ ス が"),
        ("한국어", "한 국 어"),
        ("हिन्दी", "हिन्दी"),
        ("a_b\0c\nd-e", "a b c d e"),
        ("x" * 100, "x" * 64),
        ("👍 …", ""),
    ],
)
def test_texts_become_words(text: str, expected: str) -> None:
    assert " ".join(words(text)) == expected


@given(st.text())
def test_a_text_and_its_other_forms_have_the_same_words(text: str) -> None:
    sequence = words(text)
    assert words(" ".join(sequence)) == sequence, "folding again changes nothing"
    assert all(word and not set(word) & set(' _"*') for word in sequence)
    assert len(fold(canonical(text))) >= sum(len(word) for word in sequence)


@pytest.mark.parametrize(
    ("query", "text", "matches"),
    [
        ("quick fox", "The quick brown fox.", True),
        ("quick dog", "The quick brown fox.", False),
        ('"quick brown"', "The QUICK, brown fox.", True),
        ('"brown quick"', "The quick brown fox.", False),
        ("quick-brown", "The quick brown fox.", True),
        ("qui*", "The quick brown fox.", True),
        ('"brown fox*"', "The quick brown foxes.", True),
        ("fox -dog", "The quick brown fox.", True),
        ("fox NOT brown", "The quick brown fox.", False),
        ("cat OR fox", "The quick brown fox.", True),
        ("cat OR dog", "The quick brown fox.", False),
        ("the cat OR fox quick", "The quick brown fox.", True),
        ("-dog", "The quick brown fox.", True),
        ('fox "quick brown', "The quick brown fox.", True),
        ("OR fox AND", "The quick brown fox.", True),
        ("東京", "私は東京に住む", True),
        ("京東", "私は東京に住む", False),
        ("東京都", "東京の都", False),
        ("fox fox", "a fox", True),
        ('"fox fox"', "a fox", False),
    ],
)
def test_queries_find_what_they_say(query: str, text: str, matches: bool) -> None:
    sequence = f" {' '.join(words(text))} "
    assert has(parse(query), sequence.__contains__) is matches


@pytest.mark.parametrize("query", ["-", "OR", "AND OR NOT", '""', "*", '" - "', "…", "ab*", "東*-"])
def test_a_query_without_words_is_refused_or_read(query: str) -> None:
    if query == "東*-":
        parse(query)
        return
    with pytest.raises(QueryError, match=r"[.`]$|\."):
        parse(query)


def test_a_query_has_a_size() -> None:
    for query in ("a " * 51, "x" * 1001):
        with pytest.raises(QueryError, match="at most"):
            parse(query)


@given(
    st.text(alphabet=st.sampled_from("ab東京é -\"*ORNT()|:^_'\\\0"), max_size=40)
    | st.text(max_size=60)
)
def test_any_text_is_a_query_or_refused(text: str) -> None:
    try:
        query = parse(text)
    except QueryError:
        return
    assert to_fts5(query)
    assert to_tsquery(query)
    for phrase in phrases(query):
        assert needle(phrase).strip()
    assert score(query, " a b _ a ") >= 0
    Highlighter(query).snippet(text)


@given(st.lists(st.sampled_from("ab東京都"), min_size=1, max_size=8), st.data())
def test_the_terms_of_a_phrase_are_among_those_of_its_texts(
    text: list[str], data: st.DataObject
) -> None:
    first = data.draw(st.integers(0, len(text) - 1))
    phrase = tuple(text[first : data.draw(st.integers(first + 1, len(text)))])
    required, exact = required_terms(phrase)
    assert set(required) <= terms(text)
    if exact:
        assert len(phrase) <= 2
        assert len(phrase) == 1 or all(map(is_single, phrase))


@given(st.text(max_size=300), st.text(min_size=1, max_size=10))
def test_snippets_are_pieces_of_the_text(text: str, query: str) -> None:
    try:
        highlighter = Highlighter(parse(query))
    except QueryError:
        return
    text = f"{text} {query} {text}"
    snippet = highlighter.snippet(text)
    if snippet is None:
        return
    joined = "".join(part for part, _ in snippet.parts)
    assert canonical(text)[snippet.start :].startswith(joined)
    assert any(match for _, match in snippet.parts)


def test_a_snippet_shows_what_matches() -> None:
    text = "x " * 200 + "Über der Straße\nsteht: das CAFÉ." + " y" * 200
    snippet = Highlighter(parse('strasse "das cafe"')).snippet(text)
    assert snippet is not None
    assert [part for part, match in snippet.parts if match] == ["Straße", "das CAFÉ"]
    assert text[snippet.start :].startswith("".join(part for part, _ in snippet.parts))
    assert len("".join(part for part, _ in snippet.parts)) <= 240


def test_better_matches_have_higher_scores() -> None:
    query = parse("fox")
    filler = "x " * 50
    in_question = score(query, f" fox _ {filler}")
    often, once = (score(query, f" why _ {filler}{fox}") for fox in ("fox fox fox ", "fox "))
    assert in_question > once
    assert often > once > score(query, f" why _ {filler}") == 0


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1e7), st.floats(0, 1e7))
def test_buckets_have_all_that_is_in_a_range(a: float, b: float, s: float, t: float) -> None:
    for value in (min(a, b), max(a, b)):
        terms = facets.share_terms(min(a, b), max(a, b))
        assert facets.share_term(value) in {each.term for each in terms}
    for value in (min(s, t), max(s, t)):
        terms = facets.duration_terms(min(s, t), max(s, t))
        assert facets.duration_term(value) in {each.term for each in terms}


def test_the_share_of_changed_words() -> None:
    assert changed_share("a b c", "a b c") == 0
    assert changed_share("", "") == 0
    assert changed_share("a b", "c d") == 1
    assert changed_share("a b c d", "a x c d") == pytest.approx(0.25)
    assert changed_share("a b c", "a b c d") == pytest.approx(1 / 7)


@given(st.text(alphabet="ab ", max_size=30), st.text(alphabet="ab ", max_size=30))
def test_a_share_is_a_share(before: str, after: str) -> None:
    assert 0 <= changed_share(before, after) <= 1
    assert changed_share(before, before) == 0
