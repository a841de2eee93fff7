"""Print the benchmark as a table; ``--json`` prints one object."""

from __future__ import annotations

import argparse
import json
import sys

from rich.console import Console
from rich.table import Table

from bench import index, parts, road
from bench.figure import Figure
from revln.cli.embedded import embedded_stack


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--json", action="store_true", help="Print one JSON object instead of a table.")
    parser.add_argument("--images", type=int, default=1_000, help="Pictures in the embed and index figures.")
    parser.add_argument("--rows", type=int, default=1_000_000, help="Vectors in the index's figures; 0: none of those.")
    arguments = parser.parse_args()
    console = Console(stderr=True)
    figures: list[Figure] = []
    with console.status("parts of one process …"):
        figures += parts.measure()
    if arguments.rows:
        with console.status(f"an index of {arguments.rows:,} vectors …"):
            figures += index.measure(arguments.rows, 256, [None])
    with console.status("starting revln …"), embedded_stack() as stack:
        for name, step in road.steps(stack.api_url, arguments.images):
            console.print(f"{name} …")
            figures += step()
    if arguments.json:
        print(json.dumps([figure.as_dict() for figure in figures], indent=1))
        return 0
    table = Table(title="revln beside bare parts; the same machine, the same minute", title_justify="left")
    for column in ("figure", "revln", "bare", "ratio", "goal"):
        table.add_column(column, justify="left" if column == "figure" else "right")
    for figure in figures:
        ratio = "" if figure.ratio is None else f"{figure.ratio:.2f}"
        table.add_row(figure.name, figure.ours_text, figure.bare_text, ratio, figure.goal_text)
    Console(width=130).print(table)
    return 0


sys.exit(main())
