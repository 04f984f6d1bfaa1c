"""Full-text search and filters: the same answers from both databases."""

from __future__ import annotations

import datetime as dt
import random
from dataclasses import replace

import pytest
import sqlalchemy as sa

from jobs.database import Database
from jobs.database_engine import begin
from jobs.enums import Order
from jobs.errors import CursorError
from jobs.models import ANONYMOUS, ApiKey, Job, Scope, SearchDocument, Status
from jobs.search.filters import Filters
from jobs.search.query import has, parse
from jobs.search.words import words
from jobs.statements import search, search_candidates, search_periods
from jobs.use_cases import (
    cancellation,
    keys,
    searching,
    searching_by_age,
    searching_by_rank,
    stages,
    submission,
    workers,
)
from tests.conftest import RUNTIME, WORKER
from tests.executed_statements import executed
from tests.integration.long_history import multiply
from tests.integration.rows import OUTPUT, QUESTION, claim, submit
from tests.integration.searches import end, find, index, pages

VOCABULARY = [
    "fox",
    "dog",
    "naïve",
    "cafe\u0301",
    "東京都",
    "京都大学",
    "straße",
    "quick",
    "foxglove",
]
#: The jobs of the fixture `history` have no draft.
ORDERS = [order for order in Order if order is not Order.MOST_CHANGED]
QUERIES = [
    "fox",
    "FOX -dog",
    '"fox dog"',
    '-"fox dog" fox',
    "fox*",
    "naive OR strasse",
    "京都",
    "東京都",
    "-cafe",
    "quick dog OR naive -strasse",
    "nothing",
    '"quick fox" OR "dog dog"',
]


@pytest.fixture
def history(database: Database) -> dict[str, str]:
    """Ended jobs with random texts over half a year; the words of each, the newest first."""
    rng = random.Random(0)
    template = end(database)
    numbers = range(130)
    with database.engine.begin() as connection:
        begin(connection, write=True)
        multiply(connection, "jobs", f"old.id = '{template.id}'", 130, id="'resp_c' || n.i")
        connection.execute(sa.delete(Job).where(Job.id == template.id))
        start = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
        for number in numbers:
            created = start + dt.timedelta(hours=number**1.8)
            values = {
                "question": " ".join(rng.choices(VOCABULARY, k=rng.randint(1, 6))),
                "created_at": created,
                "finished_at": created + dt.timedelta(seconds=rng.uniform(0.1, 100)),
            }
            connection.execute(sa.update(Job).where(Job.id == f"resp_c{number + 1}").values(values))
    assert index(database) == 130
    with database.engine.connect() as connection:
        connection.exec_driver_sql("ANALYZE")
        connection.commit()
        rows = connection.execute(sa.select(Job.id, Job.question).order_by(Job.created_at.desc()))
        return {row.id: f" {' '.join(words(row.question))} " for row in rows}


