"""Build an index of a collection, and measure it against exact search.

It learns from a sample, takes the rows in slices, and keeps no second copy of them. Some of the collection's own
vectors are held out of the sample; their true neighbours are found while the rows go by, and the index must find them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import faiss
import numpy as np
from numpy.typing import NDArray

from revln.errors import JobError
from revln.index.base import Base, Breadth, IndexType
from revln.index.flat import Found, best
from revln.index.plan import Plan

__all__ = ["Built", "Source", "build"]

Step = Callable[[str], None]

_HELD_OUT = 200
_RECALL_AT = 10
_SAMPLE_A_LIST = 24  # rows to learn each list's centre from: with 48 recall was no better (measured), at twice the time
_SAMPLE_ROWS = 300_000  # and no more than this: 300 MB of 256 dimensions
_PQ_SAMPLE_ROWS = 32_768
_ROUNDS = 8  # of k-means; the centres hardly move afterwards
_SLICE = 8_192  # rows between two looks at whether anybody still wants the index
_HNSW_SLICE = 1_024
_EF_CONSTRUCTION = 80
# Held-out rows are like those that are stored. A text that looks for pictures is not, and needs a wider search: so the
# narrowest are left out, which cost less than everything around a search.
_WIDTHS = {
    IndexType.HNSW: (32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024),
    IndexType.IVF: (8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512),
}
_RERANKS = (10, 25)
_MEASURE_S = 1.0


class Source(Protocol):
    """The live rows of a collection up to some row of its log.

    Attributes:
        seqs: ascending.
        seq: the row of the log up to which they are.
    """

    dim: int
    seq: int
    seqs: NDArray[np.int64]

    def read(self, seqs: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Vectors of some ascending seqs; those that are gone are left out."""

    def stream(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """All of them, in the order of the log."""


@dataclass(frozen=True, slots=True)
class Built:
    """An index (an `IndexIDMap`), and what it can do on this machine."""

    plan: Plan
    index: Any
    seq: int
    count: int
    breadth: Breadth
    recall: float  # recall@10, of held-out rows
    qps: float  # single queries a second, one after the other
    exact_qps: float
    seconds: float


def build(source: Source, plan: Plan, least_recall: float, step: Step) -> Built:
    """Train, add, measure. ``step`` is called with the step's name before every slice of work; what it raises ends it.

    Raises:
        JobError: no breadth reaches ``least_recall``.
    """
    started = time.perf_counter()
    random = np.random.default_rng(0)
    held = np.sort(random.choice(source.seqs, min(_HELD_OUT, len(source.seqs)), replace=False))
    step("train")
    inner = _trained(source, plan, held, random, step)
    index = faiss.IndexIDMap(inner)
    truth = _Truth(*source.read(held))
    size = _HNSW_SLICE if plan.kind is IndexType.HNSW else _SLICE
    for seqs, rows in source.stream():
        for at in range(0, len(seqs), size):
            step("add")
            index.add_with_ids(np.ascontiguousarray(rows[at : at + size]), seqs[at : at + size])
        truth.look(seqs, rows)
    step("measure")
    if plan.kind is IndexType.FLAT:
        qps = _qps(lambda query: inner.search(query, _RECALL_AT), truth.queries)
        return Built(plan, index, source.seq, index.ntotal, Breadth(0), 1.0, qps, qps, time.perf_counter() - started)
    base = Base(plan.kind, index, source.seq, Breadth(1), source.read)
    breadth, recall = _least_breadth(base, plan, truth, least_recall, step)
    base.breadth = breadth
    qps = _qps(lambda query: base.search(query, _RECALL_AT), truth.queries)
    exact = _qps(lambda query: base.search(query, _RECALL_AT, exact=True), truth.queries)
    return Built(plan, index, source.seq, index.ntotal, breadth, recall, qps, exact, time.perf_counter() - started)


def _trained(source: Source, plan: Plan, held: NDArray[np.int64], random: np.random.Generator, step: Step) -> Any:
    metric = faiss.METRIC_INNER_PRODUCT
    if plan.kind is IndexType.FLAT:
        return faiss.IndexFlatIP(plan.dim)
    if plan.kind is IndexType.HNSW:
        index: Any = faiss.IndexHNSWFlat(plan.dim, plan.links, metric)
        index.hnsw.efConstruction = _EF_CONSTRUCTION
        return index
    others = np.setdiff1d(source.seqs, held, assume_unique=True)
    others = others if len(others) >= plan.lists else source.seqs
    wanted = min(len(others), max(plan.lists * _SAMPLE_A_LIST, _PQ_SAMPLE_ROWS), max(_SAMPLE_ROWS, plan.lists))
    sample = _sample(source, np.sort(random.choice(others, wanted, replace=False)), step)
    quantizer = faiss.IndexFlatIP(plan.dim)
    quantizer.add(_centres(sample, plan.lists, random, step))
    step("train")
    if plan.kind is IndexType.IVF:
        index = faiss.IndexIVFFlat(quantizer, plan.dim, plan.lists, metric)
    else:
        index = faiss.IndexIVFPQ(quantizer, plan.dim, plan.lists, plan.code_bytes, 8, metric)
        index.pq.cp.niter = _ROUNDS
    index.train(sample[:_PQ_SAMPLE_ROWS])  # the lists have their centres; this is for the codes
    return index


def _sample(source: Source, seqs: NDArray[np.int64], step: Step) -> NDArray[np.float32]:
    """(M, D) in a random order."""
    sample = np.empty((len(seqs), source.dim), dtype=np.float32)
    filled = 0
    for at in range(0, len(seqs), _SLICE):
        step("train")
        _, rows = source.read(seqs[at : at + _SLICE])
        sample[filled : filled + len(rows)] = rows
        filled += len(rows)
    if not filled:
        raise JobError("The collection was deleted while its index was built.")
    sample = sample[:filled]
    np.random.default_rng(0).shuffle(sample)
    return sample


def _centres(sample: NDArray[np.float32], lists: int, random: np.random.Generator, step: Step) -> NDArray[np.float32]:
    """k-means on the unit sphere, (lists, D). faiss's own runs to its end whatever happens; this one can be stopped."""
    lists = min(lists, len(sample))
    centres = sample[random.choice(len(sample), lists, replace=False)]
    for _ in range(_ROUNDS):
        sums = np.zeros_like(centres)
        for at in range(0, len(sample), _SLICE):
            step("train")
            rows = sample[at : at + _SLICE]
            labels = faiss.knn(rows, centres, 1, metric=faiss.METRIC_INNER_PRODUCT)[1][:, 0]
            order = np.argsort(labels, kind="stable")
            present, first = np.unique(labels[order], return_index=True)
            sums[present] += np.add.reduceat(rows[order], first, axis=0)
        norms = np.linalg.norm(sums, axis=1, keepdims=True)
        empty = norms[:, 0] < 1e-6
        centres = np.where(empty[:, None], sample[random.choice(len(sample), lists)], sums / np.maximum(norms, 1e-6))
    return np.ascontiguousarray(centres, dtype=np.float32)


class _Truth:
    """The true nearest rows of the held-out ones, found while all rows go by."""

    def __init__(self, seqs: NDArray[np.int64], queries: NDArray[np.float32]) -> None:
        self.seqs, self.queries = seqs, np.ascontiguousarray(queries)
        self._scores = np.full((len(seqs), _RECALL_AT), -np.inf, dtype=np.float32)
        self._found = np.full((len(seqs), _RECALL_AT), -1, dtype=np.int64)

    def look(self, seqs: NDArray[np.int64], rows: NDArray[np.float32]) -> None:
        # One more, because a held-out row is its own nearest.
        wanted = min(_RECALL_AT + 1, len(seqs))
        scores, at = faiss.knn(self.queries, np.ascontiguousarray(rows), wanted, metric=faiss.METRIC_INNER_PRODUCT)
        scores = np.where(seqs[at] == self.seqs[:, None], -np.inf, scores).astype(np.float32)
        self._scores, self._found = best(
            np.concatenate([self._scores, scores], axis=1), np.concatenate([self._found, seqs[at]], axis=1), _RECALL_AT
        )

    def recall(self, found: Found) -> float:
        """The share of the ten true neighbours that were found; one that scores like the tenth is as good as it."""
        scores, seqs = found
        wanted = int((self._scores > -np.inf).sum())
        if not wanted:
            return 1.0
        good = (seqs >= 0) & (seqs != self.seqs[:, None]) & (scores >= self._scores[:, -1:] - 2e-6)
        return float(np.minimum(good.sum(axis=1), (self._scores > -np.inf).sum(axis=1)).sum() / wanted)


def _least_breadth(base: Base, plan: Plan, truth: _Truth, least_recall: float, step: Step) -> tuple[Breadth, float]:
    """The narrowest search that finds enough."""
    highest = 0.0
    for breadth in _breadths(plan):
        step("measure")
        base.breadth = breadth
        recall = truth.recall(base.search(truth.queries, _RECALL_AT + 1))
        if recall >= least_recall:
            return breadth, recall
        highest = max(highest, recall)
    raise JobError(
        f"{plan.factory} reaches recall@10 {highest:.3f} on {len(truth.seqs)} vectors of the collection; at least "
        f"{least_recall:.3f} is asked for (REVLN_INDEX_RECALL, or recall in the job). Nothing was changed. Ask for "
        "another type (hnsw, flat), or for less."
    )


def _breadths(plan: Plan) -> Iterator[Breadth]:
    if plan.kind is IndexType.HNSW:
        yield from (Breadth(width) for width in _WIDTHS[IndexType.HNSW])
        return
    widths = [width for width in _WIDTHS[IndexType.IVF] if width < plan.lists] + [plan.lists]
    if plan.kind is IndexType.IVF:
        yield from (Breadth(width) for width in widths)
        return
    for rerank in _RERANKS:
        yield from (Breadth(width, rerank) for width in widths)


def _qps(search: Callable[[NDArray[np.float32]], Any], queries: NDArray[np.float32]) -> float:
    """Single queries a second, for at most a second."""
    started, done = time.perf_counter(), 0
    for at in range(len(queries)):
        search(queries[at : at + 1])
        done += 1
        if time.perf_counter() - started > _MEASURE_S:
            break
    return done / max(time.perf_counter() - started, 1e-9)
