"""Roots and proofs are those of RFC 6962, and a wrong proof proves nothing."""

from __future__ import annotations

import hashlib

import pytest
from aics_tlog import verify_consistency
from hypothesis import given
from hypothesis import strategies as st

from jobs.tlog import merkle, tiles
from jobs.tlog.merkle import ProofError
from tests.unit.tlog import rfc6962

#: The leaves that Certificate Transparency's implementations test with, and the roots of 1 to 8 of them.
LEAVES = [
    bytes.fromhex(leaf)
    for leaf in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
HASHES = [hashlib.sha256(str(i).encode()).digest() for i in range(800)]

sizes = st.integers(1, len(HASHES))


def nodes_of(leaves: list[bytes]) -> merkle.Nodes:
    """Return the complete subtrees of a tree, from its tiles."""
    stored = tiles.append(0, leaves, lambda *_: b"")
    return tiles.nodes(lambda level, index: stored[level, index])


def test_the_roots_are_those_of_certificate_transparency() -> None:
    hashes = [merkle.leaf_hash(leaf) for leaf in LEAVES]
    roots = [merkle.root(n, nodes_of(hashes[:n])).hex() for n in range(1, 9)]
    assert roots == ROOTS
    assert merkle.root(0, nodes_of([])) == hashlib.sha256().digest()


@given(size=sizes, data=st.data())
def test_inclusion_proofs_are_those_of_the_rfc(size: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, size - 1))
    leaves, nodes = HASHES[:size], nodes_of(HASHES[:size])
    root, proof = merkle.root(size, nodes), merkle.inclusion_proof(index, size, nodes)
    assert (root, proof) == (rfc6962.mth(leaves), rfc6962.path(index, leaves))
    assert rfc6962.root_of_path(leaves[index], index, size, proof) == root
    merkle.verify_inclusion(leaves[index], index, size, proof, root)
    for leaf, number, count, hashes, head in (
        (HASHES[-1] if index != 799 else HASHES[0], index, size, proof, root),
        (leaves[index], index + 1, size, proof, root),
        (leaves[index], index, size, [*proof, root], root),
        (leaves[index], index, size, proof, leaves[index][::-1]),
        (leaves[index], size, size, proof, root),
        *([(leaves[index], index, size, proof[1:], root)] if proof else []),
    ):
        with pytest.raises(ProofError):
            merkle.verify_inclusion(leaf, number, count, hashes, head)


@given(size=sizes, data=st.data())
def test_consistency_proofs_are_those_of_the_rfc(size: int, data: st.DataObject) -> None:
    old = data.draw(st.integers(1, size))
    leaves, nodes = HASHES[:size], nodes_of(HASHES[:size])
    proof = merkle.consistency_proof(old, size, nodes)
    assert proof == rfc6962.proof(old, leaves)
    if old < size:
        roots = rfc6962.mth(leaves[:old]), rfc6962.mth(leaves)
        assert verify_consistency(old, size, *roots, proof)


def test_a_proof_proves_one_place_in_every_small_tree() -> None:
    """All shapes of the right edge, which random places of large trees seldom meet."""
    for size in range(1, 34):
        nodes = nodes_of(HASHES[:size])
        root = merkle.root(size, nodes)
        for index in range(size):
            proof = merkle.inclusion_proof(index, size, nodes)
            for claimed in range(size):
                try:
                    merkle.verify_inclusion(HASHES[index], claimed, size, proof, root)
                except ProofError:
                    assert claimed != index, (size, index)
                else:
                    assert claimed == index, (size, index, claimed)


def test_every_tree_is_consistent_with_the_empty_one() -> None:
    assert merkle.consistency_proof(0, 5, nodes_of(HASHES[:5])) == []


def test_proofs_of_what_a_tree_does_not_have_are_not_made() -> None:
    nodes = nodes_of(HASHES[:5])
    with pytest.raises(ValueError, match="no leaf 5"):
        merkle.inclusion_proof(5, 5, nodes)
    with pytest.raises(ValueError, match="no beginning"):
        merkle.consistency_proof(6, 5, nodes)
