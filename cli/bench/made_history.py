"""A history of as many jobs as one likes: some with texts of their own, and copies of them made in SQL."""

from __future__ import annotations

import datetime as dt
import itertools
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import sqlalchemy as sa

from jobs.database import Database
from jobs.database_engine import begin
from jobs.ids import new_id
from jobs.models import Attempt, AttemptStatus, Job, Review, Rollup, Status
from jobs.pipeline import DEFAULT_SYSTEM, Role, prompt, stages
from jobs.statements import documents
from jobs.statements.rollups import ALL_OWNERS
from jobs.statistics.counted import Counted
from jobs.statistics.periods import Level, start_of
from jobs.statistics.tally import Tally
from jobs.use_cases import indexing, workers
from jobs.use_cases.workers import Runtime

#: Jobs with texts of their own; all others are copies of them, each with a word that no other has.
TEMPLATES = 1000
#: Days that the history covers.
DAYS = 200
#: One in so many jobs has a review. The copies have its terms in the index, and not the review itself.
REVIEWED = 20
#: Jobs of one transaction.
CHUNK = 50_000
OWNERS = 10
#: Two sets of adapters with half of the jobs each, and one that a job in a thousand has.
ADAPTERS = ("v1", "v2", "rare")
VOCABULARY = 20_000
#: Zipf's law.
_WEIGHTS = list(itertools.accumulate(1 / (rank + 3) for rank in range(VOCABULARY)))
_SYLLABLES = ["ka", "to", "mi", "re", "su", "lo", "ne", "vi", "da", "po", "chi", "ba", "ra", "fe"]
_KANJI = "東京都大阪市日本国語学生先生時間電車自動車会社新聞科学技術問題答案検索機械学習"


def fill(
    database: Database, count: int, on_progress: Callable[[str], object] = lambda _: None
) -> list[str]:
    """Add ended jobs of the last `DAYS` days with their attempts and documents; return ids of some.

    Args:
        database: with the tables, and no jobs.
        count: the number of jobs.
        on_progress: called with a description of the next step.
    """
    on_progress("making texts")
    numbered = _add_templates(database)
    is_sqlite = database.engine.dialect.name == "sqlite"
    step = DAYS * 86_400_000 // count
    base = int(time.time() * 1000) - count * step
    with database.engine.connect() as connection:
        if is_sqlite:
            for pragma in ("synchronous=OFF", "cache_size=-500000", "foreign_keys=OFF"):
                connection.exec_driver_sql(f"PRAGMA {pragma}")
        else:
            definition = connection.exec_driver_sql(
                "SELECT indexdef FROM pg_indexes WHERE indexname = 'search_index'"
            ).scalar_one()
            connection.exec_driver_sql("DROP INDEX search_index")
            # Nobody waits for these transactions, which add up and prepare rows meanwhile.
            connection.exec_driver_sql("SET idle_in_transaction_session_timeout = 0")
        connection.commit()
        for start in range(0, count, CHUNK):
            on_progress(f"{start:,} of {count:,} jobs")
            begin(connection, write=True)
            for table in ("jobs", "attempts", "search_documents"):
                numbers = (start, min(start + CHUNK, count))
                connection.exec_driver_sql(_copy(connection, table, numbers, base, step))
            connection.commit()
        on_progress("adding up what the jobs count for")
        begin(connection, write=False)
        templates = _counted_templates(connection)
        connection.commit()
        rollups = _rollups(templates, count, base, step)
        begin(connection, write=True)
        connection.execute(sa.delete(Rollup))
        connection.execute(sa.insert(Rollup), rollups)
        on_progress("removing the templates, and gathering statistics")
        _remove_templates(connection, numbered)
        connection.commit()
        if is_sqlite:  # Its statistics are those of the migrations, as in service.
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        else:
            on_progress("building the index")
            connection.exec_driver_sql("SET maintenance_work_mem = '1GB'")
            connection.exec_driver_sql(str(definition))
            connection.commit()
            connection.exec_driver_sql("ANALYZE")
            connection.commit()
        connection.invalidate()
    with database.read() as connection:
        chosen = random.Random(0).sample(range(count), 100)
        wanted = [f"resp_{base + i * step:012x}{i:020x}" for i in chosen]
        found = connection.scalars(sa.select(Job.id).where(Job.id.in_(wanted)))
        return list(found)


def _remove_templates(connection: sa.Connection, job_ids: Sequence[str]) -> None:
    """Remove the jobs that were copied, and the table that numbers them."""
    for job_id in job_ids:
        for table, column in (
            ("search_documents", "job_id"),
            ("attempts", "job_id"),
            ("jobs", "id"),
            ("reviews", "job_id"),
        ):
            connection.exec_driver_sql(
                f"DELETE FROM {table} WHERE {column} = '{job_id}'"  # noqa: S608 (of our own words)
            )
    connection.exec_driver_sql("DROP TABLE bench_templates")


