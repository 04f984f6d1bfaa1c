"""Lines of a file that is read in pieces."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from jobs.jsonl import read_lines


def reader(content: bytes, piece: int) -> Callable[[int], bytes]:
    return lambda position: content[position : position + piece]


@given(st.lists(st.binary(max_size=12).map(lambda b: b.replace(b"\n", b""))), st.integers(1, 9))
def test_lines_are_whole_wherever_pieces_end(lines: list[bytes], piece: int) -> None:
    content = b"\n".join(lines)
    expected = content.split(b"\n")
    if expected[-1] == b"":  # a last line without anything in it is none
        expected.pop()
    found = list(read_lines(reader(content, piece), 0, max_length=12))
    assert [line.text for line in found] == expected
    for line in found:
        assert content[line.start : line.start + line.length] == line.text
        [again] = list(read_lines(reader(content, piece), line.start, max_length=12))[:1]
        assert again == line


def test_a_line_that_is_too_long_is_not_kept() -> None:
    content = b"short\n" + b"x" * 1000 + b"\nlast"
    found = list(read_lines(reader(content, 64), 0, max_length=10))
    assert [line.text for line in found] == [b"short", None, b"last"]
    assert [line.length for line in found] == [5, 1000, 4]
