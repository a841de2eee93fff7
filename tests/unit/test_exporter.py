"""An export takes the memory of a few pages, however many items there are."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow.parquet as pq
import pytest

from revln.client import RevlnClient
from revln.transfer.exporter import export_items
from tests.memory import COUNTED, begin_peak, peak_mb

PAGES, ITEMS, DIM = 100, 200, 256


class Answers:
    """What the API answers for a collection of 20,000 items, made page by page: 20 MB of vectors, 160 MB of texts."""

    def collection(self, name: str) -> dict[str, Any]:
        return {"name": name, "model": None, "model_fingerprint": "f", "dim": DIM, "metadata": {}}

    def item_pages(self, name: str, **_: Any) -> Iterator[list[dict[str, Any]]]:
        for page in range(PAGES):
            vectors = np.full((ITEMS, DIM), page, np.float32)
            yield [
                {
                    "id": f"{page:03}-{n:03}", "text": f"{name} {page} {n} " * 600, "image": None, "metadata": {"n": n},
                    "vector_b64": base64.b64encode(vectors[n]).decode(),
                }
                for n in range(ITEMS)
            ]  # fmt: skip


@pytest.mark.skipif(not COUNTED, reason="the kernel does not count a process's peak anew")
def test_an_export_takes_the_memory_of_a_few_pages(tmp_path: Path) -> None:
    client = cast(RevlnClient, Answers())
    export_items(client, "first", tmp_path / "first")  # what is imported and kept by the allocators
    before = begin_peak()
    assert export_items(client, "photos", tmp_path / "out") == PAGES * ITEMS
    assert peak_mb() - before < 60
    assert np.load(tmp_path / "out/vectors.npy", mmap_mode="r")[-1, 0] == PAGES - 1
    assert pq.read_metadata(tmp_path / "out/items.parquet").num_rows == PAGES * ITEMS
