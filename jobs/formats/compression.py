"""Compressing and decompressing a stream of bytes."""

from __future__ import annotations

import gzip
import importlib.util
import io
import zlib
from collections.abc import Iterator
from enum import StrEnum
from typing import IO, Any, Protocol, cast

from jobs.errors import UserError
from jobs.formats import extra

GZIP_MAGIC, ZSTD_MAGIC = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
#: Bytes that are read at once.
PIECE = 1 << 16
#: Bytes of zstd that are decompressed at once: a block of 4 bytes may become 128 KiB.
ZSTD_PIECE = 1 << 10
#: zlib's window size, and what makes it write the header of gzip.
GZIP_WINDOW = 16 + zlib.MAX_WBITS


class Compression(StrEnum):
    """How a file is compressed."""

    NONE = "none"
    GZIP = "gzip"
    ZSTD = "zstd"

    @property
    def available(self) -> bool:
        """Whether what it needs is installed."""
        return self is not Compression.ZSTD or importlib.util.find_spec("zstandard") is not None


class BrokenFileError(UserError):
    """A compressed file is not whole, or was changed."""


class Compressor(Protocol):
    """Compresses a stream."""

    def compress(self, data: bytes, /) -> bytes:
        """Take some bytes; return what is ready."""

    def flush(self) -> bytes:
        """Return the rest."""


class _Plain:
    def compress(self, data: bytes, /) -> bytes:
        return data

    def flush(self) -> bytes:
        return b""


def compressor(compression: Compression) -> Compressor:
    """Return a new compressor.

    Raises:
        NotInstalledError: its package is not installed.
    """
    if compression is Compression.GZIP:
        return zlib.compressobj(wbits=GZIP_WINDOW)
    if compression is Compression.ZSTD:
        zstandard = extra.load("zstandard", "zstd")
        # The checksum shows what was changed on the way.
        return cast("Compressor", zstandard.ZstdCompressor(write_checksum=True).compressobj())
    return _Plain()


def decompressed(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the content of a file a piece at a time, decompressed if it begins like gzip or zstd.

    Raises:
        BrokenFileError: it is not whole, or was changed.
        NotInstalledError: it is zstd, whose package is not installed.
    """
    raw: Any = file
    buffered = file if isinstance(file, io.BufferedReader) else io.BufferedReader(raw)
    start = buffered.peek(len(ZSTD_MAGIC))
    if start.startswith(GZIP_MAGIC):
        return _gunzip(buffered)
    if start.startswith(ZSTD_MAGIC):
        return _unzstd(buffered)
    return iter(lambda: buffered.read(PIECE), b"")


def _gunzip(file: IO[bytes]) -> Iterator[bytes]:
    try:
        with gzip.GzipFile(fileobj=file) as unzipped:
            while data := unzipped.read(PIECE):
                yield data
    except EOFError as error:
        raise BrokenFileError("the file ends early: it is gzip, and its end is missing") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise BrokenFileError(f"the file is not valid gzip: {error}") from error


def _unzstd(file: IO[bytes]) -> Iterator[bytes]:
    zstandard = extra.load("zstandard", "zstd")
    decompressor = zstandard.ZstdDecompressor()
    frame: Any = decompressor.decompressobj()
    try:
        while data := file.read(ZSTD_PIECE):
            while data:
                if frame.eof:
                    frame = decompressor.decompressobj()
                if plain := frame.decompress(data):
                    yield plain
                data = frame.unused_data if frame.eof else b""
    except zstandard.ZstdError as error:
        raise BrokenFileError(f"the file is not valid zstd: {error}") from error
    if not frame.eof:
        raise BrokenFileError("the file ends early: it is zstd, and its end is missing")
