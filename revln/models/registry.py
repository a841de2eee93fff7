"""Which models there are and how each is described and loaded.

Describing reads a few files and imports neither torch nor transformers, so the API can do it; loading imports them.
A client can only say a name from here: no path and no hub id ever comes from a request.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

from revln.errors import ModelUnavailable, NotFound, SettingsError
from revln.models.base import Model, ModelInfo
from revln.settings import ModelSettings

__all__ = ["BUILT_IN", "ModelCatalog"]

BUILT_IN = "revln-tiny"


@dataclass(frozen=True, slots=True)
class _Family:
    """Where a family's two functions are, as ``module:name``, so that nothing heavy is imported before it is used."""

    describe: str
    load: str


_FAMILIES = {"revln": _Family("revln.models.revln_card:describe", "revln.models.revln_family:load")}


def _resolve(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


class ModelCatalog:
    """The models that the operator named, and the built-in one."""

    def __init__(self, named: Mapping[str, ModelSettings], default: str = BUILT_IN) -> None:
        self._specs = {BUILT_IN: ModelSettings(source=str(files("revln") / "weights" / BUILT_IN)), **named}
        self._infos: dict[str, ModelInfo] = {}
        for name, spec in self._specs.items():
            if spec.family not in _FAMILIES:
                raise SettingsError(
                    f"REVLN_MODELS: model {name!r} names family {spec.family!r}; there are {', '.join(_FAMILIES)}."
                )
        if default not in self._specs:
            raise SettingsError(f"REVLN_DEFAULT_MODEL={default!r} is none of {', '.join(self._specs)}.")
        self.default = default

    @cached_property
    def names(self) -> list[str]:
        return sorted(self._specs)

    def describe(self, name: str) -> ModelInfo:
        """What a model is, without loading it.

        Raises:
            NotFound: no such name.
            ModelUnavailable: its files are missing or damaged.
        """
        if name not in self._infos:
            spec = self._spec(name)
            self._infos[name] = _resolve(_FAMILIES[spec.family].describe)(name, Path(spec.source))
        return self._infos[name]

    def load(self, name: str, device: str) -> Model:
        """Load a model; slow, and not guarded against two callers: `worker.models` does that."""
        spec = self._spec(name)
        try:
            model: Model = _resolve(_FAMILIES[spec.family].load)(name, Path(spec.source), device)
        except (OSError, RuntimeError) as err:
            raise ModelUnavailable(f"Model {name} could not be loaded on {device}: {err}") from err
        return model

    def _spec(self, name: str) -> ModelSettings:
        if name not in self._specs:
            raise NotFound(f"There is no model {name!r}; there are {', '.join(self.names)}. GET /v1/models lists them.")
        return self._specs[name]
