"""demo.html: one file with everything in it, light and dark, that asks nothing of any other address."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass
from html import escape
from string import Template
from typing import Any

from revln.cli.output import seconds_of
from revln.client import Job

__all__ = ["Card", "Picture", "Search", "Sheet", "render"]

Hits = list[tuple["Picture", float]]


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture's two thumbnails, as JPEG bytes."""

    id: str
    title: str
    large: bytes
    small: bytes


@dataclass(frozen=True, slots=True)
class Search:
    """A text or a picture that was searched with, and what was found, best first."""

    query: str | Picture
    hits: Hits


@dataclass(frozen=True, slots=True)
class Card:
    """What is known of one picture."""

    picture: Picture
    captions: list[tuple[str, float | None]]  # with their confidence, where the model measures one
    evidence: list[tuple[str, float]]
    neighbors: Hits
    error: str = ""
    unsure: str = ""  # why there is no caption


@dataclass(frozen=True, slots=True)
class Sheet:
    """The whole page."""

    source: str
    model: str
    dim: int
    sentences: int
    seconds: float
    searches: list[Search]
    cards: list[Card]
    vectors: list[tuple[Picture, list[float]]]
    jobs: list[Job]


def render(sheet: Sheet) -> str:
    """The page as HTML."""
    facts = [
        (str(len(sheet.cards)), "pictures"),
        (str(len(sheet.jobs)), "jobs"),
        (f"{sheet.seconds:.1f} s", "from upload to last caption"),
        (str(sheet.dim), "dimensions"),
        (sheet.model, "model"),
    ]
    return _PAGE.substitute(
        style=_STYLE,
        source=escape(sheet.source),
        sentences=sheet.sentences,
        facts="".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for value, name in facts),
        searches="".join(_search(search) for search in sheet.searches),
        cards="".join(_card(card) for card in sheet.cards),
        matrix=_matrix(sheet.vectors),
        jobs="".join(_job(job) for job in sheet.jobs),
    )


def _search(search: Search) -> str:
    if isinstance(search.query, Picture):
        query = f'<div class="asked">{_image(search.query)}<span>{escape(search.query.title)}</span></div>'
    else:
        query = f'<div class="asked"><q>{escape(search.query)}</q></div>'
    return f'<article class="search">{query}{_strip(search.hits)}</article>'


def _card(card: Card) -> str:
    if card.error:
        captions = f'<p class="error">{escape(card.error)}</p>'
    else:
        captions = "".join(f"<li><span>{escape(text)}</span>{_sureness(sure)}</li>" for text, sure in card.captions)
        captions = f'<ol class="captions">{captions}</ol>' if captions else f"<p>{escape(card.unsure)}</p>"
    evidence = "".join(
        f'<li><span>{escape(text)}</span><data value="{score:.4f}">{_signed(score, 2)}</data></li>'
        for text, score in card.evidence
    )
    evidence = f"<ul>{evidence}</ul>" if evidence else "<p>None of the sentences is near enough.</p>"
    return (
        f'<article class="card">{_image(card.picture, large=True)}<div class="body">'
        f"<h3>{escape(card.picture.title)}</h3>"
        f"{captions}<h4>Evidence</h4>{evidence}<h4>Neighbours</h4>{_strip(card.neighbors)}</div></article>"
    )


def _sureness(confidence: float | None) -> str:
    return "" if confidence is None else f'<data value="{confidence:.4f}">{confidence:.0%}</data>'


def _strip(hits: Hits) -> str:
    figures = "".join(
        f'<figure>{_image(picture)}<div class="bar"><i style="width:{max(0.0, min(score, 1.0)):.1%}"></i></div>'
        f"<figcaption><span>{escape(picture.title)}</span><b>{_signed(score, 2)}</b></figcaption></figure>"
        for picture, score in hits
    )
    return f'<div class="strip">{figures}</div>'


