"""Searches beside index jobs on one collection: no job that has succeeded is missed, none disturbs another."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import numpy as np

from tests.inline import InlineStack
from tests.integration.test_search_over_http import AHEAD, found, ids, own, ring, run

ROUNDS = 12


def test_each_of_two_writers_reads_its_own_writes_while_a_third_searches(inline: InlineStack) -> None:
    name = own(inline, *ring(50))
    done = Event()

    def write(writer: int) -> dict[str, list[float]]:
        random = np.random.default_rng(writer)
        live: dict[str, list[float]] = {}
        for number in range(ROUNDS):
            item, vector = f"w{writer}-{number % 7}", [*random.standard_normal(2).tolist(), 5.0 + number, -9.0 * writer]
            run(inline, "index", {"collection": name, "items": [{"id": item, "vector": vector}]})
            live[item] = vector
            hits = found(inline, name, {"vector": vector}, {"id": item}, k=1)
            assert [one[0]["score"] for one in hits] == [1.0, 1.0], (item, hits)
            if number % 4 == 3:
                run(inline, "index", {"collection": name, "operation": "delete", "ids": [item]})
                del live[item]
                assert item not in ids(inline, name, {"vector": vector}, k=1000)
        return live

    def search() -> int:
        searches = 0
        while not done.is_set():
            job = run(inline, "search", {"collection": name, "queries": [AHEAD] * 5, "k": 3})
            assert [[hit["id"] for hit in one["hits"]] for one in job["result"]["results"]] == [["i0", "i1", "i2"]] * 5
            searches += 1
        return searches

    with ThreadPoolExecutor(3) as pool:
        searching = pool.submit(search)
        try:
            live: dict[str, Any] = {}
            for writer in [pool.submit(write, writer) for writer in (1, 2)]:
                live |= writer.result(timeout=120)
        finally:
            done.set()
        assert searching.result(timeout=60) > 0
    expected = {*live, *(f"i{n}" for n in range(50))}
    assert set(ids(inline, name, AHEAD, k=1000)) == expected
    assert inline.client.collection(name)["count"] == len(expected)
