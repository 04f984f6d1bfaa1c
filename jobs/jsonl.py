"""Lines of a stored file, read a piece at a time: memory stays the same however long the file is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple


class Line(NamedTuple):
    """A line of a file."""

    #: Where it begins, in bytes.
    start: int
    #: Its length, without its end.
    length: int
    #: None if it is longer than the maximum.
    text: bytes | None
    #: Where the next line begins.
    end: int


def read_lines(read: Callable[[int], bytes], start: int, *, max_length: int) -> Iterator[Line]:
    """Yield the lines of a file, empty ones too. The last one need not have an end.

    Args:
        read: returns some of the file's content from a position on; empty at its end.
        start: where the first line begins, in bytes.
        max_length: of a line whose text is kept, in bytes.
    """
    #: What was read and not yielded: the beginning of a line, and its length if it is not kept.
    kept, length = bytearray(), 0
    position = start
    while data := read(position):
        position += len(data)
        begin = 0
        while (newline := data.find(b"\n", begin)) >= 0:
            length += newline - begin
            if length <= max_length:
                kept += data[begin:newline]
            end = start + length + 1
            yield Line(start, length, bytes(kept) if length <= max_length else None, end)
            start, length, begin = end, 0, newline + 1
            kept.clear()
        length += len(data) - begin
        if length <= max_length:
            kept += data[begin:]
        else:
            kept.clear()
    if length:
        text = bytes(kept) if length <= max_length else None
        yield Line(start, length, text, start + length)


def find_line(read: Callable[[int], bytes], needle: bytes) -> tuple[int, int] | None:
    """Return where the first line with some bytes begins and ends in a file, without its end.

    Args:
        read: returns some of the file's content from a position on; empty at its end.
        needle: the bytes, none of them a newline.

    Returns:
        None if there is no such line.
    """
    position = start = 0
    kept = b""
    while data := read(position):
        position += len(data)
        kept += data
        at = kept.find(needle)
        if at >= 0:
            while kept.find(b"\n", at) < 0 and (data := read(position)):
                position += len(data)
                kept += data
            end = kept.find(b"\n", at)
            return start + kept.rfind(b"\n", 0, at) + 1, start + (end if end >= 0 else len(kept))
        whole = kept.rfind(b"\n") + 1
        start, kept = start + whole, kept[whole:]
    return None
