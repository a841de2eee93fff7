"""Whether a decoder reads its evidence, and doubts what is filed under the wrong picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from revln.models.base import Evidence
from revln.training.data import Example
from revln.training.metrics import score_captions

__all__ = ["measure_reading"]

Write = Callable[[Sequence[tuple[Evidence, ...]]], list[str]]


def measure_reading(examples: Sequence[Example], alone: Sequence[str], write: Write) -> dict[str, Any]:
    """Return the scores of captions with one sentence as evidence, as if the store held it at a cosine of 1.

    ``told``: the picture's own first caption, scored against its others (only pictures that have some count).
    ``misled``: a stranger's first caption, scored against all. Beside each, on the same references: the sentence
    itself, repeated, and ``alone``, the captions without evidence. None where there are too few pictures.
    """
    n = len(examples)
    own = [example.captions[0] for example in examples]
    strangers = [own[(i + n // 2) % n] for i in range(n)]
    several = [i for i, example in enumerate(examples) if len(example.captions) > 1]
    return {
        "told": _figures([example.captions[1:] for example in examples], several, own, alone, write),
        "misled": _figures(
            [example.captions for example in examples], range(n) if n > 1 else (), strangers, alone, write
        ),
    }


def _figures(
    references: Sequence[Sequence[str]],
    counted: Sequence[int],
    sentences: Sequence[str],
    alone: Sequence[str],
    write: Write,
) -> dict[str, Any] | None:
    if not counted:
        return None
    written = write([(Evidence("0", sentence, 1.0),) for sentence in sentences])
    figures: dict[str, Any] = {"n_images": len(counted)}
    for name, captions in (("caption", written), ("itself", sentences), ("alone", alone)):
        figures[name] = score_captions([captions[i] for i in counted], [references[i] for i in counted])
    return figures
