"""The formats of exports: JSON Lines, CSV and Parquet, compressed or not."""

from __future__ import annotations

import gzip
import io
import json
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
import zstandard

from jobs.database import Database
from jobs.enums import Shape
from jobs.formats.compression import Compression, decompressed
from jobs.formats.writing import FileKind, Format, kind_of, to_json
from jobs.models import Job
from jobs.protocol.shapes import COLUMNS
from jobs.use_cases.stages import Output
from tests.integration.sealed import seal
from tests.integration.web.client import Client
from tests.integration.web.exports import end, from_csv, lines, parquet, review


@pytest.fixture
def web(emptied_web: Client) -> Client:
    """One client for all tests: to make one takes longer than they do."""
    return emptied_web


@pytest.mark.parametrize("shape", Shape)
def test_all_formats_say_the_same(web: Client, database: Database, shape: Shape) -> None:
    reviewed = end(web, database, metadata={"team": "=cmd()"})
    end(web, database)
    seal(database)
    review(web, reviewed, critique=-1, regeneration=-1, tags=["=a", "b"], note="@SUM(2)")
    rows = lines(web, f"shape={shape}")
    assert len(rows) == {Shape.SFT: 6, Shape.REVIEW: 1}.get(shape, 2)
    stored = parquet(web.get(f"/api/jobs/export?shape={shape}&format=parquet").data)
    cells = from_csv(web.get(f"/api/jobs/export?shape={shape}&format=csv").data)
    assert len(stored) == len(cells) == len(rows)
    for row, typed, texts in zip(rows, stored, cells, strict=True):
        assert list(row) == list(typed) == list(texts) == list(COLUMNS[shape])
        for name, kind in COLUMNS[shape].items():
            value, cell = typed[name], texts[name]
            if kind == "json":
                assert (None if value is None else json.loads(value)) == row[name]
                assert (json.loads(cell) if cell else None) == row[name]
            else:
                assert value == row[name]
                written = "" if value is None else str(value)
                if kind == "texts" and value is not None:
                    written = to_json(value)
                if kind == "boolean":
                    written = written.lower()
                assert cell.removeprefix("'") == written


@pytest.mark.parametrize("shape", Shape)
def test_no_cell_of_a_csv_is_executed(web: Client, database: Database, shape: Shape) -> None:
    for start in ("=", "+", "-", "@", "\t", "\r", "\n=", "'=", "＝"):
        text = f'{start}HYPERLINK("http://example.com";"a,b")'
        output = Output(text, [len(text)], 20, 3, "stop", 1024, 0.0)
        job = end(web, database, output, output, replace(output, text=f"{text}."), input=text)
        review(web, job, critique=1, note=text, tags=[text])
    reply = web.get(f"/api/jobs/export?shape={shape}&format=csv")
    assert reply.content_type == "text/csv; charset=utf-8"
    cells = [cell for row in from_csv(reply.data) for cell in row.values()]
    assert not [c for c in cells if c and c[0] in "=+-@\t\r\n＝＋－＠"]
    # In quotes, so that a spreadsheet whose separator is `;` finds no cells in them.
    assert '"\'=HYPERLINK(""http' in reply.text


@pytest.mark.parametrize("format_", [Format.JSONL, Format.CSV])
def test_a_file_may_be_compressed(web: Client, database: Database, format_: Format) -> None:
    end(web, database)
    seal(database)
    path = f"/api/jobs/export?format={format_}"
    plain = web.get(path)
    assert plain.content_encoding is None
    for compression in ("gzip", "zstd"):
        reply = web.get(f"{path}&compression={compression}", headers={"Accept-Encoding": "gzip"})
        assert (reply.mimetype, reply.content_encoding) == (f"application/{compression}", None)
        kind = FileKind(format_, Compression(compression))
        name = f"helixq-history{kind.suffix}"
        assert reply.headers["Content-Disposition"] == f"attachment; filename={name}"
        assert kind_of(name) == kind
        assert b"".join(decompressed(io.BytesIO(reply.data))) == plain.data
    for accepted, used in (("gzip, zstd", "zstd"), ("gzip, zstd;q=0", "gzip"), ("br", None)):
        reply = web.get(path, headers={"Accept-Encoding": accepted})
        assert (reply.content_encoding, reply.content_type) == (used, plain.content_type)
        data = reply.data
        if used:
            data = b"".join(decompressed(io.BytesIO(data)))
        assert data == plain.data
        assert "Accept-Encoding" in reply.headers["Vary"]


@pytest.mark.parametrize("compression", Compression)
def test_parquet_is_compressed_inside(
    web: Client, database: Database, compression: Compression
) -> None:
    end(web, database)
    reply = web.get(
        f"/api/jobs/export?format=parquet&compression={compression}",
        headers={"Accept-Encoding": "gzip"},
    )
    assert (reply.mimetype, reply.content_encoding) == ("application/vnd.apache.parquet", None)
    column = pq.ParquetFile(io.BytesIO(reply.data)).metadata.row_group(0).column(0)
    expected = "UNCOMPRESSED" if compression is Compression.NONE else compression.upper()
    assert column.compression == expected


def test_an_empty_export_is_a_file_too(web: Client) -> None:
    for shape in Shape:
        assert web.get(f"/api/jobs/export?shape={shape}").data == b""
        packed = web.get(f"/api/jobs/export?shape={shape}&compression=gzip").data
        assert gzip.decompress(packed) == b""
        packed = web.get(f"/api/jobs/export?shape={shape}&compression=zstd").data
        assert zstandard.ZstdDecompressor().decompressobj().decompress(packed) == b""
        assert from_csv(web.get(f"/api/jobs/export?shape={shape}&format=csv").data) == []
        table = pq.read_table(
            io.BytesIO(web.get(f"/api/jobs/export?shape={shape}&format=parquet").data)
        )
        assert (table.num_rows, table.column_names) == (0, list(COLUMNS[shape]))


def test_parquet_has_many_row_groups(web: Client, database: Database) -> None:
    job_id = end(web, database)
    names = ", ".join(c.name for c in Job.__table__.columns if c.name != "id")
    with database.write() as connection:
        connection.execute(
            sa.text(
                f"INSERT INTO jobs (id, {names}) SELECT 'resp_' || n, {names} FROM jobs, "
                "(WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers "
                "WHERE n < 1500) SELECT n FROM numbers) AS numbers WHERE id = :id"
            ),
            {"id": job_id},
        )
    file = pq.ParquetFile(io.BytesIO(web.get("/api/jobs/export?format=parquet").data))
    assert [file.metadata.row_group(i).num_rows for i in range(2)] == [1000, 501]
