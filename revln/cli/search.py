"""`revln search`: ask a collection on the command line, without writing JSON."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from revln.cli.jobs import as_json_option, connect, kind_command, priority_option, timeout_option, url_option
from revln.cli.numbers import Number
from revln.cli.output import print_json, show_job
from revln.cli.transfer import filter_option
from revln.client import RevlnClient
from revln.jobs.index_schemas import DEDUP_SCORE
from revln.jobs.search_schemas import AUTO
from revln.jobs.state import JobStatus
from revln.terminal import visible

__all__ = ["search"]

_SHOWN_CHARS = 100
_WEIGHT = re.compile(r"(.+)\^(-?\d+(?:\.\d+)?)", re.DOTALL)

Part = dict[str, Any]


class _MinScore(click.ParamType[Any]):
    name = "COSINE|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            found = value if value == AUTO else float(value)
        except ValueError:
            found = math.nan
        if found != AUTO and not math.isfinite(found):
            self.fail(f"{value!r} is neither a number nor 'auto'", param, ctx)
        return found


@click.command()
@click.argument("name", metavar="NAME|INPUT")
@click.argument("texts", nargs=-1, metavar="[TEXT]...")
@click.option("--text", "more_texts", multiple=True, metavar="TEXT", help="A text; the same as an argument.")
@click.option(
    "--image", "images", multiple=True, metavar="FILE|SHA256|URL", help="A picture; a file is uploaded first."
)
@click.option("--id", "ids", multiple=True, metavar="ID", help="An item of the collection, by its vector.")
@click.option("--vector", "vectors", multiple=True, type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="A .npy file of one vector, or of one in each row.")  # fmt: skip
@click.option("--combine", is_flag=True, help="Take all of them as one query, added up by their weights.")
@click.option("-k", type=click.IntRange(1, 1_000), default=10, show_default=True, help="How many hits.")
@click.option("--offset", type=click.IntRange(0), default=0, help="Leave out this many of the best.")
@click.option("--page", type=click.IntRange(1), help="The same in pages of k hits, from 1.")
@filter_option
@click.option("--min-score", type=_MinScore(), help="The least cosine of a hit; auto: what the model calls a match.")
@click.option("--dedup", is_flag=False, flag_value=DEDUP_SCORE, type=Number(0.5, 1), metavar="[COSINE]",
              help=f"Show near-duplicates as one hit; {DEDUP_SCORE} without a number.")  # fmt: skip
@click.option("--exclude-self", is_flag=True, help="Leave out the items given by --id.")
@click.option("--model", help="The model; it must be the collection's.")
@priority_option
@timeout_option
@url_option
@as_json_option
@click.pass_context
def search(ctx: click.Context, /, name: str, texts: tuple[str, ...], **given: Any) -> int:
    """Find the items of a collection that are nearest to texts, pictures, items or vectors.

    Each of them is a query, answered in the order texts, images, ids, vectors. With --combine they are one query, and
    ^NUMBER behind a text, picture or id is its weight; a negative one leads away from it.

    The first argument may also be a job's input as JSON, @file.json, or - for standard input; docs/search.md has the
    language.

    \b
    Its fields:
      collection  queries  k  offset  filter  min_score
      dedup  exclude_self  truncate

    \b
    Examples:
      revln search photos "a dog in the snow" "a red car" -k 5
      revln search photos --image beach.jpg --filter '{"year": {"gte": 2020}}' --min-score auto
      revln search photos --combine --id dsc-1 --text 'snow^-0.5' --exclude-self
      revln search photos --vector queries.npy --json
      revln search '{"collection": "photos", "queries": [{"text": "a dog in the snow"}], "k": 5}'
    """
    if not texts and (name.startswith(("{", "@", "[")) or name == "-"):
        code: int = ctx.invoke(
            kind_command("search"), body=name, wait=True,
            **{key: given[key] for key in ("model", "priority", "timeout", "url", "as_json")},
        )  # fmt: skip
        return code
    asked: dict[str, Any] = {"collection": name, "k": given["k"], "offset": _offset(given)}
    asked |= {key: given[key] for key in ("filter", "min_score", "dedup") if given[key] is not None}
    asked |= {"exclude_self": True} if given["exclude_self"] else {}
    with connect(given["url"]) as client:
        parts = list(_parts(client, [*texts, *given["more_texts"]], given))
        if not parts:
            raise click.UsageError("Nothing to search for: give a text, --image, --id or --vector.")
        asked["queries"] = [[part for part, _ in parts]] if given["combine"] else [part for part, _ in parts]
        named = [" + ".join(said for _, said in parts)] if given["combine"] else [said for _, said in parts]
        job = client.submit("search", asked, model=given["model"], priority=given["priority"])
        job = client.wait(job["id"], given["timeout"])
        if job["status"] not in (JobStatus.SUCCEEDED, JobStatus.FAILED):
            show_job(job, given["as_json"])
            return 1
        result = client.result(job["id"])
    if given["as_json"]:
        print_json(result)
    else:
        _show(result["results"], named)
    return 1 if job["counts"]["failed"] else 0


def _offset(given: dict[str, Any]) -> int:
    if given["page"] is None:
        return int(given["offset"])
    if given["offset"]:
        raise click.UsageError("Give either --offset or --page.")
    return int((given["page"] - 1) * given["k"])


def _parts(client: RevlnClient, texts: list[str], given: dict[str, Any]) -> Iterator[tuple[Part, str]]:
    """Each part of a query, and what it is called on the terminal."""
    for field, values in (("text", texts), ("image", given["images"]), ("id", given["ids"])):
        for value in values:
            what, weight = _weighted(value) if given["combine"] else (value, {})
            yield {field: _image(client, what) if field == "image" else what, **weight}, value
    for path in given["vectors"]:
        for row, vector in enumerate(_rows(path)):
            yield {"vector": vector}, f"{path}[{row}]"


def _weighted(value: str) -> tuple[str, Part]:
    found = _WEIGHT.fullmatch(value)
    return (found[1], {"weight": float(found[2])}) if found else (value, {})


def _image(client: RevlnClient, given: str) -> Part:
    if given.startswith(("http://", "https://")):
        return {"url": given}
    path = Path(given)
    if not path.is_file() and re.fullmatch(r"[0-9a-f]{64}", given):
        return {"sha256": given}
    try:
        return {"sha256": client.upload(path)["sha256"]}
    except OSError as err:
        raise click.BadParameter(f"cannot read {given}: {err}") from err


def _rows(path: Path) -> list[list[float]]:
    import numpy as np

    try:
        found = np.atleast_2d(np.load(path, allow_pickle=False))
        if found.ndim != 2 or found.dtype.kind not in "fiu":
            raise ValueError(f"it holds {found.dtype} of shape {found.shape}, not vectors")
    except (OSError, ValueError, EOFError) as err:
        raise click.BadParameter(f"cannot read {path}: {err}") from err
    rows: list[list[float]] = found.astype(float).tolist()
    return rows


def _show(results: list[dict[str, Any]], named: list[str]) -> None:
    for one in results:
        click.secho(visible(named[one["query"]]), bold=True)
        if one.get("error"):
            click.echo(f"  {one['error']['code']}: {one['error']['detail']}")
            continue
        for hit in one["hits"]:
            about = [" ".join((hit["text"] or "").split())[:_SHOWN_CHARS]]
            about += [json.dumps(hit["metadata"], ensure_ascii=False)[:_SHOWN_CHARS]] if hit["metadata"] else []
            about += [f"+{len(hit['duplicates'])} near-duplicates"] if hit.get("duplicates") else []
            click.echo("  ".join([f"  {hit['score']:+.4f}", hit["id"], *filter(None, about)]))
        if not one["hits"]:
            click.echo("  nothing")