def _add_templates(database: Database) -> list[str]:
    """Add the jobs that are copied, and a table that numbers them; return their ids."""
    rng = random.Random(0)
    vocabulary = _vocabulary(rng)
    for adapter in ADAPTERS:
        names = {
            role.value: {"name": f"lora-{adapter}", "digest": f"sha256:{adapter}"} for role in Role
        }
        runtime = Runtime({"engine": "none", "adapters": names}, 4096, "{}")
        workers.register(database, f"worker-{adapter}", f"host-{adapter}", 1, runtime)
    now = dt.datetime.now(dt.UTC)
    ids = [new_id("resp_") for _ in range(TEMPLATES)]
    templates = [
        _template(rng, vocabulary, number, job_id, now) for number, job_id in enumerate(ids)
    ]
    with database.write_session() as session:
        session.add_all(itertools.chain(*templates))
    prepared = indexing.prepare(database, limit=TEMPLATES)
    indexing.put(database, prepared)
    with database.write() as connection:
        connection.exec_driver_sql(
            "CREATE TABLE bench_templates (number INTEGER PRIMARY KEY, job_id VARCHAR(40))"
        )
        insert = sa.text("INSERT INTO bench_templates VALUES (:number, :job_id)")
        rows = [{"number": n, "job_id": job_id} for n, job_id in enumerate(ids)]
        connection.execute(insert, rows)
        # The copies get their own.
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql(
                r"UPDATE search_documents SET terms = regexp_replace(terms, ' _t\d+_[0-9a-f]+', '', 'g')"
            )
    return ids


def _counted_templates(connection: sa.Connection) -> dict[int, tuple[str, str, Counted]]:
    """Return each template's owner, model, and what it counts for, by its number."""
    numbers = sa.text("SELECT job_id, number FROM bench_templates")
    number_of = {row.job_id: row.number for row in connection.execute(numbers)}
    columns = (Job.id, Job.owner, Job.model, Job.counted)
    found = connection.execute(sa.select(*columns).where(Job.id.in_(list(number_of))))
    return {
        number_of[row.id]: (row.owner, row.model or "", Counted.load(row.counted)) for row in found
    }