def _matrix(vectors: list[tuple[Picture, list[float]]]) -> str:
    """Each picture's cosine with each other one; the diagonal is 1 and left blank."""
    if not 2 <= len(vectors) <= 24:  # more would not fit a screen
        return ""
    head = "".join(f"<th>{_image(picture)}</th>" for picture, _ in vectors)
    rows = []
    for row, (picture, left) in enumerate(vectors):
        cells = []
        for column, (other, right) in enumerate(vectors):
            if row == column:
                cells.append("<td></td>")
                continue
            cosine = sum(a * b for a, b in zip(left, right, strict=True))
            title = escape(f"{picture.title} and {other.title}: {cosine:.3f}")
            cells.append(f'<td title="{title}" style="--v:{max(0.0, cosine):.1%}">{_signed(cosine, 2)}</td>')
        rows.append(f"<tr><th>{_image(picture)}</th>{''.join(cells)}</tr>")
    return (
        '<section><h2>How alike</h2><p class="lead">The cosine of every two pictures, from the <code>embed</code> '
        f'job.</p><div class="scroll"><table class="matrix"><tr><th></th>{head}</tr>{"".join(rows)}</table></div>'
        "</section>"
    )


def _job(job: Job) -> str:
    seconds = seconds_of(job)
    counts = job["counts"]
    cells: list[Any] = [
        f"<code>{escape(job['id'])}</code>",
        escape(job["kind"]),
        escape(str(job["metadata"].get("demo", ""))),
        f'<span class="status {escape(job["status"])}">{escape(job["status"])}</span>',
        f"{counts['succeeded']} of {counts['total']}",
        "" if seconds is None else f"{seconds:.2f}",
    ]
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _image(picture: Picture, large: bool = False) -> str:
    data = b64encode(picture.large if large else picture.small).decode()
    return f'<img src="data:image/jpeg;base64,{data}" alt="{escape(picture.title)}" title="{escape(picture.title)}">'


def _signed(value: float, digits: int) -> str:
    return f"{value:.{digits}f}".replace("-", "−")


