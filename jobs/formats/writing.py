"""Writing rows as JSON Lines, CSV or Parquet: rows go in, and bytes come out as soon as they are made."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import StrEnum
from typing import Any, NamedTuple, Protocol

from jobs.formats import extra
from jobs.formats.columns import Kind
from jobs.formats.compression import Compression, compressor

Columns = Mapping[str, Kind]
Row = Mapping[str, Any]

#: Parquet: a row group is written when it has so many rows, or so many characters.
GROUP_ROWS, GROUP_CHARACTERS = 1_000, 1 << 22
#: Begins a cell that a spreadsheet may execute. The wide ones count where they are on the keyboard.
_EXECUTED = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")
#: What JSON allows in texts and some readers take for the end of a line.
_LINE_ENDS = {c: f"\\u{ord(c):04x}" for c in "\x85\u2028\u2029"}


class Format(StrEnum):
    """A format of files of rows."""

    JSONL = "jsonl"
    CSV = "csv"
    PARQUET = "parquet"


class FileKind(NamedTuple):
    """The format of a file, and its compression."""

    format: Format
    compression: Compression = Compression.NONE

    @property
    def suffix(self) -> str:
        """The end of the file's name. Parquet is compressed inside."""
        packed = "" if self.format is Format.PARQUET else _PACKED[self.compression]
        return f".{self.format}{packed}"

    @property
    def media_type(self) -> str:
        """The media type of the file."""
        if self.format is Format.PARQUET or self.compression is Compression.NONE:
            return _MEDIA_TYPES[self.format]
        return f"application/{self.compression}"


_PACKED = {Compression.NONE: "", Compression.GZIP: ".gz", Compression.ZSTD: ".zst"}
_MEDIA_TYPES = {
    Format.JSONL: "application/jsonl",
    Format.CSV: "text/csv; charset=utf-8",
    Format.PARQUET: "application/vnd.apache.parquet",
}
#: The media types of all kinds of files.
MEDIA_TYPES = (*_MEDIA_TYPES.values(), "application/gzip", "application/zstd")


def kind_of(name: str) -> FileKind | None:
    """Return what a file is by the end of its name; None if that does not say it."""
    kinds = [FileKind(f, c) for f in Format for c in Compression]
    return next((kind for kind in kinds if name.lower().endswith(kind.suffix)), None)


class Writer(Protocol):
    """Writes one file."""

    def write(self, rows: Iterable[Row]) -> bytes:
        """Add rows; return what is ready."""

    def finish(self) -> bytes:
        """Return the rest of the file."""


def writing(
    kind: FileKind, columns: Columns
) -> Callable[[Iterator[Iterable[Row]]], Iterator[bytes]]:
    """Return a function that makes the bytes of a file of pages of rows.

    Args:
        kind: of the file.
        columns: of the rows, in their order.

    Raises:
        NotInstalledError: a package for it is not installed.
    """
    if kind.format is Format.PARQUET:
        writer: Writer = _Parquet(columns, kind.compression)
        packed = compressor(Compression.NONE)
    else:
        writer = _JSONL() if kind.format is Format.JSONL else _CSV(columns)
        packed = compressor(kind.compression)

    def write(pages: Iterator[Iterable[Row]]) -> Iterator[bytes]:
        for rows in pages:
            if data := packed.compress(writer.write(rows)):
                yield data
        if data := packed.compress(writer.finish()) + packed.flush():
            yield data

    return write


def to_json(value: Any) -> str:
    """Return a value as JSON in one line, with what it says readable: not in ASCII alone."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    if not text.isascii():
        for character, escaped in _LINE_ENDS.items():
            text = text.replace(character, escaped)
    return text


def defused(text: str) -> str:
    """Return a text that no spreadsheet executes: with an apostrophe before it, if it would begin a formula.

    To have the text again, take away the first apostrophe of each cell that begins with apostrophes and one of
    those characters.
    """
    return f"'{text}" if _EXECUTED.match(text) else text


class _JSONL:
    def write(self, rows: Iterable[Row]) -> bytes:
        return "".join(f"{to_json(row)}\n" for row in rows).encode()

    def finish(self) -> bytes:
        return b""


class _CSV:
    """RFC 4180. Texts are quoted, so that a spreadsheet with another separator finds no cells in them."""

    def __init__(self, columns: Columns) -> None:
        self._columns = columns
        self._buffer = io.StringIO(newline="")
        self._writer = csv.writer(self._buffer, quoting=csv.QUOTE_NONNUMERIC)
        self._writer.writerow(columns)

    def write(self, rows: Iterable[Row]) -> bytes:
        for row in rows:
            self._writer.writerow(_cell(row[name], kind) for name, kind in self._columns.items())
        return self.finish()

    def finish(self) -> bytes:
        text = self._buffer.getvalue()
        self._buffer.seek(0)
        self._buffer.truncate()
        return text.encode()


def _cell(value: Any, kind: Kind) -> str | int | float:
    if value is None or (kind is Kind.TEXT and not isinstance(value, str)):
        return ""
    if kind in (Kind.INTEGER, Kind.NUMBER):
        number: int | float = value
        return number
    return defused(value if kind is Kind.TEXT else to_json(value))


class _Parquet:
    """A row group at a time."""

    def __init__(self, columns: Columns, compression: Compression) -> None:
        self._arrow = extra.load("pyarrow", "Parquet")
        parquet = extra.load("pyarrow.parquet", "Parquet")
        self._columns = columns
        types = {
            Kind.TEXT: self._arrow.string(),
            Kind.INTEGER: self._arrow.int64(),
            Kind.NUMBER: self._arrow.float64(),
            Kind.BOOLEAN: self._arrow.bool_(),
            Kind.TEXTS: self._arrow.list_(self._arrow.string()),
            Kind.JSON: self._arrow.string(),
        }
        self._schema = self._arrow.schema([(name, types[kind]) for name, kind in columns.items()])
        self._sink = _Sink()
        codec = "none" if compression is Compression.NONE else str(compression)
        self._writer = parquet.ParquetWriter(self._sink, self._schema, compression=codec)
        self._group: list[dict[str, Any]] = []
        self._characters = 0

    def write(self, rows: Iterable[Row]) -> bytes:
        for row in rows:
            values = {name: _value(row[name], kind) for name, kind in self._columns.items()}
            self._group.append(values)
            self._characters += sum(len(v) for v in values.values() if isinstance(v, str))
            if len(self._group) >= GROUP_ROWS or self._characters >= GROUP_CHARACTERS:
                self._write_group()
        return self._sink.take()

    def finish(self) -> bytes:
        if self._group:
            self._write_group()
        self._writer.close()
        return self._sink.take()

    def _write_group(self) -> None:
        self._writer.write_table(self._arrow.Table.from_pylist(self._group, schema=self._schema))
        self._group, self._characters = [], 0


def _value(value: Any, kind: Kind) -> Any:
    if kind is Kind.TEXT:
        return value if isinstance(value, str) else None
    return to_json(value) if kind is Kind.JSON and value is not None else value


class _Sink(io.RawIOBase):
    """Keeps what is written until it is taken, and counts it."""

    def __init__(self) -> None:
        self._kept = bytearray()
        self._size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        size = len(data)
        self._kept += data
        self._size += size
        return size

    def tell(self) -> int:
        return self._size

    def take(self) -> bytes:
        data = bytes(self._kept)
        self._kept.clear()
        return data