def _rollups(
    templates: dict[int, tuple[str, str, Counted]], count: int, base: int, step: int
) -> list[dict[str, Any]]:
    """Return the rollups of the copies.

    Args:
        templates: as `_counted_templates` returns them.
        count: the number of copies.
        base, step: the milliseconds of the first one's time, and from one to the next.
    """
    by_hour: dict[tuple[int, str, str], Tally] = {}
    for number in range(count):
        owner, model, counted = templates[number % TEMPLATES]
        key = ((base + number * step) // 3_600_000, owner, model)
        by_hour.setdefault(key, Tally()).add(counted)
    sums: dict[tuple[str, Level, dt.datetime, str], Tally] = {}
    for (hour, owner, model), tally in by_hour.items():
        moment = dt.datetime.fromtimestamp(hour * 3600, dt.UTC)
        for whose in (ALL_OWNERS, owner):
            for level in Level:
                key_of_sum = (whose, level, start_of(level, moment), model)
                sums.setdefault(key_of_sum, Tally()).merge(tally)
    return [
        {
            "owner": owner,
            "level": level,
            "start": start,
            "model": model,
            "jobs": tally.jobs,
            "tally": tally.dump(),
        }
        for (owner, level, start, model), tally in sorted(sums.items(), key=lambda item: item[0])
    ]


def _vocabulary(rng: random.Random) -> list[str]:
    """Return words, the most frequent ones first and shorter."""
    words = {"the": None, "answer": None, "is": None, "of": None, "a": None}
    while len(words) < VOCABULARY:
        syllables = 1 + (len(words) > 100) + (len(words) > 1000)
        words["".join(rng.choices(_SYLLABLES, k=syllables + rng.randrange(2)))] = None
    return list(words)


def _template(
    rng: random.Random, vocabulary: list[str], number: int, job_id: str, now: dt.datetime
) -> list[Any]:
    def text(count: int) -> str:
        if number % 10 == 0:  # A tenth of the history is in Japanese.
            return "".join(rng.choices(_KANJI, k=2 * count)) + "。"
        chosen = rng.choices(vocabulary, cum_weights=_WEIGHTS, k=count)
        return " ".join(chosen) + "."

    question, draft, critique = f"{text(15)} topic{number}", text(90), text(50)
    kept = draft.split(" ")
    for position in rng.sample(range(len(kept)), len(kept) * (number % 50) // 50):
        kept[position] = rng.choice(vocabulary)
    outputs = [draft, critique, f"The final answer is {' '.join(kept)}"]
    adapter = ADAPTERS[2] if number == 500 else ADAPTERS[number % 2]
    seconds = 2 ** rng.uniform(-1, 6)
    finished = now + dt.timedelta(seconds=seconds)
    common: dict[str, Any] = {
        "temperature": 0.75,
        "top_k": 50,
        "top_p": 1.0,
        "max_output_tokens": 1024,
    }
    status = Status.FAILED if number % 100 == 7 else Status.COMPLETED
    job = Job(
        id=job_id,
        owner=f"owner-{number % OWNERS}",
        status=status,
        question=question,
        system=DEFAULT_SYSTEM,
        seed=number,
        rounds=1,
        priority=5,
        background=True,
        metadata_={"team": f"team-{number % 5}", "case": f"case-{number}"},
        created_at=now,
        started_at=now,
        finished_at=finished,
        ready_at=now,
        model=f"{number % 2:064x}",
        stage_index=3,
        lease_token=3,
        **common,
    )
    reviews = []
    if number % REVIEWED == 9:
        job.rating = 1
        reviews.append(
            Review(
                id=new_id("rev_"),
                job_id=job_id,
                number=0,
                reviewer=f"reviewer-{number // REVIEWED % 2}",
                critique=number // REVIEWED % 3 - 1,
                regeneration=1,
                tags=["checked"],
                created_at=now,
            )
        )
    attempts = []
    for stage in stages():
        index, role = stage.index, stage.role
        again = number % 200 == 3 and index == 1
        attempts += [
            (
                Attempt(
                    job_id=job_id,
                    stage_index=index,
                    role=role,
                    round=1,
                    number=try_,
                    lease_token=index + 1,
                    worker_id=f"worker-{adapter}",
                    status=AttemptStatus.LOST if again and try_ == 1 else AttemptStatus.FINISHED,
                    prompt=prompt(stage, DEFAULT_SYSTEM, question, outputs[: stage.index]),
                    output=None if again and try_ == 1 else outputs[index],
                    delta_lengths=[10] * 20,
                    seed=number,
                    prompt_tokens=200,
                    output_tokens=100,
                    finish_reason="stop",
                    queued_at=now,
                    started_at=now,
                    first_token_at=now,
                    finished_at=finished,
                    **common,
                )
            )
            for try_ in ((1, 2) if again else (1,))
        ]
    return [job, *attempts, *reviews]


def _copy(
    connection: sa.Connection, table: str, numbers: tuple[int, int], base: int, step: int
) -> str:
    """Return the statement that adds copies of the templates' rows, one of a template for each number."""
    columns = [c["name"] for c in sa.inspect(connection).get_columns(table)]
    sqlite = connection.dialect.name == "sqlite"
    milliseconds = f"({base} + n.i * {step})"
    word = "'copy' || n.i"
    if sqlite:
        made = f"(strftime('%Y-%m-%d %H:%M:%f', {milliseconds} / 1000.0, 'unixepoch') || '000')"
        taken = "(julianday(old.finished_at) - julianday(old.created_at)) * 86400.0"
        ended = f"(strftime('%Y-%m-%d %H:%M:%f', {milliseconds} / 1000.0 + {taken}, 'unixepoch') || '000')"
        job_id = f"('resp_' || printf('%012x%020x', {milliseconds}, n.i))"
        source = (
            f"(WITH RECURSIVE s(i) AS (SELECT {numbers[0]} UNION ALL SELECT i + 1 FROM s "  # noqa: S608 (of our own words)
            f"WHERE i + 1 < {numbers[1]}) SELECT i FROM s) AS n"
        )
    else:
        made = f"to_timestamp({milliseconds} / 1000.0)"
        ended = f"({made} + (old.finished_at - old.created_at))"
        job_id = f"('resp_' || lpad(to_hex({milliseconds}), 12, '0') || lpad(to_hex(n.i), 20, '0'))"
        source = f"generate_series({numbers[0]}::bigint, {numbers[1]} - 1) AS n(i)"
    document_id = f"({milliseconds} * 1000 * 2048)"
    terms = f"old.terms || ' ' || {word}"
    if not sqlite:
        for bits in documents.PERIODS:
            terms += f" || ' _t{bits}_' || to_hex({document_id} >> {bits + documents.TIE_BITS})"
    changes = {
        "jobs": {
            "id": job_id,
            "question": f"old.question || ' ' || {word}",
            "created_at": made,
            "started_at": made,
            "finished_at": ended,
            "log_index": "n.i",
            "unindexed": "0",
        },
        "attempts": {"job_id": job_id},
        "search_documents": {
            "id": document_id,
            "job_id": job_id,
            "terms": terms,
            "words": f"' ' || {word} || old.words",
        },
    }[table]
    if table == "attempts":
        columns.remove("id")
    values = ", ".join(changes.get(name, f"old.{name}") for name in columns)
    key = "id" if table == "jobs" else "job_id"
    return (
        f"INSERT INTO {table} ({', '.join(columns)}) "  # noqa: S608 (of our own words)
        f"SELECT {values} FROM {source} JOIN bench_templates AS t ON t.number = n.i - n.i / {TEMPLATES} * {TEMPLATES} "
        f"JOIN {table} AS old ON old.{key} = t.job_id ORDER BY n.i"
    )
