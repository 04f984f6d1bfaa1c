"""Tiles are those of the specification, whatever the steps in which a tree grows."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.tlog import merkle, tiles
from jobs.tlog.tiles import Tile
from tests.unit.tlog import rfc6962

HASHES = [hashlib.sha256(str(i).encode()).digest() for i in range(70_000)]


def grow(steps: list[int]) -> dict[tuple[int, int], bytes]:
    """Return the tiles of a tree that grew in steps."""
    stored: dict[tuple[int, int], bytes] = {}
    size = 0

    def read(level: int, index: int) -> bytes:
        return stored[level, index]

    for step in steps:
        stored.update(tiles.append(size, HASHES[size : size + step], read))
        size += step
    return stored


@pytest.mark.parametrize(
    ("index", "path"),
    [(0, "000"), (7, "007"), (999, "999"), (1000, "x001/000"), (1234067, "x001/x234/067")],
)
def test_paths_are_those_of_the_specification(index: int, path: str) -> None:
    assert Tile(index).path == path
    assert Tile(index, 112).path == f"{path}.p/112"
    assert tiles.parse_path(path) == Tile(index)
    assert tiles.parse_path(f"{path}.p/112") == Tile(index, 112)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "0",
        "0000",
        "x000/001",
        "001/002",
        "000.p/0",
        "000.p/256",
        "000.p/01",
        "000.p/999",
        "٠٠٠",
        "x036/x028/x797/x018/x963/968",
    ],
)
def test_other_paths_name_no_tile(path: str) -> None:
    assert tiles.parse_path(path) is None


def test_levels_are_numbers_up_to_63() -> None:
    assert [tiles.parse_level(text) for text in ("0", "7", "63")] == [0, 7, 63]
    assert {tiles.parse_level(text) for text in ("64", "00", "01", "-1", "", "x", "٧")} == {None}


def test_a_tree_of_70000_has_the_tiles_of_the_example() -> None:
    stored = grow([70_000])
    levels = [sorted(index for level, index in stored if level == wanted) for wanted in range(4)]
    assert levels == [list(range(274)), [0, 1], [0], []]
    widths = {key: len(tile) // 32 for key, tile in stored.items()}
    assert (widths[0, 272], widths[0, 273], widths[1, 0], widths[1, 1], widths[2, 0]) == (
        256,
        112,
        256,
        17,
        1,
    )
    nodes = tiles.nodes(lambda *key: stored[key])
    assert merkle.root(70_000, nodes) == rfc6962.mth(HASHES)
    assert stored[1, 0][:32] == rfc6962.mth(HASHES[:256])
    assert stored[2, 0] == rfc6962.mth(HASHES[:65_536])


@settings(deadline=None)
@given(steps=st.lists(st.integers(0, 600), max_size=6))
def test_tiles_do_not_depend_on_the_steps(steps: list[int]) -> None:
    assert grow(steps) == grow([sum(steps)])


def test_a_tree_does_not_grow_on_tiles_that_are_too_short() -> None:
    stored = grow([5])
    with pytest.raises(LookupError):
        tiles.append(6, HASHES[6:7], lambda *key: stored[key])
    with pytest.raises(LookupError):
        merkle.root(6, tiles.nodes(lambda *key: stored[key]))
    with pytest.raises(LookupError):  # The last hash is cut.
        merkle.root(5, tiles.nodes(lambda *key: stored[key][:-1]))


def test_a_bundle_has_the_length_before_each_entry() -> None:
    assert tiles.bundle([b"ab", b"", b"c" * 300]) == b"\0\2ab" + b"\0\0" + b"\1\x2c" + b"c" * 300
