"""The Merkle tree of RFC 6962 (section 2.1), with SHA-256: roots, inclusion and consistency proofs.

A tree is known by the hashes of its *complete subtrees*: a `Nodes` function returns the hash of the subtree of
height ``h`` that begins at leaf ``i * 2**h``. Roots and proofs are made of a few of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

#: Bytes of a hash.
HASH_SIZE = 32
#: The root of the tree without leaves.
EMPTY_ROOT = hashlib.sha256(b"").digest()

#: Maps (height, index) to the hash of a complete subtree.
Nodes = Callable[[int, int], bytes]


class ProofError(ValueError):
    """A proof does not prove what it should."""


def leaf_hash(entry: bytes) -> bytes:
    """Return the hash of a leaf."""
    return hashlib.sha256(b"\0" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of the parent of two nodes."""
    return hashlib.sha256(b"\1" + left + right).digest()


def complete_root(hashes: Sequence[bytes]) -> bytes:
    """Return the root over nodes whose number is a power of two."""
    while len(hashes) > 1:
        hashes = [node_hash(*pair) for pair in zip(hashes[::2], hashes[1::2], strict=True)]
    return hashes[0]


def root(size: int, nodes: Nodes) -> bytes:
    """Return the root of a tree with ``size`` leaves."""
    return _range_hash(0, size, nodes) if size else EMPTY_ROOT


def inclusion_proof(index: int, size: int, nodes: Nodes) -> list[bytes]:
    """Return the proof that the leaf ``index`` is in the tree with ``size`` leaves, from its sibling up.

    Raises:
        ValueError: the tree has no such leaf.
    """
    if not 0 <= index < size:
        raise ValueError(f"a tree with {size} leaves has no leaf {index}")
    proof = []
    start, end = 0, size
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            proof.append(_range_hash(middle, end, nodes))
            end = middle
        else:
            proof.append(_range_hash(start, middle, nodes))
            start = middle
    return proof[::-1]


def consistency_proof(old_size: int, size: int, nodes: Nodes) -> list[bytes]:
    """Return the proof that the tree with ``old_size`` leaves is the beginning of that with ``size``.

    Raises:
        ValueError: the sizes are not in order.
    """
    if not 0 <= old_size <= size:
        raise ValueError(f"a tree with {old_size} leaves is no beginning of one with {size}")
    if old_size in (0, size):
        return []
    proof = []
    start, end = 0, size
    while end != old_size:
        middle = start + _split(end - start)
        if old_size <= middle:
            proof.append(_range_hash(middle, end, nodes))
            end = middle
        else:
            proof.append(_range_hash(start, middle, nodes))
            start = middle
    if start:  # Otherwise the verifier knows this hash: it is the old root.
        proof.append(_range_hash(start, end, nodes))
    return proof[::-1]


def verify_inclusion(
    leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes
) -> None:
    """Check an inclusion proof (RFC 9162, section 2.1.3.2).

    Args:
        leaf: the hash of the leaf.
        index: of the leaf.
        size: of the tree.
        proof: as `inclusion_proof` returns it.
        root: of the tree.

    Raises:
        ProofError: the proof is wrong.
    """
    if not 0 <= index < size:
        raise ProofError(f"a tree with {size} leaves has no leaf {index}")
    number, last, node = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            raise ProofError("the inclusion proof is too long")
        if number & 1 or number == last:
            node = node_hash(sibling, node)
            while not number & 1 and number:
                number, last = number >> 1, last >> 1
        else:
            node = node_hash(node, sibling)
        number, last = number >> 1, last >> 1
    if last or node != root:
        raise ProofError("the inclusion proof does not lead to the root of the tree")


def _split(size: int) -> int:
    """Return the largest power of two below ``size``: the leaves left of the root."""
    return 1 << (size - 1).bit_length() - 1


def _range_hash(start: int, end: int, nodes: Nodes) -> bytes:
    """Return the hash over the leaves from ``start`` on and before ``end``, a subtree of a tree."""
    size = end - start
    if size & (size - 1) == 0:
        return nodes(size.bit_length() - 1, start // size)
    middle = start + _split(size)
    return node_hash(_range_hash(start, middle, nodes), _range_hash(middle, end, nodes))
