"""`revln demo`: everything that revln does, on a dozen photographs, as a client of a running service."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from revln.cli.demo import contact_sheet
from revln.cli.demo.contact_sheet import Card, Picture, Search, Sheet
from revln.cli.demo.data import SENTENCES, Plan, from_folder, samples
from revln.cli.embedded import embedded_stack
from revln.cli.jobs import connect
from revln.cli.output import jobs_table
from revln.client import Job, RevlnClient
from revln.errors import ItemError, NotFound, StartupError, Unavailable, UsersError

__all__ = ["demo"]

PHOTOS, MEMORY = "demo-photos", "demo-sentences"
NEIGHBORS = 4
CAPTIONS = 3
SURE = 0.3  # below it, revln-tiny was wrong of nearly all pictures that are like none of its training
HITS = 5
LARGE_PX, SMALL_PX = 560, 200


@click.command()
@click.option("--url", help="A running revln.  [default: REVLN_PUBLIC_URL, else REVLN_API_HOST and _PORT]")
@click.option("--embedded", is_flag=True, help="Start a revln for this in a temporary folder, and stop it after.")
@click.option("--images", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Your own pictures.")
@click.option("--limit", type=click.IntRange(1, 500), default=48, show_default=True, help="At most so many of them.")
@click.option("--model", help="The model to use.  [default: the server's]")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default=Path("demo.html"), show_default=True)
def demo(url: str | None, embedded: bool, images: Path | None, limit: int, model: str | None, out: Path) -> int:
    """Embed, index, search and caption sample photographs; write demo.html.

    Uses the photographs that scikit-image carries, or a folder of your own. Nothing is fetched from anywhere. The two
    collections it makes are called demo-photos and demo-sentences; it replaces them.

    \b
    Examples:
      revln demo --embedded                           nothing else running
      revln demo --url http://127.0.0.1:8000          against a running revln
      revln demo --embedded --images ~/Pictures       on your own pictures
    """
    if url and embedded:
        raise click.UsageError("--url and --embedded exclude each other.")
    console = Console()
    plan = from_folder(images, limit) if images else samples()
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        if embedded:
            with console.status("starting Redis, database, API, worker and Flower …"):
                running = stack.enter_context(embedded_stack())
            url = running.api_url
            console.print(f"revln is up after {time.monotonic() - began:.1f} s", url, "Flower", running.flower_url)
        with connect(url) as client:
            try:
                client.models()
            except Unavailable as error:
                raise StartupError(f"{error.message}. Start one with 'revln up', or add --embedded.") from error
            run = _Demo(client, console, plan, model)
            sheet = run.run()
        console.print()
        console.print(jobs_table(run.jobs))
        out.write_text(contact_sheet.render(sheet), encoding="utf-8")
        console.print(f"\n[bold]{out}[/] has everything in one file ({out.stat().st_size / 2**20:.1f} MiB).")
    console.print(f"done in {time.monotonic() - began:.1f} s")
    bad = [job for job in run.jobs if job["status"] != "succeeded" or job["counts"]["failed"]]
    return 1 if bad else 0


@dataclass
class _Demo:
    client: RevlnClient
    console: Console
    plan: Plan
    model: str | None
    jobs: list[Job] = field(default_factory=list)
    uploaded: dict[str, str] = field(default_factory=dict)  # picture's id → sha256

    def run(self) -> Sheet:
        began = time.monotonic()
        self._upload()
        for name in (PHOTOS, MEMORY):
            with contextlib.suppress(NotFound):
                self.client.delete_collection(name)
            self.client.create_collection(name, self.model)
        photos: list[dict[str, Any]] = [
            {"id": picture.id, "image": self._image(picture.id), "metadata": {"title": picture.title}}
            for picture in self.plan.pictures
            if picture.id in self.uploaded
        ]
        sentences = [{"id": f"s{number:03d}", "text": text} for number, text in enumerate(SENTENCES, 1)]
        embedded, *_ = self._do(
            ("embed", "embed the photographs", {"items": photos}),
            ("index", "index them", {"collection": PHOTOS, "items": photos}),
            ("index", f"index {len(sentences)} sentences", {"collection": MEMORY, "items": sentences}),
        )
        queries = [*({"text": text} for text in self.plan.texts), {"image": self._image(self.plan.query.id)}]
        ids = [picture.id for picture in self.plan.pictures if picture.id in self.uploaded]
        searched, near, captioned = self._do(
            ("search", "search by 3 texts and 1 image", {"collection": PHOTOS, "queries": queries, "k": HITS}),
            (
                "search",
                "find each one's neighbours",
                {"collection": PHOTOS, "queries": [{"id": each} for each in ids], "k": NEIGHBORS + 1},
            ),
            (
                "caption",
                "caption them, with evidence",
                {
                    "items": [{"id": photo["id"], "image": photo["image"]} for photo in photos],
                    "collection": MEMORY,
                    "neighbors": NEIGHBORS,
                    "num_beams": max(CAPTIONS, 3),
                    "num_captions": CAPTIONS,
                    **({"min_confidence": SURE} if self._measures_confidence() else {}),
                },
            ),
        )
        return self._sheet(ids, embedded, searched, near, captioned, time.monotonic() - began)

    def _measures_confidence(self) -> bool:
        """Tell whether captions can be left out by their confidence; a model of the user's may not measure it."""
        mine = [one for one in self.client.models() if (one["name"] == self.model if self.model else one["default"])]
        return any(one.get("has_confidence") for one in mine)

    def _image(self, picture_id: str) -> dict[str, str]:
        return {"sha256": self.uploaded[picture_id]}

    def _upload(self) -> None:
        """Uploads travel four at a time; a file that is no picture is named and left out."""
        wanted = [*self.plan.pictures, self.plan.query]
        with self._progress() as progress, ThreadPoolExecutor(4) as pool:
            bar = progress.add_task(f"upload {len(wanted)} pictures", total=len(wanted))
            started = [(picture, pool.submit(self.client.upload, picture.path)) for picture in wanted]
            for picture, upload in started:
                try:
                    self.uploaded[picture.id] = upload.result()["sha256"]
                except (ItemError, UsersError) as error:
                    progress.console.print(f"[yellow]left out[/] {picture.path}: {error.message}")
                progress.advance(bar)
        if self.plan.query.id not in self.uploaded or len(self.uploaded) < 2:
            raise UsersError(f"Too few pictures of {self.plan.source} could be read.")

    def _do(self, *wanted: tuple[str, str, dict[str, Any]]) -> list[dict[str, Any]]:
        """Hand in jobs together, follow each with a bar, and read their results."""
        with self._progress() as progress, ThreadPoolExecutor(len(wanted)) as pool:
            started = []
            for kind, text, given in wanted:
                job = self.client.submit(kind, given, model=self.model, metadata={"demo": text})
                bar = progress.add_task(f"{kind:<8}{text}", total=job["counts"]["total"])
                started.append(pool.submit(self.client.wait, job["id"], None, _advance(progress, bar)))
            done = [each.result() for each in started]
        self.jobs += done
        for job in done:
            if job["error"]:
                raise UsersError(f"The {job['kind']} job {job['status']}: {job['error']['detail']}")
        return [self.client.result(job["id"]) for job in done]

    def _progress(self) -> Progress:
        return Progress(
            SpinnerColumn(finished_text="[green]✓[/]"),
            TextColumn("{task.description:<40}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self.console,
        )

    def _sheet(
        self,
        ids: list[str],
        embedded: dict[str, Any],
        searched: dict[str, Any],
        near: dict[str, Any],
        captioned: dict[str, Any],
        seconds: float,
    ) -> Sheet:
        titles = {picture.id: picture.title for picture in (*self.plan.pictures, self.plan.query)}
        pictures = {each: self._picture(each, titles[each]) for each in [*ids, self.plan.query.id]}

        def hits(result: dict[str, Any], but: str = "") -> list[tuple[Picture, float]]:
            found = [(pictures[hit["id"]], hit["score"]) for hit in result.get("hits") or [] if hit["id"] != but]
            return found[: HITS if not but else NEIGHBORS]

        asked: list[str | Picture] = [*self.plan.texts, pictures[self.plan.query.id]]
        cards = [
            Card(
                picture=pictures[each],
                captions=[(one["text"], one.get("confidence")) for one in item.get("captions") or []],
                evidence=[(one["text"], one["score"]) for one in item.get("evidence") or []],
                neighbors=hits(found, but=each),
                error=(item.get("error") or {}).get("detail", ""),
                unsure=item.get("caption_note") or "",
            )
            for each, item, found in zip(ids, captioned["items"], near["results"], strict=True)
        ]
        vectors = [item.get("embedding") for item in embedded["items"]]
        return Sheet(
            source=self.plan.source,
            model=embedded["model"],
            dim=embedded["dim"],
            sentences=len(SENTENCES),
            seconds=seconds,
            searches=[Search(query, hits(result)) for query, result in zip(asked, searched["results"], strict=True)],
            cards=cards,
            vectors=[(pictures[each], vector) for each, vector in zip(ids, vectors, strict=True) if vector],
            jobs=self.jobs,
        )

    def _picture(self, picture_id: str, title: str) -> Picture:
        sha256 = self.uploaded[picture_id]
        large, small = (self.client.thumbnail(sha256, width) for width in (LARGE_PX, SMALL_PX))
        return Picture(picture_id, title, large, small)


def _advance(progress: Progress, bar: Any) -> Callable[[Job], None]:
    def update(job: Job) -> None:
        counts = job["counts"]
        progress.update(bar, completed=counts["succeeded"] + counts["failed"], total=counts["total"])

    return update
