"""RFC 6962 word for word, and a check of proofs made from it: slow, and independent of `jobs.tlog`."""

from __future__ import annotations

import hashlib


def mth(leaves: list[bytes]) -> bytes:
    """Return the Merkle Tree Hash (section 2.1) over leaf hashes."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    k = split(len(leaves))
    return hashlib.sha256(b"\x01" + mth(leaves[:k]) + mth(leaves[k:])).digest()


def path(m: int, leaves: list[bytes]) -> list[bytes]:
    """Return the audit path of a leaf (section 2.1.1)."""
    if len(leaves) == 1:
        return []
    k = split(len(leaves))
    if m < k:
        return [*path(m, leaves[:k]), mth(leaves[k:])]
    return [*path(m - k, leaves[k:]), mth(leaves[:k])]


def proof(m: int, leaves: list[bytes], known: bool = True) -> list[bytes]:
    """Return the consistency proof of the first m leaves (section 2.1.2)."""
    if m == len(leaves):
        return [] if known else [mth(leaves)]
    k = split(len(leaves))
    if m <= k:
        return [*proof(m, leaves[:k], known), mth(leaves[k:])]
    return [*proof(m - k, leaves[k:], False), mth(leaves[:k])]


def root_of_path(leaf: bytes, m: int, size: int, path: list[bytes]) -> bytes:
    """Return the root that a leaf's audit path leads to, by the definition of the path."""
    if size == 1:
        assert not path
        return leaf
    k = split(size)
    *below, top = path
    if m < k:
        return hashlib.sha256(b"\x01" + root_of_path(leaf, m, k, below) + top).digest()
    return hashlib.sha256(b"\x01" + top + root_of_path(leaf, m - k, size - k, below)).digest()


def split(n: int) -> int:
    """Return the largest power of two smaller than n."""
    k = 1
    while 2 * k < n:
        k *= 2
    return k
