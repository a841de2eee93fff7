"""The forms in which captioned pictures come: all become examples of one picture's file and its captions.

- JSONL, this project's own: ``{"file", "split", "captions": [str, …]}`` a line. A line with labels instead of captions
  is passed over.
- Flickr token file: ``name.jpg#0<TAB>a caption`` a line, no splits (Young et al., TACL 2014).
- Karpathy's JSON: ``{"images": [{"filename", "split", "sentences": [{"raw"}]}]}`` (Karpathy and Fei-Fei, CVPR 2015).
- COCO JSON: ``{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}``, no splits.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from revln.errors import ValidationFailed

__all__ = ["Example", "read_examples"]

_TOKEN = re.compile(r"(?P<file>[^\t]+)#\d+\t(?P<caption>.*\S.*)")


@dataclass(frozen=True, slots=True)
class Example:
    """One picture's file name and its captions; ``split`` is None where the form knows none."""

    file: str
    captions: tuple[str, ...]
    split: str | None = None


def read_examples(path: Path) -> list[Example]:
    """Every example of a file, whichever the form, in the file's order.

    Raises:
        ValidationFailed: it is none of the forms, or a part of it is malformed: which, is said.
    """
    try:
        with path.open(encoding="utf-8") as file:
            first = next((line for line in file if line.strip()), "")
        if not first.lstrip().startswith(("{", "[")):
            return list(_token_file(path))
        if _is_line(first):
            return list(_json_lines(path))
        whole = json.loads(path.read_text(encoding="utf-8"))
        return list(_coco(path, whole) if "annotations" in whole else _karpathy(path, whole))
    except UnicodeDecodeError as err:
        raise ValidationFailed(f"{path} is not UTF-8 text ({err}); unpack it, or save it as UTF-8") from err
    except (json.JSONDecodeError, RecursionError) as err:
        raise ValidationFailed(f"{path} is neither JSONL, JSON nor a Flickr token file: {err}") from err


def _is_line(first: str) -> bool:
    """Whether the first line is an object by itself, and not the whole of a Karpathy or COCO file."""
    try:
        value = json.loads(first)
    except ValueError:
        return False
    return isinstance(value, dict) and "images" not in value


def _json_lines(path: Path) -> Iterator[Example]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                if "labels" in row and "captions" not in row:
                    continue
                name, texts, split = row["file"], row["captions"], row["split"]
            except (ValueError, KeyError, TypeError) as err:
                raise ValidationFailed(f"{path}, line {number}: needs file, split and captions ({err!r})") from err
            place = f"{path}, line {number}"
            if not isinstance(texts, list):
                raise ValidationFailed(f"{place}: captions must be a list of texts, not {texts!r:.60}")
            captions = tuple(_text(text, place, f"captions[{i}]") for i, text in enumerate(texts))
            yield Example(_text(name, place, "file"), captions, _text(split, place, "split"))


def _token_file(path: Path) -> Iterator[Example]:
    captions: dict[str, list[str]] = {}
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            match = _TOKEN.fullmatch(line.rstrip("\r\n"))
            if match is None:
                raise ValidationFailed(f"{path}, line {number}: needs 'file#number<TAB>caption', not {line[:60]!r}")
            captions.setdefault(match["file"], []).append(match["caption"].strip())
    for name, texts in captions.items():
        yield Example(name, tuple(texts))


def _karpathy(path: Path, whole: Any) -> Iterator[Example]:
    for number, image in enumerate(_list(path, whole, "images")):
        place = f"{path}, images[{number}]"
        try:
            folder, name, split = image.get("filepath"), image["filename"], image["split"]
            texts = [sentence["raw"] for sentence in image["sentences"]]
        except (AttributeError, KeyError, TypeError) as err:
            raise ValidationFailed(f"{place}: needs filename, split and sentences with raw ({err!r})") from err
        captions = tuple(_text(text, place, f"sentences[{i}].raw") for i, text in enumerate(texts))
        name = _text(name, place, "filename")
        file = f"{_text(folder, place, 'filepath')}/{name}" if folder else name
        yield Example(file, captions, _text(split, place, "split"))


def _coco(path: Path, whole: Any) -> Iterator[Example]:
    captions: dict[Any, list[str]] = {}
    for number, annotation in enumerate(_list(path, whole, "annotations")):
        place = f"{path}, annotations[{number}]"
        try:
            texts, text = captions.setdefault(annotation["image_id"], []), annotation["caption"]
        except (KeyError, TypeError) as err:
            raise ValidationFailed(f"{place}: needs image_id and caption ({err!r})") from err
        texts.append(_text(text, place, "caption").strip())
    for number, image in enumerate(_list(path, whole, "images")):
        try:
            name, texts = image["file_name"], captions.get(image["id"], [])
        except (KeyError, TypeError) as err:
            raise ValidationFailed(f"{path}, images[{number}]: needs id and file_name ({err!r})") from err
        if texts:
            yield Example(_text(name, f"{path}, images[{number}]", "file_name"), tuple(texts))


def _text(value: Any, place: str, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValidationFailed(f"{place}: {name} must be text that is not blank, not {value!r:.60}")
    return value


def _list(path: Path, whole: Any, name: str) -> list[Any]:
    rows = whole.get(name) if isinstance(whole, dict) else None
    if not isinstance(rows, list):
        raise ValidationFailed(f"{path} has no list '{name}'; give JSONL, a Flickr token file, Karpathy or COCO JSON")
    return rows
