"""Snapshots whose builder dies, whose disk is full, whose file is damaged."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping

import numpy as np

from revln.blobs import BlobStore
from revln.db.collections.collections import Collection
from tests.chaos.experiment import experiment
from tests.chaos.lab import Lab
from tests.chaos.nursery import FULL, OWNER, Nursery, nursery
from tests.collections import Contents, build, clustered, make_collection, read, recall, write
from worker.index.cache import IndexCache

__all__: list[str] = []

DIM = 16
STEPS = ["begun", "read", "train", "add", "measure", "write", "flush", "publish", "publishing", "published"]


@experiment(
    13,
    "a snapshot on a full disk; its builder killed at each step; its file damaged",
    stack=False,
    short={"full": 3, "flips": 20, "cuts": 10},
)
def snapshots(lab: Lab, *, rows: int = 400, full: int = 20, flips: int = 200, cuts: int = 50) -> None:
    place = lab.folder / "blobs"
    blobs = lab.blobs = BlobStore(str(place))
    contents: Contents = {f"i{n}": row for n, row in enumerate(clustered(rows, DIM, lab.random.randrange(10**6)))}
    c = make_collection(lab.db, DIM)
    write(lab.db, c, dict(contents))
    size = build(lab.db, blobs, c, "hnsw").size_bytes
    first = build(lab.db, blobs, c, "flat").id
    with nursery(lab.database_url, place) as run:
        _fill(lab, run, first, [lab.random.randrange(4_096, size) for _ in range(full)])
        _look(lab, blobs, contents, 1.0, "after the full disk")
        _kill(lab, run, blobs, c, contents)
        _damage(lab, run, flips, cuts)
    _look(lab, blobs, contents, 0.95, "at the end")


def _fill(lab: Lab, run: Nursery, current: str, sizes: list[int]) -> None:
    ends = [run(f"fill {size}")[0] for size in sizes]
    lab.figures["full disks noticed"] = f"{ends.count(FULL)} of {len(sizes)}"
    lab.expect(set(ends) <= {FULL}, f"builders on a full disk ended with {ends}")
    lab.expect(read(lab.db).snapshot_id == current, "a full disk moved the pointer")


def _kill(lab: Lab, run: Nursery, blobs: BlobStore, c: Collection, contents: Contents) -> None:
    before = read(lab.db).snapshot_id
    for number, step in enumerate(STEPS):
        ended = run(f"build {step}")
        lab.expect(ended == [-signal.SIGKILL], f"the builder to be killed at {step!r} ended with {ended}")
        new = clustered(1, DIM, 100_000 + number)[0]
        _change(lab, c, contents, {f"i{number}": None, f"late-{number}": new})
        published = step == "published"
        moved = read(lab.db).snapshot_id != before
        lab.expect(moved is published, f"killed at {step!r}, the pointer moved: {moved}")
        _look(lab, blobs, contents, 0.95 if published else 1.0, f"killed at {step!r}")
    second = build(lab.db, blobs, c, "hnsw", owner=OWNER)  # whoever was killed is not in its way
    lab.expect(read(lab.db).snapshot_id == second.id, "nobody can build after those that were killed")
    lab.figures["killed at"] = f"{len(STEPS)} steps"


def _damage(lab: Lab, run: Nursery, flips: int, cuts: int) -> None:
    told = lab.folder / "damage.json"
    ended = run(f"damage {lab.random.randrange(10**6)} {flips} {cuts} {told}")
    lab.expect(ended == [0], f"whoever loaded damaged files ended with {ended}: not detected")
    if ended != [0]:
        return
    seen = json.loads(told.read_text())
    lab.figures |= {"detected": f"{seen['detected']} of {flips + cuts}", "wrong answers": seen["wrong"]}
    lab.expect(seen["detected"] == flips + cuts, f"{flips + cuts - seen['detected']} damaged files were not detected")
    lab.expect(not seen["wrong"], f"{seen['wrong']} damaged files answered wrongly")


def _change(lab: Lab, c: Collection, contents: Contents, changes: Mapping[str, np.ndarray | None]) -> None:
    write(lab.db, c, dict(changes))
    for name, row in changes.items():
        contents.pop(name, None)
        if row is not None:
            contents[name] = row


def _look(lab: Lab, blobs: BlobStore, contents: Contents, least: float, when: str) -> None:
    """What a worker that comes now finds, beside brute force."""
    cache = IndexCache(lab.db, blobs)
    index = cache.caught_up(read(lab.db))
    lab.expect(len(index) == len(contents), f"{when}: {len(index)} items, not {len(contents)}")
    found = recall(lab.db, read(lab.db), index, contents)
    lab.expect(found >= least, f"{when}: recall {found:.2f}, at least {least}")
    cache.close()
