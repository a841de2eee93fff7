"""The whole road, HTTP → SQL → Redis → Celery → worker → SQL → HTTP, beside the bare model or an empty task."""

from __future__ import annotations

import io
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench.figure import Figure, seconds
from revln import embedded_redis
from revln.client import RevlnClient
from revln.images import ImageLimits, decode_image
from revln.models.base import CaptionRequest, Operation
from revln.models.registry import BUILT_IN, ModelCatalog

__all__ = ["steps"]

SMALL_JOBS = 400
CLIENTS = 8
CAPTIONS = 96
TEXTS = 5_000
SUBMISSIONS = 200
EMPTY_TASKS = 1_500


def steps(url: str, images: int) -> Iterator[tuple[str, Callable[[], list[Figure]]]]:
    """Each step by name. Our figures and the bare ones are taken one after the other, never at the same time."""
    client = RevlnClient(url)
    model = ModelCatalog({}).load(BUILT_IN, "cpu")
    photographs = _photographs(images)
    # Already uploaded when the clock starts: uploading is the client's network, not the worker.
    with ThreadPoolExecutor(CLIENTS) as pool:
        shas = [found["sha256"] for found in pool.map(client.upload, photographs)]
    items = [{"image": {"sha256": sha}} for sha in shas]
    yield "embed pictures", lambda: [_embed_images(client, model, items, photographs)]
    yield "embed texts", lambda: [_embed_texts(client, model)]
    yield "caption", lambda: [_caption(client, model, items, photographs)]
    yield "small jobs", lambda: _small_jobs(client)
    yield "submission", lambda: _submission(client)


def _photographs(count: int) -> list[bytes]:
    """JPEGs of 640 × 480 that all differ, with the statistics of smooth pictures rather than of noise."""
    random = np.random.default_rng(0)
    pictures = []
    for _ in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        out = io.BytesIO()
        coarse.resize((640, 480), Image.Resampling.BICUBIC).save(out, "JPEG", quality=85)
        pictures.append(out.getvalue())
    return pictures


def _run(client: RevlnClient, kind: str, body: dict[str, Any]) -> float:
    """Seconds from submitting a job to knowing that it is done."""

    def work() -> None:
        job = client.wait(client.submit(kind, body)["id"], timeout_s=900)
        assert job["status"] == "succeeded", job
        assert not job["counts"]["failed"], job

    return seconds(work)


def _bare(model: Any, operation: Operation, prepare: Callable[[Any], Any], items: list[Any]) -> float:
    """The model alone, one thread: prepare, batch, forward, finish."""

    def work() -> None:
        size = model.max_batch(operation)
        for start in range(0, len(items), size):
            prepared = [model.prepare(operation, prepare(item)) for item in items[start : start + size]]
            for raw in model.forward(operation, prepared):
                model.finish(operation, raw)

    work_on_few = items[:8]
    for item in work_on_few:
        model.prepare(operation, prepare(item))
    return seconds(work)


def _decode(model: Any) -> Callable[[bytes], Image.Image]:
    limits = ImageLimits()
    return lambda data: decode_image(data, limits, target_side=model.info.image_size)


def _embed_images(client: RevlnClient, model: Any, items: list[Any], photographs: list[bytes]) -> Figure:
    bare_s = _bare(model, Operation.EMBED_IMAGE, _decode(model), photographs)
    ours_s = _run(client, "embed", {"items": items})
    count = len(items)
    return Figure(f"embed {count} JPEGs of 640×480", count / ours_s, "items/s", count / bare_s, "bare model, 1 thread")


def _embed_texts(client: RevlnClient, model: Any) -> Figure:
    texts = [f"a picture of {n} dogs and {n * 7 % 13} cats on a hill" for n in range(TEXTS)]
    bare_s = _bare(model, Operation.EMBED_TEXT, lambda text: text, texts)
    ours_s = _run(client, "embed", {"items": [{"text": text} for text in texts]})
    return Figure(f"embed {TEXTS} texts", TEXTS / ours_s, "items/s", TEXTS / bare_s, "bare model, 1 thread")


def _caption(client: RevlnClient, model: Any, items: list[Any], photographs: list[bytes]) -> Figure:
    decode = _decode(model)
    some = min(CAPTIONS, len(items))
    bare_s = _bare(model, Operation.CAPTION, lambda data: CaptionRequest(decode(data)), photographs[:some])
    ours_s = _run(client, "caption", {"items": items[:some]})
    return Figure(f"caption {some} JPEGs, beam 3", some / ours_s, "items/s", some / bare_s, "bare model, 1 thread")


def _small_jobs(client: RevlnClient) -> list[Figure]:
    """Jobs of one text that is known already: nothing but the road itself."""
    body = {"items": [{"text": "always the same"}]}
    _run(client, "embed", body)

    def one(_: int) -> float:
        return seconds(lambda: client.submit("embed", body, wait_s=30, priority="interactive"))

    with ThreadPoolExecutor(CLIENTS) as pool:
        started = time.perf_counter()
        list(pool.map(one, range(SMALL_JOBS)))
        ours = SMALL_JOBS / (time.perf_counter() - started)
    alone = statistics.median(one(n) for n in range(30))
    return [
        Figure(f"jobs of one item, {CLIENTS} clients", ours, "jobs/s", _empty_tasks_per_s(), "empty Celery tasks"),
        Figure("one job of one item, submitted and answered", 1000 * alone, "ms"),
    ]


def _empty_tasks_per_s() -> float:
    """Plain Celery of this version, threads pool, a Redis of its own: publish, then drain."""
    with tempfile.TemporaryDirectory() as folder:
        server = embedded_redis.prepare(Path(folder))
        redis = subprocess.Popen(list(server.command), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while embedded_redis.ping(server.url):
                time.sleep(0.02)
            out = subprocess.run(
                [sys.executable, "-m", "bench.empty_tasks", server.url, str(EMPTY_TASKS)],
                capture_output=True, text=True, check=True, timeout=120,
            )  # fmt: skip
            return float(out.stdout.split()[0])
        finally:
            redis.terminate()
            redis.wait()


def _submission(client: RevlnClient) -> list[Figure]:
    """How long an answer 202 takes while the worker is busy with a large job."""
    busy = client.submit("embed", {"items": [{"text": f"busy {n}"} for n in range(10_000)]}, priority="bulk")
    taken: list[float] = []
    lock = threading.Lock()

    def one(n: int) -> None:
        spent = seconds(lambda: client.submit("embed", {"items": [{"text": f"t{n}"}]}))
        with lock:
            taken.append(1000 * spent)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(one, range(SUBMISSIONS)))
    client.cancel(busy["id"])
    taken.sort()
    return [
        Figure("submission under load, median", statistics.median(taken), "ms"),
        Figure("submission under load, p99", taken[int(len(taken) * 0.99)], "ms"),
    ]
