"""Run the experiments of docs/chaos.md: one line each, with what was seen, and PASS or FAIL.

Sizes are those of the table. ``--set`` changes them for whoever has such a size (``--set jobs=100``) or for one
experiment (``--set 1.jobs=100``); ``--list`` shows them.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from revln.db.migrate import upgrade
from revln.settings import Settings
from tests.chaos import catalog  # noqa: F401 - enters the experiments
from tests.chaos.experiment import EXPERIMENTS, Experiment
from tests.chaos.lab import Lab, LabStack
from tests.chaos.zygote import Zygote
from tests.databases import DATABASES, fresh_database, postgresql_server
from tests.stack import running

_MOST_FAULTS = 8  # of one experiment are printed


class _Machinery:
    """What several experiments share: the process that forks, the PostgreSQL server; each made when first wanted."""

    def __init__(self, parts: ExitStack) -> None:
        self._parts = parts

    @cached_property
    def zygote(self) -> Zygote:
        zygote = Zygote()
        self._parts.callback(zygote.close)
        return zygote

    @cached_property
    def postgresql_url(self) -> str:
        given = os.environ.get("TEST_POSTGRESQL_URL")
        return given or self._parts.enter_context(postgresql_server()).url

    @contextmanager
    def lab(self, one: Experiment, database: str, folder: Path, options: argparse.Namespace) -> Iterator[Lab]:
        seed = f"{options.seed} {one.number} {database}"
        with ExitStack() as parts:
            server = parts.enter_context(postgresql_server()) if one.own_server else None
            where = fresh_database(database, folder, lambda: server.url if server else self.postgresql_url)
            url = parts.enter_context(where)
            lab = Lab(folder, url, seed, patience_s=options.patience)
            lab.use(server=server)
            try:
                if one.stack:
                    settings = {"database_url": url, **one.settings}
                    with running(LabStack(folder, self.zygote, **settings)) as stack:
                        lab.use(stack=stack)
                        yield lab
                else:
                    upgrade(Settings(database_url=url))
                    yield lab
            finally:
                lab.close()


def _run(machinery: _Machinery, one: Experiment, database: str, options: argparse.Namespace) -> dict[str, Any]:
    folder = Path(tempfile.mkdtemp(prefix=f"revln-chaos-{one.number}-"))
    started = time.monotonic()
    faults: list[str] = []
    figures: dict[str, Any] = {}
    try:
        with machinery.lab(one, database, folder, options) as lab:
            faults, figures = lab.faults, lab.figures
            try:
                one.run(lab, **_sizes(one, options.set))
            finally:
                lab.inspect()
    except Exception as err:
        where = traceback.extract_tb(err.__traceback__)
        ours = next((frame for frame in reversed(where) if "/tests/" in frame.filename), where[-1])
        faults.append(f"{type(err).__name__} at {Path(ours.filename).name}:{ours.lineno}: {str(err)[:500]}")
    if not faults:
        shutil.rmtree(folder, ignore_errors=True)
    return {
        "number": one.number, "title": one.title, "database": database, "passed": not faults, "figures": figures,
        "faults": faults, "seconds": round(time.monotonic() - started, 1), "folder": str(folder) if faults else None,
    }  # fmt: skip


def _sizes(one: Experiment, given: list[str]) -> dict[str, Any]:
    sizes = dict(one.sizes)
    for each in given:
        name, _, value = each.partition("=")
        number, dot, only = name.partition(".")
        if dot and int(number) != one.number:
            continue
        if (only or number) in sizes:
            known = sizes[only or number]
            sizes[only or number] = type(known)(value)
    return sizes


def _line(outcome: dict[str, Any]) -> str:
    figures = ", ".join(f"{name} {value}" for name, value in outcome["figures"].items())
    verdict = "PASS" if outcome["passed"] else "FAIL"
    head = f"{verdict} {outcome['number']:>2} {outcome['title']} ({outcome['database']})"
    return f"{head}: {figures} [{outcome['seconds']:.0f} s]"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", default=None, help="Of every choice of a moment. Default: a new one; it is printed.")
    parser.add_argument("--only", default="", help="Numbers, as in 1,7.")
    parser.add_argument("--database", choices=DATABASES, help="Only on this one.")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="Another size.")
    parser.add_argument("--patience", type=float, default=300.0, help="Seconds to wait for anything to come true.")
    parser.add_argument("--json", action="store_true", help="One JSON object a line.")
    parser.add_argument("--list", action="store_true", help="Show the experiments and their sizes, and run none.")
    options = parser.parse_args()
    options.seed = options.seed or str(random.randrange(10**6))
    return options


def main() -> int:
    options = _options()
    logging.disable()  # what is to be known of an experiment is in its line and in its parts' logs
    wanted = {int(number) for number in options.only.split(",") if number.strip()}
    chosen = sorted((one for one in EXPERIMENTS if not wanted or one.number in wanted), key=lambda one: one.number)
    if missing := wanted - {one.number for one in chosen}:
        print(f"There is no experiment {', '.join(map(str, sorted(missing)))}.", file=sys.stderr)
        return 2
    if options.list:
        for one in chosen:
            sizes = " ".join(f"{name}={value}" for name, value in one.sizes.items())
            print(f"{one.number:>2} {one.title} ({', '.join(one.databases)}): {sizes}")
        return 0
    print(f"seed {options.seed}", file=sys.stderr)
    failed = 0
    with ExitStack() as parts:
        machinery = _Machinery(parts)
        for one in chosen:
            for database in one.databases if options.database is None else {options.database} & {*one.databases}:
                outcome = _run(machinery, one, database, options)
                failed += not outcome["passed"]
                print(json.dumps(outcome) if options.json else _line(outcome), flush=True)
                if not options.json:
                    for fault in outcome["faults"][:_MOST_FAULTS]:
                        print(f"        {fault}", flush=True)
                    if outcome["folder"]:
                        print(f"        its logs and data stay in {outcome['folder']}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
