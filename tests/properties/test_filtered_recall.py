"""A filter costs no recall, whatever it lets through and whichever index is searched; and scores are true cosines."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from revln.index.base import Base, IndexType
from revln.index.build import build
from revln.index.collection import CollectionIndex
from revln.index.duplicates import Groups, approximate_pairs
from revln.index.plan import make_plan
from tests.collections import clustered, nobody

ROWS, DIM, K = 8_000, 24, 10
VECTORS = clustered(ROWS, DIM, seed=11)
SEQS = np.arange(1, ROWS + 1)
QUERIES = clustered(60, DIM, seed=12)
TWINS = 300  # of the first rows, written again much later
VECTORS[-TWINS:] = VECTORS[:TWINS] + 0.01 * clustered(TWINS, DIM, seed=13)
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)


class Rows:
    """The source of a build: all rows, as a log would give them."""

    dim, seq, seqs = DIM, ROWS, SEQS

    def read(self, seqs: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        return seqs, VECTORS[seqs - 1]

    def stream(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        for at in range(0, ROWS, 3_000):
            yield SEQS[at : at + 3_000], VECTORS[at : at + 3_000]


@pytest.fixture(scope="module", params=list(IndexType))
def index(request: pytest.FixtureRequest) -> Iterator[CollectionIndex]:
    plan = make_plan(request.param, ROWS, DIM, flat_rows=1_000, memory_bytes=2**30)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("revln.index.build._MEASURE_S", 0.01)
        built = build(Rows(), plan, 0.95, nobody)
    if request.param is IndexType.FLAT:
        yield CollectionIndex.of_flat(built.index, built.seq)
    else:
        yield CollectionIndex(DIM, Base(request.param, built.index, built.seq, built.breadth, Rows().read))


def exact(query: NDArray[np.float32], allowed: NDArray[np.int64]) -> list[int]:
    scores = VECTORS[allowed - 1] @ query
    found: list[int] = allowed[np.argsort(-scores, kind="stable")[:K]].tolist()
    return found


def chosen(share: float, spread: str) -> NDArray[np.int64]:
    """The rows that pass: anywhere, all on one side of the space, or the newest."""
    count = int(ROWS * share)
    if spread == "anywhere":
        return np.sort(np.random.default_rng(3).choice(SEQS, count, replace=False))
    if spread == "newest":
        return SEQS[-count:]
    return np.sort(SEQS[np.argsort(VECTORS[:, 0], kind="stable")[:count]])


@pytest.mark.parametrize("spread", ["anywhere", "one side", "newest"])
@pytest.mark.parametrize("share", [1.0, 0.5, 0.05, 0.005])
def test_recall_holds_at_every_selectivity(index: CollectionIndex, share: float, spread: str) -> None:
    allowed = chosen(share, spread)
    passes = set(allowed.tolist())
    hits = index.search(QUERIES, K, allowed=None if share == 1 else allowed)
    right = 0
    for query, found in zip(QUERIES, hits, strict=True):
        assert len(found) == K
        assert {seq for seq, _ in found} <= passes
        scores = [score for _, score in found]
        assert scores == sorted(scores, reverse=True)
        assert scores == pytest.approx([float(VECTORS[seq - 1] @ query) for seq, _ in found], abs=2e-6)
        right += len({seq for seq, _ in found} & set(exact(query, allowed)))
    assert right / (K * len(QUERIES)) >= (0.95 if share > 0.005 else 1.0)


def test_a_batch_finds_what_its_queries_find_alone(index: CollectionIndex) -> None:
    together = index.search(QUERIES[:12], K, allowed=chosen(0.05, "anywhere"))
    assert together == [index.search(query[None], K, allowed=chosen(0.05, "anywhere"))[0] for query in QUERIES[:12]]


def test_near_duplicates_are_found_by_asking_the_index(index: CollectionIndex) -> None:
    groups = Groups(SEQS)
    for left, right in approximate_pairs(index, SEQS, 0.99, lambda: None):
        groups.join(left, right)
    found = [group.tolist() for group in groups.found()]
    expected = [[seq, ROWS - TWINS + seq] for seq in range(1, TWINS + 1)]
    assert not [group for group in found if group not in expected]
    assert len(found) >= 0.95 * TWINS
