"""The statistics that SQLite's planner gets."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

import migrations
from jobs.database_engine import create_engine
from jobs.models import Base
from migrations.statistics import STATISTICS


def test_each_index_has_statistics() -> None:
    indexes = {
        (table.name, index.name) for table in Base.metadata.sorted_tables for index in table.indexes
    }
    known = {(table, name) for table, names in STATISTICS.items() for name in names if name}
    assert indexes - known == set()


def test_statistics_are_of_indexes_that_exist_and_have_a_number_for_each_column(
    tmp_path: Path,
) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'jobs.sqlite3'}")
    migrations.migrate(engine)
    with engine.connect() as connection:
        for table, indexes in STATISTICS.items():
            for index, numbers in indexes.items():
                if index is None:
                    assert sa.inspect(connection).has_table(table)
                    continue
                columns = connection.exec_driver_sql(f"PRAGMA index_info({index})").all()
                assert columns, index
                assert len(numbers.split()) == 1 + len(columns), index
        kept = connection.exec_driver_sql("SELECT count(*) FROM sqlite_stat1").scalar_one()
    assert kept == sum(map(len, STATISTICS.values()))
    engine.dispose()