@pytest.mark.parametrize("few", [False, True])
def test_every_query_finds_all_its_jobs_in_order_whatever_the_pages(
    database: Database, history: dict[str, str], few: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if few:  # Periods have more documents than are found at once, so that their lengths change.
        for name, number in (("FOUND", 8), ("CANDIDATES", 9), ("COMPARED", 4)):
            monkeypatch.setattr(search_candidates, f"MAX_{name}", number)
        monkeypatch.setattr(search_candidates._GIN, "_estimated_matches", lambda *_: 50.0)
        for module in (search_candidates, search_periods):
            monkeypatch.setattr(module, "PROBE", 8)
    for number, text in enumerate(QUERIES):
        query = parse(text)
        expected = [i for i, words_ in history.items() if has(query, words_.__contains__)]
        limit, effort = ((20, search.MAX_EFFORT), (50, 10))[number % 2]
        for order in ORDERS:
            found = list(pages(database, Filters(query=query), order, limit, effort=effort))
            if order.by_age:
                assert found == (expected if order is Order.NEWEST else expected[::-1]), text
            else:
                assert sorted(found) == sorted(expected), text


def test_times_without_jobs_are_not_searched_when_matches_are_more_than_estimated(
    database: Database, history: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # PostgreSQL's planner takes words for independent, so for words that come together its estimate is too low.
    monkeypatch.setattr(search_candidates._GIN, "_estimated_matches", lambda *_: 1.0)
    for name in ("MAX_COMPARED", "MAX_CANDIDATES"):
        monkeypatch.setattr(search_candidates, name, 10)
    with executed(database.engine) as statements:
        found = find(database, '"quick fox"')
    assert found == [i for i, text in history.items() if " quick fox " in text]
    assert len(statements) < 60


def test_numbers_are_compared_exactly(database: Database, history: dict[str, str]) -> None:
    with database.read() as connection:
        rows = connection.execute(sa.select(SearchDocument.job_id, SearchDocument.duration)).all()
    for least, most in ((0.0, 50.0), (33.3, None), (None, 33.3), (20.0, 21.0)):
        found = find(database, min_duration=least, max_duration=most, limit=9)
        expected = {i for i, d in rows if (least or 0) <= d <= (most or 1000)}
        assert set(found) == expected
        assert found == [i for i in history if i in expected]


def test_the_longest_come_first(database: Database, history: dict[str, str]) -> None:
    with database.read() as connection:
        rows = connection.execute(sa.select(SearchDocument.job_id, SearchDocument.duration)).all()
    durations = dict(rows)
    expected = sorted(history, key=lambda job: -durations[job])
    foxes = [job for job in expected if " fox " in history[job]]
    for limit in (1, 7, 100):
        for filters, jobs in (
            (Filters(), expected),
            (Filters(min_duration=33.3), [i for i in expected if durations[i] >= 33.3]),
            (Filters(max_duration=33.3), [i for i in expected if durations[i] <= 33.3]),
            (Filters(query=parse("fox")), foxes),
        ):
            assert list(pages(database, filters, Order.LONGEST, limit)) == jobs
    page = searching.search(database, None, Filters(), limit=130, order=Order.LONGEST)
    assert (len(page.jobs), page.next) == (130, None)


def test_the_most_changed_come_first(database: Database) -> None:
    draft = " ".join(f"word{number}" for number in range(40))
    finals = {
        number: " ".join([*draft.split()[: 40 - number], *("other" for _ in range(number))])
        for number in (3, 40, 0, 22, 1, 39, 21, 2)
    }
    jobs = {number: end(database, draft, "No.", text) for number, text in finals.items()}
    cancelled = submit(database)
    cancellation.cancel(database, ANONYMOUS, cancelled.id)
    waiting = submit(database)
    index(database)
    expected = [jobs[number].id for number in sorted(jobs, reverse=True)]
    for limit in (1, 3, 100):
        assert list(pages(database, Filters(), Order.MOST_CHANGED, limit)) == expected
    # A page that has all that there is has no next one.
    page = searching.search(database, None, Filters(), limit=8, order=Order.MOST_CHANGED)
    assert (len(page.jobs), page.next) == (8, None)
    since = submit(database).created_at
    assert list(pages(database, Filters(until=since), Order.MOST_CHANGED, 5)) == expected
    assert list(pages(database, Filters(since=since), Order.MOST_CHANGED, 5)) == []
    assert list(pages(database, Filters(), Order.MOST_CHANGED, 5, owner="other")) == []
    assert {cancelled.id, waiting.id} <= set(pages(database, Filters(), Order.NEWEST, 5))


def test_of_many_alike_the_newest_are_ranked_together(
    database: Database, history: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searching_by_rank, "RANKED", 10)
    with database.read() as connection:
        rows = connection.execute(sa.select(SearchDocument.job_id, SearchDocument.duration)).all()
    durations = dict(rows)
    found = list(pages(database, Filters(), Order.LONGEST, 7))
    assert sorted(found) == sorted(history)
    alike = [job for job in history if 64 <= durations[job] < 128]
    assert len(alike) > 20
    for start in range(0, len(alike), 10):
        some = alike[start : start + 10]
        assert found[start : start + len(some)] == sorted(some, key=lambda job: -durations[job])


def test_a_minimum_above_its_maximum_finds_nothing(database: Database) -> None:
    end(database)
    index(database)
    assert find(database, min_duration=5.0, max_duration=1.0) == []
    assert find(database, min_changed=1.0, max_changed=0.0) == []


def test_times_and_words_are_searched_together(database: Database, history: dict[str, str]) -> None:
    with database.read() as connection:
        created = dict(connection.execute(sa.select(Job.id, Job.created_at)).all())
    ids = list(history)
    since, until = created[ids[110]], created[ids[20]]
    expected = [i for i in ids[21:111] if " fox " in history[i]]
    assert find(database, "fox", since=since, until=until, limit=10) == expected


@pytest.mark.usefixtures("history")
def test_pages_stay_right_while_jobs_arrive(database: Database) -> None:
    filters = Filters(query=parse("fox"))
    for order in ORDERS:
        seen: list[str] = []
        after = None
        before = set(pages(database, filters, Order.NEWEST, 100))
        while True:
            page = searching.search(database, None, filters, limit=20, order=order, after=after)
            seen += [listed.job.id for listed in page.jobs]
            end(database, question="another fox")
            index(database)
            if (after := page.next) is None:
                break
        assert len(seen) == len(set(seen))
        assert before <= set(seen)


def test_all_texts_are_searched_and_the_best_match_comes_first(database: Database) -> None:
    in_draft = end(database, "The fox.", "No.", "The dog.")
    in_question = end(database, question="A fox?")
    in_critique = end(database, "A dog.", "It is a FOX fox fox!", "A dog.")
    other = end(database)
    index(database)
    assert find(database, "fox") == [in_critique.id, in_question.id, in_draft.id]
    ranked = pages(database, Filters(query=parse("fox")), Order.RELEVANCE, 1)
    assert next(ranked) == in_question.id or in_critique.id
    assert find(database, '"fox no"') == [], "a phrase is in one text"
    assert find(database, "-fox") == [other.id]


def test_filters_of_all_kinds(database: Database) -> None:
    adapters = {"actor": {"name": "/models/run-1/lora", "digest": "sha256:ab"}}
    runtime = replace(RUNTIME, description={"engine": "none", "adapters": adapters})
    workers.register(database, "worker-2", "elsewhere", 2, runtime)
    plain = end(database, "a b c d", "no", "a b c d", metadata={"team": "red"})
    changed = submit(database, metadata={"team": "blue", "x": "é"})
    for stage_index, text in enumerate(("a b c d", "no", "x y c d")):
        lost = claim(database, changed, stage_index, "worker-2")
        if stage_index == 1:
            stages.release(database, lost, "it shut down")
            lost = claim(database, changed, stage_index, "worker-2")
        stages.record(database, lost, replace(OUTPUT, text=text, delta_lengths=[7]))
    cancelled = submit(database, metadata={})
    cancellation.cancel(database, ANONYMOUS, cancelled.id)
    index(database)
    for value in ("/models/run-1/lora", "run-1/lora", "lora", "sha256:ab"):
        assert find(database, adapter=value) == [changed.id], value
    for value in ("ora", "run-1", "models/run-1", "sha256:a"):
        assert find(database, adapter=value) == [], value
    assert find(database, worker="elsewhere") == find(database, worker="worker-2") == [changed.id]
    assert find(database, worker=WORKER) == [plain.id]
    assert find(database, metadata={"team": "red"}) == [plain.id]
    assert find(database, metadata={"x": "é", "team": "blue"}) == [changed.id]
    assert find(database, metadata={"team": "x"}) == []
    assert find(database, model=runtime.model) == [changed.id]
    assert find(database, min_attempts=2) == [changed.id]
    assert find(database, min_attempts=3) == find(database, min_attempts=99) == []
    assert len(find(database, min_attempts=1)) == 3
    assert (
        find(database, min_changed=0.5)
        == find(database, max_changed=0.5, min_changed=0.4)
        == [changed.id]
    )
    assert find(database, max_changed=0.0) == [plain.id]
    assert find(database, max_duration=3600, statuses=(Status.CANCELLED,)) == [cancelled.id]
    both = (Status.CANCELLED, Status.COMPLETED)
    assert find(database, statuses=both, limit=1) == [cancelled.id, changed.id, plain.id]
    assert find(database, statuses=both, min_changed=0, limit=1) == [changed.id, plain.id]


def test_a_key_finds_what_it_submitted(database: Database) -> None:
    one, other = (keys.create(database, name, [Scope.ASK])[0] for name in ("one", "other"))

    def ask(key: ApiKey | None) -> Job:
        return submission.submit(database, "owner", QUESTION, max_queued=10, key=key)[0]

    (ended, waiting), _ = (ask(one), ask(one)), (ask(other), ask(None))
    cancellation.cancel(database, "owner", ended.id)
    index(database)
    assert find(database, key=one.id) == [waiting.id, ended.id]
    assert find(database, key=one.id, statuses=(Status.CANCELLED,)) == [ended.id]
    assert find(database, "why", key=one.id) == [ended.id]
    assert find(database, key="key_none") == []
    found = pages(database, Filters(key=one.id), Order.NEWEST, 5, owner="another")
    assert list(found) == []


def test_an_owner_finds_own_jobs_only(database: Database) -> None:
    own = end(database)
    other, _ = submission.submit(database, "other", QUESTION, max_queued=10)
    cancellation.cancel(database, "other", other.id)
    index(database)
    filters = Filters(query=parse("why"))
    for owner, of, expected in (
        (ANONYMOUS, None, [own.id]),
        ("other", None, [other.id]),
        (None, None, [other.id, own.id]),
        (None, "other", [other.id]),
        (ANONYMOUS, "other", []),
    ):
        page = searching.search(database, owner, filters, of=of, limit=10)
        assert [listed.job.id for listed in page.jobs] == expected
    with pytest.raises(CursorError):
        searching.search(database, ANONYMOUS, filters, limit=1, after=other.id)
    after = searching.search(database, None, filters, limit=1, after=other.id)
    assert [listed.job.id for listed in after.jobs] == [own.id]


@pytest.mark.parametrize("most", [searching_by_age.MAX_UNFINISHED, 2])
def test_metadata_find_jobs_whether_they_have_ended_or_not(
    database: Database, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(searching_by_age, "MAX_UNFINISHED", most)
    rng = random.Random(7)
    statuses: dict[str, str] = {}
    for number in range(40):
        team = {"team": "red", "n": str(number)} if rng.random() < 0.6 else {"team": "blue"}
        kind = rng.choice(("ended", "queued", "in_progress"))
        owner = "ann" if number % 5 == 0 else ANONYMOUS
        new = replace(QUESTION, metadata=team)
        job, _ = submission.submit(database, owner, new, max_queued=100)
        if kind == "ended":
            cancellation.cancel(database, owner, job.id)
        elif kind == "in_progress":
            claim(database, job, 0)
        if team["team"] == "red" and owner == ANONYMOUS:
            statuses[job.id] = {"ended": "cancelled"}.get(kind, kind)
        if number == 25:
            index(database)
    for order in (Order.OLDEST, Order.NEWEST):
        for wanted in ((), (Status.QUEUED,), (Status.IN_PROGRESS, Status.CANCELLED)):
            expected = [i for i, status in statuses.items() if not wanted or status in wanted]
            if order is Order.NEWEST:
                expected.reverse()
            index(database)
            for limit in (1, 3, 100):
                filters = Filters(metadata={"team": "red"}, statuses=wanted)
                assert [*pages(database, filters, order, limit, owner=ANONYMOUS)] == expected
    assert not searching.search(
        database, ANONYMOUS, Filters(metadata={"team": "red"}, worker=WORKER), limit=5
    ).jobs


@pytest.mark.parametrize("after", ["x", "resp_none", "pos_", "pos_-1", f"pos_{10**19}", "rank_1_2"])
def test_a_wrong_cursor_is_refused(database: Database, after: str) -> None:
    with pytest.raises(CursorError):
        searching.search(database, None, Filters(query=parse("a")), limit=1, after=after)
