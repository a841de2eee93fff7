"""The files of one model: what they are, what they hash to, what they say of themselves. Imports nothing heavy.

A checkpoint is a local folder, one weights file, or a snapshot of a hub repository. Of a snapshot the weights need not
be here yet: the hub states their SHA-256, so that a process which never loads the model (the API) can still tell its
fingerprint.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from revln.errors import ModelUnavailable

__all__ = ["CONFIG_FILE", "SENTENCE_FILES", "Checkpoint", "StatedFile", "count_parameters", "read_header"]

CONFIG_FILE = "config.json"
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
# sentence-transformers has named it after the architecture; the first that is there counts.
SENTENCE_FILES = tuple(
    f"sentence_{each}_config.json"
    for each in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
# Whatever else decides what a model makes of a picture or a text, in every form that save_pretrained has had.
_SETTINGS_FILES = frozenset({
    CONFIG_FILE, "generation_config.json",
    "preprocessor_config.json", "processor_config.json", "image_processor_config.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model",
    "chat_template.json", "chat_template.jinja",
    "modules.json", "config_sentence_transformers.json", *SENTENCE_FILES,
})  # fmt: skip


_MODULE = re.compile(r"\d+_[^/]+/[^/]+")


@dataclass(frozen=True, slots=True)
class StatedFile:
    """What a hub says of a file that need not be here."""

    sha256: str | None
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where the files are. ``only``: the source is this one file of the folder."""

    source: str
    folder: Path
    only: str | None = None
    stated: Mapping[str, StatedFile] = field(default_factory=dict)

    def here(self, name: str) -> bool:
        return (self.folder / name).is_file()

    def has(self, name: str) -> bool:
        return self.here(name) or name in self.stated

    def json(self, name: str) -> dict[str, Any]:
        """A JSON object of the folder.

        Raises:
            ModelUnavailable: it is missing, or is not a JSON object.
        """
        value = self._read_json(name)
        if not isinstance(value, dict):
            raise ModelUnavailable(f"{name} of {self.source} is not a JSON object; fetch the model again.")
        return value

    def json_list(self, name: str) -> list[dict[str, Any]]:
        """As `json`, for a list of objects."""
        value = self._read_json(name)
        if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
            raise ModelUnavailable(f"{name} of {self.source} is not a list of JSON objects; fetch the model again.")
        return value

    def tokenizer_settings(self) -> dict[str, Any]:
        """What tokenizer_config.json says; nothing without it. Raises ModelUnavailable."""
        return self.json("tokenizer_config.json") if self.here("tokenizer_config.json") else {}

    def _read_json(self, name: str) -> Any:
        if not self.here(name):
            raise ModelUnavailable(
                f"{self.source} has no {name}. Give a folder that save_pretrained wrote, or a hub id of such a model."
            )
        try:
            return json.loads((self.folder / name).read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as err:
            raise ModelUnavailable(f"{name} of {self.source} is not JSON ({err}); fetch the model again.") from err

    def weights(self) -> list[str]:
        """The safetensors files that hold the weights.

        Raises:
            ModelUnavailable: there are none; other forms of weights can run code when they are read.
        """
        if self.only is not None:
            return [self.only]
        index = self.json(_INDEX) if self.here(_INDEX) and not self.has(_WEIGHTS) else None
        shards = sorted({str(name) for name in (index or {}).get("weight_map", {}).values()})
        names = [_WEIGHTS] if self.has(_WEIGHTS) else shards
        if not names:
            raise ModelUnavailable(
                f"{self.source} has no {_WEIGHTS}; revln reads weights in safetensors only, because other forms can "
                "run code. Convert it: load it with transformers where you trust it, then save_pretrained."
            )
        missing = [name for name in names if not self.has(name)]
        if missing:
            raise ModelUnavailable(f"{self.source} lacks {missing[0]}, which {_INDEX} names; fetch the model again.")
        return names

    def all_weights(self) -> list[str]:
        """The weights, and those of a sentence encoder's further modules (2_Dense/model.safetensors)."""
        return [*self.weights(), *self._modules(".safetensors")]

    def settings_files(self) -> list[str]:
        """Configuration, preprocessing and tokenizer files, sorted."""
        if self.only is not None:
            return []
        return sorted([*(name for name in _SETTINGS_FILES if self.has(name)), *self._modules(".json")])

    def _modules(self, suffix: str) -> list[str]:
        """Files of the numbered folders that sentence-transformers writes."""
        if self.only is not None:
            return []
        local = {f"{path.parent.name}/{path.name}" for path in self.folder.glob(f"[0-9]*_*/*{suffix}")}
        stated = {name for name in self.stated if _MODULE.fullmatch(name) and name.endswith(suffix)}
        return sorted(local | stated)

    def sha256(self, name: str) -> str:
        stated = self.stated.get(name)
        if stated is not None and stated.sha256 is not None:
            return stated.sha256
        path = self.folder / name
        try:
            status = path.stat()
        except OSError as err:
            raise ModelUnavailable(f"{self.source} has no {name} ({err.strerror}); fetch the model again.") from err
        return _sha256(path, status.st_size, status.st_mtime_ns)

    def fingerprint(self, family: str, names: Iterable[str] | None = None) -> str:
        """``<family>-`` and 16 hex digits over the family and each file's name and content."""
        digest = hashlib.sha256(family.encode())
        for name in sorted(names) if names is not None else [*self.settings_files(), *self.all_weights()]:
            # One file given by path is the same model under another name.
            digest.update(b"\0" + (b"" if name == self.only else name.encode()) + b"\0")
            digest.update(bytes.fromhex(self.sha256(name)))
        return f"{family}-{digest.hexdigest()[:16]}"

    def parameters(self) -> int | None:
        """How many numbers the weights hold; None while they are not here."""
        names = self.weights()
        if not all(self.here(name) for name in names):
            return None
        headers = [read_header(self.folder / name) for name in names]
        return sum(count_parameters(header) for header in headers)


def read_header(path: Path) -> dict[str, Any]:
    """A safetensors file's tensors by name: dtype, shape, data_offsets, counted from the end of the header.

    8 bytes of length, then JSON (github.com/huggingface/safetensors).

    Raises:
        ModelUnavailable: it is damaged or cut short.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > size:
                raise ValueError(f"its header claims {length} bytes")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        end = max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
        for tensor in header.values():
            math.prod(tensor["shape"])
        if size != 8 + length + end:
            raise ValueError(f"it has {size} bytes of {8 + length + end}")
    except OSError as err:
        raise ModelUnavailable(f"{path} cannot be read: {err.strerror}.") from err
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as err:
        raise ModelUnavailable(f"{path} is damaged ({err}); fetch it again.") from err
    return dict(header)


def count_parameters(header: Mapping[str, Any]) -> int:
    return int(sum(math.prod(tensor["shape"]) for tensor in header.values()))


@lru_cache(maxsize=1024)
def _sha256(path: Path, size_bytes: int, mtime_ns: int) -> str:  # noqa: ARG001 - a changed file is another key
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
