"""The models of this process: one shared instance of each, loaded on first use under a lock, warmed, batched."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from threading import Lock
from typing import Any

from PIL import Image

from revln.errors import JobError, ModelUnavailable
from revln.jobs.kinds import Priority
from revln.models.base import CaptionRequest, Model, Operation
from revln.models.registry import ModelCatalog
from revln.settings import Settings
from worker.batcher import Batcher

__all__ = ["LoadedModel", "LoadedModels", "choose_device"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    model: Model
    batcher: Batcher

    def require(self, operation: Operation) -> None:
        """Raises ModelUnavailable if this model does not do that."""
        if operation not in self.model.info.operations:
            does = ", ".join(self.model.info.operations)
            raise ModelUnavailable(f"Model {self.model.info.name} does not {operation}; it does {does}.")


class LoadedModels:
    """Loads each model once, whoever asks first; the others wait for it."""

    def __init__(self, settings: Settings, catalog: ModelCatalog) -> None:
        self._settings = settings
        self._catalog = catalog
        self._loaded: dict[str, LoadedModel] = {}
        self._locks: dict[str, Lock] = {}
        self._lock = Lock()
        self.device = choose_device(settings)

    def get(self, name: str, fingerprint: str | None = None) -> LoadedModel:
        """The loaded model. ``fingerprint`` is the whole one or that of the joint space.

        Raises:
            NotFound: no such model.
            ModelUnavailable: it cannot be loaded, or the files here are not those that the job was accepted for.
        """
        with self._lock:
            lock = self._locks.setdefault(name, Lock())
        with lock:
            found = self._loaded.get(name)
            if found is None:
                found = self._loaded[name] = self._load(name)
        info = found.model.info
        if fingerprint not in (None, info.fingerprint, info.joint_fingerprint):
            raise ModelUnavailable(
                f"The job was accepted for model {name} {fingerprint}, but this worker has {info.fingerprint} (joint "
                f"space {info.joint_fingerprint}). "
                "Give the API and every worker the same model files."
            )
        return found

    def describe(self) -> list[dict[str, Any]]:
        """The loaded models, for the worker's row."""
        return [
            {
                "name": name,
                "fingerprint": loaded.model.info.fingerprint,
                "device": loaded.model.device,
                "dtype": loaded.model.dtype,
                "batch": {op.value: loaded.batcher.limit(op) for op in loaded.model.info.operations},
                "batches": loaded.batcher.batches,
                "items": loaded.batcher.items,
            }
            for name, loaded in list(self._loaded.items())
        ]

    def close(self) -> None:
        for loaded in self._loaded.values():
            loaded.batcher.close()

    def _load(self, name: str) -> LoadedModel:
        started = time.monotonic()
        model = self._catalog.load(name, self.device)
        batcher = Batcher(model, max_batch=self._settings.batch_max, max_wait_s=self._settings.batch_wait_ms / 1000)
        _warm(model, batcher)
        log.info("model %s is ready on %s after %.1f s", name, model.device, time.monotonic() - started)
        return LoadedModel(model, batcher)


def _warm(model: Model, batcher: Batcher) -> None:
    """Run each operation once: the first pass allocates, picks kernels and finds out whether it works at all."""
    picture = Image.new("RGB", (64, 64), (127, 127, 127))
    examples: dict[Operation, Any] = {
        Operation.EMBED_IMAGE: picture,
        Operation.EMBED_TEXT: "a picture",
        Operation.CAPTION: CaptionRequest(picture),
    }
    for operation in model.info.operations:
        prepared = model.prepare(operation, examples[operation])
        try:
            batcher.submit(operation, prepared, Priority.INTERACTIVE).result(timeout=300)
        except Exception as err:
            raise JobError(f"Model {model.info.name} fails at {operation} on a grey square: {err}") from err


def choose_device(settings: Settings) -> str:
    """``auto`` is cuda if it really works; also sets how many threads a forward pass on the CPU takes."""
    import torch

    torch.set_num_threads(settings.torch_threads or settings.cores)
    if settings.device == "cpu":
        return "cpu"
    try:
        torch.ones(8, device="cuda").sum().item()
    except (RuntimeError, AssertionError) as err:
        if settings.device == "cuda":
            raise ModelUnavailable(f"REVLN_DEVICE=cuda, but CUDA does not work here: {err}") from err
        return "cpu"
    return "cuda"
