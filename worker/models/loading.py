"""Load one model and prove that it works: the slow part, run in a thread of its own."""

from __future__ import annotations

import gc
import logging
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from PIL import Image

from revln.errors import ItemError, JobError, ModelUnavailable, OutOfMemory, RevlnError, Unavailable
from revln.jobs.kinds import Priority
from revln.models.base import CaptionRequest, Model, Operation
from revln.models.device import ITEM_BYTES, resolve_dtype
from revln.models.memory import give_back_freed_memory, host_memory_bytes, out_of_memory
from revln.models.outputs import finished
from revln.models.registry import ModelCatalog
from revln.settings import Settings
from worker.models.batcher import Batcher, Watch

__all__ = ["LoadedModel", "Loader", "choose_device", "release_memory"]

log = logging.getLogger(__name__)

# Of a device's memory, for weights: activations, indexes and other processes need the rest.
_CPU_SHARE, _GPU_SHARE = 0.5, 0.8
_WARM_UP_S = 300.0
_TRIED = dict.fromkeys(Operation, "a grey square") | {Operation.EMBED_TEXT: "the text 'a picture'"}


@dataclass(frozen=True, slots=True)
class LoadedModel:
    model: Model
    batcher: Batcher

    def require(self, operation: Operation) -> None:
        """Raises ModelUnavailable if this model does not do that."""
        if operation not in self.model.info.operations:
            does = ", ".join(self.model.info.operations)
            raise ModelUnavailable(f"Model {self.model.info.name} does not {operation}; it does {does}.")


class Loader:
    """Knows how large a model is and what a device holds, loads it, warms it, and lets go of it."""

    def __init__(self, settings: Settings, catalog: ModelCatalog, watch: Watch = lambda *_: nullcontext()) -> None:
        self._settings = settings
        self._watch = watch
        self._catalog = catalog
        self.device = choose_device(settings)

    def measure(self, name: str) -> tuple[str, int]:
        """(device, bytes of its weights there). A hub model is downloaded first. Raises ModelUnavailable."""
        device = self._catalog.placed(name, self.device)
        dtype = resolve_dtype(self._catalog.spec(name).dtype, device)  # either half is two bytes wide
        parameters = self._catalog.fetch(name).parameters or 0
        return ("cuda:0" if device == "cuda" else device), parameters * ITEM_BYTES[dtype]

    def budget(self, device: str) -> int:
        """Bytes of weights that this process may hold on a device."""
        if self._settings.model_memory_bytes:
            return self._settings.model_memory_bytes
        if device == "cpu":
            return int(host_memory_bytes() * _CPU_SHARE)
        import torch

        return int(torch.cuda.mem_get_info(device)[1] * _GPU_SHARE)

    def load(self, name: str) -> LoadedModel:
        """Raises RevlnError, and nothing else."""
        started = time.monotonic()
        try:
            model = self._catalog.load(name, self.device)
            batcher = Batcher(
                model,
                max_batch=self._settings.batch_max,
                max_wait_s=self._settings.batch_wait_ms / 1000,
                watch=self._watch,
            )
            try:
                _warm(model, batcher)
            except BaseException:
                batcher.close()
                raise
        except RevlnError:
            raise
        except Exception as err:
            if out_of_memory(err):
                raise Unavailable(f"There was not enough memory to load model {name}.") from err
            # Of every kind: what stands in a checkpoint decides what a library stumbles over.
            raise ModelUnavailable(f"Model {name} could not be loaded: {type(err).__name__}: {str(err)[:300]}") from err
        log.info("model %s is ready on %s after %.1f s", name, model.device, time.monotonic() - started)
        return LoadedModel(model, batcher)


def release_memory() -> None:
    """Give the memory of models that nobody refers to any more back to the device and to the system."""
    gc.collect()  # networks refer to themselves in cycles
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
    give_back_freed_memory()


def _warm(model: Model, batcher: Batcher) -> None:
    """Run each operation once: the first pass allocates, picks kernels and finds out whether it works at all."""
    picture = Image.new("RGB", (64, 64), (127, 127, 127))
    examples: dict[Operation, Any] = {
        Operation.EMBED_IMAGE: picture,
        Operation.EMBED_TEXT: "a picture",
        Operation.CAPTION: CaptionRequest(picture),
    }
    for operation in model.info.operations:
        try:
            prepared = model.prepare(operation, examples[operation])
            raw = batcher.submit(operation, prepared, Priority.INTERACTIVE).result(timeout=_WARM_UP_S)
            if isinstance(result := finished(model, operation, raw), ItemError):
                raise result
        except OutOfMemory as err:
            raise Unavailable(f"There was not enough memory to try model {model.info.name}.") from err
        except Exception as err:
            raise JobError(f"Model {model.info.name} fails at {operation} on {_TRIED[operation]}: {err}") from err


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
