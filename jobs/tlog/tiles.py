"""The tree as tiles (c2sp.org/tlog-tiles): 256 hashes of one level each, and paths of them.

A tile of level 0 has leaf hashes; the hashes of a tile of level L + 1 are the roots of full tiles of level L.
Tiles only grow, so a partial tile is the beginning of the full one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from jobs.tlog.merkle import HASH_SIZE, Nodes, complete_root

#: The height of a tile, and its width in hashes.
HEIGHT = 8
WIDTH = 1 << HEIGHT
MAX_LEVEL = 63
#: Leaves of tiles beyond it have no 64-bit index.
MAX_INDEX = (1 << 55) - 1

_PATH = re.compile(r"((?:x\d{3}/)*\d{3})(?:\.p/([1-9]\d{0,2}))?")

#: Maps (level, index) to the hashes of a tile, as many as there are.
ReadTile = Callable[[int, int], bytes]


class Tile(NamedTuple):
    """The number of a tile in its level, and how many of its hashes are meant."""

    number: int
    width: int = WIDTH

    @property
    def path(self) -> str:
        """The tile's path below that of its level."""
        digits = str(self.number)
        digits = digits.zfill(-(-len(digits) // 3) * 3)
        groups = [digits[i : i + 3] for i in range(0, len(digits), 3)]
        path = "/".join([*(f"x{group}" for group in groups[:-1]), groups[-1]])
        return path if self.width == WIDTH else f"{path}.p/{self.width}"


def parse_path(path: str) -> Tile | None:
    """Return the tile of a path below that of its level; None if it is none."""
    match = _PATH.fullmatch(path)
    if match is None or not path.isascii():
        return None
    tile = Tile(int(re.sub(r"[x/]", "", match[1])), int(match[2] or WIDTH))
    # Of several spellings, one is right.
    known = tile.number <= MAX_INDEX and tile.width <= WIDTH
    return tile if known and tile.path == path else None


def parse_level(text: str) -> int | None:
    """Return the level that a part of a path names; None if it is none."""
    if not re.fullmatch(r"0|[1-9]\d?", text, re.ASCII) or int(text) > MAX_LEVEL:
        return None
    return int(text)


def split(tile: bytes) -> list[bytes]:
    """Return the hashes of a tile."""
    return [tile[i : i + HASH_SIZE] for i in range(0, len(tile), HASH_SIZE)]


def nodes(read: ReadTile) -> Nodes:
    """Return the complete subtrees of a tree of tiles. Each tile is read once."""
    cache: dict[tuple[int, int], bytes] = {}

    def node(height: int, index: int) -> bytes:
        level, inner = divmod(height, HEIGHT)
        number, offset = divmod(index << inner, WIDTH)
        if (level, number) not in cache:
            cache[level, number] = read(level, number)
        hashes = split(cache[level, number])[offset : offset + (1 << inner)]
        if len(hashes) != 1 << inner or len(hashes[-1]) != HASH_SIZE:
            raise LookupError(f"tile {number} of level {level} is too short")
        return complete_root(hashes)

    return node


def append(size: int, leaves: Sequence[bytes], read: ReadTile) -> dict[tuple[int, int], bytes]:
    """Append leaves to a tree of tiles.

    Args:
        size: of the tree before.
        leaves: the hashes of the new leaves.
        read: returns the partial tiles at the tree's right edge. No other is read.

    Returns:
        the tiles that changed, by level and index.
    """
    changed: dict[tuple[int, int], bytes] = {}
    level, start, added = 0, size, list(leaves)
    while added:
        roots = []
        first, offset = divmod(start, WIDTH)
        data = read(level, first) if offset else b""
        if len(data) != offset * HASH_SIZE:
            raise LookupError(f"tile {first} of level {level} does not have {offset} hashes")
        for number, hashes in _chunks(first, split(data) + added):
            changed[level, number] = b"".join(hashes)
            if len(hashes) == WIDTH:
                roots.append(complete_root(hashes))
        level, start, added = level + 1, start // WIDTH, roots
    return changed


def bundle(entries: Iterable[bytes]) -> bytes:
    """Return an entry bundle: each entry after its length as a big-endian uint16."""
    return b"".join(len(entry).to_bytes(2) + entry for entry in entries)


def _chunks(first: int, hashes: list[bytes]) -> Iterator[tuple[int, list[bytes]]]:
    for start in range(0, len(hashes), WIDTH):
        yield first + start // WIDTH, hashes[start : start + WIDTH]
