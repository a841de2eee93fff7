"""Which models there are and how each is described and loaded.

Describing reads a few files and imports neither torch nor transformers, so the API can do it; loading imports them.
A client can only say a name from here: no path and no hub id ever comes from a request.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from revln.errors import ModelUnavailable, NotFound, SettingsError, Unavailable
from revln.models.base import Model, ModelInfo
from revln.models.checkpoint import Checkpoint
from revln.models.device import check_device, resolve_dtype
from revln.models.families import AUTO, FAMILIES, Family, find_family, normal_name
from revln.models.looking import Looks
from revln.models.memory import out_of_memory
from revln.models.sources import fetch, is_on_hub, locate
from revln.settings import ModelSettings

__all__ = ["BUILT_IN", "ModelCatalog", "describe_folder", "load_folder"]

BUILT_IN = "revln-tiny"


class ModelCatalog:
    """The models that the operator named, and the built-in one."""

    def __init__(self, named: Mapping[str, ModelSettings], default: str = BUILT_IN) -> None:
        self._specs = {BUILT_IN: ModelSettings(source=str(files("revln") / "weights" / BUILT_IN)), **named}
        self._infos: dict[str, ModelInfo] = {}
        self._looks = Looks(lambda name: _read(name, self.spec(name)).info)
        for name, spec in self._specs.items():
            _check_family(name, spec.family)
        if default not in self._specs:
            raise SettingsError(f"REVLN_DEFAULT_MODEL={default!r} is none of {', '.join(self._specs)}.")
        self.default = default

    @cached_property
    def names(self) -> list[str]:
        return sorted(self._specs)

    def describe(self, name: str) -> ModelInfo:
        """What a model is, without loading it; of a hub model only what describes it is downloaded.

        Raises:
            NotFound: no such name.
            ModelUnavailable: its files are missing or damaged.
            Unavailable: its hub has not answered within seconds.
        """
        if name not in self._infos:
            spec = self.spec(name)
            on_hub = is_on_hub(spec.source)
            self._infos[name] = self._looks.describe(name) if on_hub else _read(name, spec).info
        return self._infos[name]

    def look(self) -> None:
        """Begin to describe what is on a hub, so that a list waits for the slowest and not for the sum of them."""
        for name, spec in self._specs.items():
            if name not in self._infos and is_on_hub(spec.source):
                self._looks.begin(name)

    def fetch(self, name: str) -> ModelInfo:
        """As `describe`, with all of its files on this machine; a hub model is downloaded now."""
        return _read(name, self.spec(name), whole=True).info

    def placed(self, name: str, device: str) -> str:
        """The device of a model on a worker whose own device is ``device``.

        Raises:
            ModelUnavailable: this machine lacks the device that the operator named for it.
        """
        spec = self.spec(name)
        where = device if spec.device == AUTO else spec.device
        check_device(name, where)
        return where

    def load(self, name: str, device: str) -> Model:
        """Load a model, on ``device`` unless the operator named another for it; a hub model is downloaded first.

        Slow, and not guarded against two callers: `worker.models.pool` does that.

        Raises:
            ModelUnavailable: its files are missing, damaged or of another kind, or it cannot be on that device.
            Unavailable: memory ran out; later there may be more.
        """
        spec = self.spec(name)
        where = self.placed(name, device)
        info, family, checkpoint = _read(name, spec, whole=True)
        try:
            return family.load(info, checkpoint, where, resolve_dtype(spec.dtype, where, family.half_of(checkpoint)))
        except (OSError, RuntimeError, ValueError, MemoryError) as err:
            if out_of_memory(err):
                raise Unavailable(f"There is not enough memory on {where} for model {name} now.") from err
            raise ModelUnavailable(f"Model {name} could not be loaded on {where}: {err}") from err

    def spec(self, name: str) -> ModelSettings:
        """Where the operator says it comes from. Raises NotFound."""
        if name not in self._specs:
            raise NotFound(f"There is no model {name!r}; there are {', '.join(self.names)}. GET /v1/models lists them.")
        return self._specs[name]


def load_folder(folder: Path, device: str, dtype: str = "float32") -> Model:
    """A checkpoint folder that no operator named, of whatever family it says; raises as `ModelCatalog.load` does."""
    return _of_folder(folder, dtype).load(folder.name, device)


def describe_folder(folder: Path) -> ModelInfo:
    """What `load_folder` would load; raises as `ModelCatalog.describe` does."""
    return _of_folder(folder).describe(folder.name)


def _of_folder(folder: Path, dtype: str = "float32") -> ModelCatalog:
    return ModelCatalog({folder.name: ModelSettings(source=str(folder), dtype=dtype)})


class _Read(NamedTuple):
    info: ModelInfo
    family: Family
    checkpoint: Checkpoint


# What reading JSON raises whose values are missing, of another type or out of range, and a file that nobody may read.
_MALFORMED = (ArithmeticError, AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError)


def _read(name: str, spec: ModelSettings, *, whole: bool = False) -> _Read:
    """What a model's files say, and they themselves; ``whole``: its weights are here too.

    Raises:
        ModelUnavailable: a file is missing, damaged or malformed. One such model may not keep the others from a list.
    """
    try:
        checkpoint = (fetch if whole else locate)(spec.source, spec.revision)
        full_name, family = find_family(spec.family, checkpoint)
        if family.described_whole and not whole:
            return _read(name, spec, whole=True)
        info = family.describe(name, full_name, checkpoint)
        json.dumps(asdict(info), allow_nan=False, ensure_ascii=False).encode()  # it is answered as JSON
    except _MALFORMED as err:
        said = " ".join(str(err).split())[:200]
        raise ModelUnavailable(
            f"Model {name}: a file of {spec.source} is malformed or unreadable ({type(err).__name__}: {said}); fetch "
            "the model again."
        ) from err
    if spec.evidence_min_score is not None:
        info = replace(info, evidence_min_score=spec.evidence_min_score)
    return _Read(_prompted(name, info, spec), family, checkpoint)


def _prompted(name: str, info: ModelInfo, spec: ModelSettings) -> ModelInfo:
    """With the prompts that the operator names, and fingerprints that tell them. Raises ModelUnavailable."""
    if info.prompts is None:
        if spec.query_prompt is not None or spec.document_prompt is not None:
            raise ModelUnavailable(
                f"Model {name} is of family {info.family}, which takes no prompts: leave query_prompt and "
                "document_prompt out. Sentence encoders take them."
            )
        return info
    prompts = info.prompts.overridden(spec.query_prompt, spec.document_prompt)
    return replace(
        info,
        prompts=prompts,
        fingerprint=prompts.fingerprint(info.fingerprint),
        joint_fingerprint=prompts.joint_fingerprint(info.fingerprint),
    )


def _check_family(name: str, family: str) -> None:
    head, colon, _ = normal_name(family).partition(":")
    known = FAMILIES.get(head)
    if (head != AUTO and known is None) or (colon and (known is None or not known.variants)):
        there_are = [AUTO, *(f"{each}:…" if one.variants else each for each, one in FAMILIES.items())]
        raise SettingsError(f"REVLN_MODELS: model {name!r} names family {family!r}; there are {', '.join(there_are)}.")