_STYLE = """
:root {
  color-scheme: light dark;
  --ground: light-dark(#f6f5f1, #131417); --paper: light-dark(#ffffff, #1c1e22); --ink: light-dark(#1d1f23, #eceae4);
  --soft: light-dark(#6a6d74, #9a9ca3); --line: light-dark(#e3e1da, #2d3036); --accent: light-dark(#b4481e, #f0935f);
  --good: light-dark(#1f7a4d, #63c795); --bad: light-dark(#b3261e, #f2857d);
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 56px 28px 80px; }
h1 { font-size: clamp(30px, 5vw, 46px); line-height: 1.1; letter-spacing: -0.025em; margin: 0 0 12px; }
h2 { font-size: 24px; letter-spacing: -0.015em; margin: 64px 0 4px; }
h3 { font-size: 13px; font-weight: 600; color: var(--soft); margin: 0 0 8px; }
h4 { font-size: 11px; font-weight: 600; letter-spacing: 0.08em; text-transform: uppercase; color: var(--soft);
  margin: 18px 0 6px; }
.lead { color: var(--soft); margin: 0 0 20px; max-width: 72ch; }
code { font: 12.5px ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
img { display: block; width: 100%; object-fit: cover; object-position: 50% 25%; background: var(--line); }
dl { display: flex; flex-wrap: wrap; gap: 12px 44px; margin: 28px 0 0; padding: 20px 0 0;
  border-top: 1px solid var(--line); }
dl div { display: flex; flex-direction: column-reverse; }
dt { font-size: 12.5px; color: var(--soft); }
dd { margin: 0; font-size: 22px; font-weight: 600; letter-spacing: -0.01em; font-variant-numeric: tabular-nums; }
data, b, td { font-variant-numeric: tabular-nums; }
.search { display: grid; grid-template-columns: minmax(180px, 1fr) 3fr; gap: 28px; align-items: start; padding: 20px 0;
  border-top: 1px solid var(--line); }
.asked q { font-size: 20px; line-height: 1.3; letter-spacing: -0.01em; font-weight: 600; quotes: "“" "”"; }
.asked img { width: 150px; aspect-ratio: 4 / 3; border-radius: 8px; }
.asked span { display: block; margin-top: 8px; font-size: 13px; color: var(--soft); max-width: 24ch; }
.strip { display: grid; grid-template-columns: repeat(5, 1fr); gap: 12px; }
.card .strip { grid-template-columns: repeat(4, 1fr); gap: 8px; }
figure { margin: 0; min-width: 0; }
figure img { aspect-ratio: 1; border-radius: 8px; }
.bar { height: 3px; margin: 6px 0 4px; background: var(--line); border-radius: 2px; overflow: hidden; }
.bar i { display: block; height: 100%; background: var(--accent); }
figcaption { display: flex; justify-content: space-between; gap: 6px; font-size: 12.5px; }
figcaption span { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; color: var(--soft); }
figcaption b { font-weight: 600; }
.card figcaption span { display: none; }
.search figure:first-child b { color: var(--accent); }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(340px, 1fr)); gap: 24px; align-items: start; }
.card { background: var(--paper); border: 1px solid var(--line); border-radius: 14px; overflow: hidden; }
.card > img { aspect-ratio: 3 / 2; }
.body { padding: 18px 20px 20px; }
ol, ul { list-style: none; margin: 0; padding: 0; }
li { display: flex; justify-content: space-between; gap: 14px; }
li span { overflow-wrap: anywhere; }
li data { color: var(--soft); font-size: 12.5px; font-weight: 400; line-height: inherit; flex: none; }
.captions li { padding: 2px 0; color: var(--soft); }
.captions li:first-child { font-size: 19px; line-height: 1.3; font-weight: 600; letter-spacing: -0.01em;
  color: var(--ink); padding-bottom: 6px; align-items: baseline; }
.card ul li { font-size: 13.5px; padding: 1px 0; }
.error { color: var(--bad); margin: 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; padding: 9px 14px 9px 0; border-top: 1px solid var(--line); white-space: nowrap; }
th { font-size: 12px; font-weight: 600; color: var(--soft); border: 0; }
.jobs td:nth-child(n+5), .jobs th:nth-child(n+5) { text-align: right; }
.status { color: var(--bad); font-weight: 600; }
.status.succeeded { color: var(--good); }
.matrix { width: auto; border-collapse: separate; border-spacing: 3px; }
.matrix td, .matrix th { border: 0; padding: 0; }
.matrix img { width: 44px; height: 44px; border-radius: 6px; }
.matrix td { width: 44px; min-width: 44px; height: 44px; text-align: center; font-size: 11.5px; border-radius: 6px;
  background: color-mix(in oklab, var(--accent) calc(var(--v, 0%) * 0.8), transparent); }
.note { margin-top: 56px; padding-top: 20px; border-top: 1px solid var(--line); color: var(--soft); font-size: 13.5px;
  max-width: 84ch; }
@media (max-width: 720px) { .search { grid-template-columns: 1fr; gap: 14px; } main { padding: 32px 16px 56px; } }
"""

_PAGE = Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>revln: the demonstration</title>
<style>$style</style>
<main>
<header>
<h1>Pictures, searched and described</h1>
<p class="lead">Made by <code>revln demo</code> from $source. Every picture was uploaded, embedded, indexed, searched
and captioned as a job of a running service.</p>
<dl>$facts</dl>
</header>
<section><h2>Asked</h2>
<p class="lead">Three texts and one picture that is not in the collection, and the nearest pictures for each, by
the cosine of their vectors.</p>
$searches</section>
<section><h2>Described</h2>
<p class="lead">The best captions, each with how likely the model holds it to be right; the evidence that it read,
retrieved from $sentences sentences; and the nearest other pictures.</p>
<div class="cards">$cards</div></section>
$matrix
<section><h2>Jobs</h2>
<p class="lead">What the service was asked to do, in this order.</p>
<div class="scroll"><table class="jobs"><tr><th>id</th><th>kind</th><th>what</th><th>status</th><th>items</th>
<th>seconds</th></tr>$jobs</table></div></section>
<p class="note">A caption's number is its confidence, by which captions are ranked: computed of its probability and of
how near it lies to the picture and to the evidence, and measured on pictures that the training held back. A caption may
be a sentence of the evidence. Other numbers are cosines in [−1, 1]. The evidence is what the memory holds that is
nearest to the picture, whether or not it is true of it.</p>
</main>
</html>
""")
