"""Prove that the experiments see: take a mechanism out of a copy of the tree, and an experiment must fail for it.

``python -m tests.chaos.mutants``. First each experiment passes in the copy as it is, at the sizes used here; then each
mutant must make its experiments fail, and with the words that belong to it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["MUTANTS", "Cut", "Mutant", "apply"]

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Cut:
    """What stands once in a file, and what stands there in the mutant."""

    path: str
    was: str
    becomes: str


@dataclass(frozen=True)
class Mutant:
    name: str
    cuts: tuple[Cut, ...]
    seen_by: tuple[int, ...]
    says: tuple[str, ...]  # one of them in one of the faults


MUTANTS = [
    Mutant(
        "without the fencing clause",
        (
            Cut(
                "revln/db/jobs/chunks.py",
                "return and_(is_chunk(job_id, number), columns.attempt == attempt, columns.state == state)",
                "return and_(is_chunk(job_id, number), columns.state == state)",
            ),
        ),
        (7, 18),
        ("its result was written by attempt 1", "a late write was not refused"),
    ),
    Mutant(
        "without the sweeper",
        (Cut("worker/upkeep/sweeper.py", "self.recover, self.publish, look_for_orders", "look_for_orders"),),
        (2, 3),
        ("for ever",),
    ),
    Mutant(
        "without sha256",
        (
            Cut(
                "revln/blobs/store.py",
                "            if digest.hexdigest() == sha256:\n                checked.seek(0)",
                "            if True:\n                checked.seek(0)",
            ),
            Cut("worker/index/load.py", "if digest.hexdigest() != snapshot.sha256:", "if False:"),
        ),
        (13,),
        ("not detected",),
    ),
]

# Enough to be seen, and no more: what never comes true is waited for.
_SIZES = (
    "2.jobs=150",
    "2.kills=3",
    "3.jobs=80",
    "3.kills=1",
    "3.queued=60",
    "7.rounds=1",
    "13.full=2",
    "13.flips=60",
    "18.examples=60",
    "18.shrink=0",
)
_PATIENCE_S = 100


def apply(mutant: Mutant, root: Path) -> None:
    """Raises ValueError where the product has changed: then the mutant has to follow."""
    for cut in mutant.cuts:
        path = root / cut.path
        text = path.read_text()
        if text.count(cut.was) != 1:
            raise ValueError(f"{mutant.name}: {cut.was!r} stands {text.count(cut.was)} times in {cut.path}, not once")
        path.write_text(text.replace(cut.was, cut.becomes))


@contextmanager
def _copy() -> Iterator[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout.decode()
    with tempfile.TemporaryDirectory(prefix="revln-mutant-") as folder:
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).is_file():
                target = Path(folder) / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, target)
        yield Path(folder)


def _run(root: Path, numbers: tuple[int, ...]) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "tests.chaos", "--json", "--seed", "1", "--database", "sqlite"]
    command += ["--only", ",".join(map(str, numbers)), "--patience", str(_PATIENCE_S)]
    for size in _SIZES:
        command += ["--set", size]
    env = {**os.environ, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    where = subprocess.run(
        [sys.executable, "-c", "import revln; print(revln.__file__)"],
        cwd=root,
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    assert where.stdout.startswith(str(root)), f"the copy in {root} would not be what runs, but {where.stdout}"
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=False)
    outcomes = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["number"] for one in outcomes] == sorted(numbers), done.stderr[-2_000:]
    return outcomes


def _report(name: str, outcome: dict[str, Any], good: bool, verdict: str) -> None:
    word = "PASS" if good else "FAIL"
    print(f"{word} {name}: experiment {outcome['number']} {verdict} [{outcome['seconds']:.0f} s]", flush=True)
    for fault in outcome["faults"][:3]:
        print(f"        {fault}", flush=True)
    if outcome["folder"]:
        shutil.rmtree(outcome["folder"], ignore_errors=True)


def main() -> int:
    failed = 0
    with _copy() as root:
        for outcome in _run(root, tuple(sorted({number for one in MUTANTS for number in one.seen_by}))):
            failed += not outcome["passed"]
            _report("as it is", outcome, outcome["passed"], "passes" if outcome["passed"] else "FAILS")
    for mutant in MUTANTS:
        with _copy() as root:
            apply(mutant, root)
            for outcome in _run(root, mutant.seen_by):
                seen = not outcome["passed"] and any(
                    word in fault for word in mutant.says for fault in outcome["faults"]
                )
                failed += not seen
                _report(mutant.name, outcome, seen, "fails" if seen else "does not see it")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
