"""An export takes the memory of a few pages, however many items there are."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow.parquet as pq
import pytest

from revln.client import RevlnClient
from revln.transfer.exporter import export_items
from tests.fakes import ManyItems
from tests.memory import COUNTED, begin_peak, peak_mb


def grown_mb(folder: Path) -> float:
    client = cast(RevlnClient, ManyItems())
    export_items(client, "first", folder / "first")  # what is imported and kept by the allocators
    before = begin_peak()
    assert export_items(client, "photos", folder / "out") == ManyItems.COUNT
    return peak_mb() - before


@pytest.mark.skipif(not COUNTED, reason="the kernel does not count a process's peak anew")
def test_an_export_takes_the_memory_of_a_few_pages(tmp_path: Path) -> None:
    # In a process of its own: what other tests left behind in this one grows by itself.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert pool.submit(grown_mb, tmp_path).result() < 60
    assert np.load(tmp_path / "out/vectors.npy", mmap_mode="r")[-1, 0] == 99
    assert pq.read_metadata(tmp_path / "out/items.parquet").num_rows == ManyItems.COUNT
