"""One stage of training: steps with a warm-up and a cosine, averaged weights, the best epoch kept.

What a step sees hangs on (seed, stage, epoch, step) alone, so a run that was killed anywhere goes on from its last
saved step to the weights that it would have had. Validation and the result use an exponential moving average of the
weights (Polyak and Juditsky, 1992), which on small data is worth more than the last step's.
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from revln.errors import ValidationFailed
from revln.progress_bar import progress_bar
from revln.training.curves import Curves
from revln.training.progress import Progress

__all__ = ["Schedule", "Stage", "convolving", "endless_rows", "rng_of", "rows_of", "run_stage", "steps_of"]


@dataclass(frozen=True, slots=True)
class Schedule:
    """What all stages share."""

    seed: int
    device: torch.device
    bf16: bool
    state: Path  # folder of the resumable states
    save_every_s: float
    patience: int  # epochs without a better figure after which a stage ends
    deadline: float  # time.monotonic() after which no further step begins
    learning_rate: float = 1.0  # factor on what the stages ask for
    told: Callable[[str], Mapping[str, str]] = lambda _: {}  # the options that a stage of that name hangs on


@dataclass(frozen=True, slots=True)
class Stage:
    """``batch(epoch, step)`` is what ``loss`` turns into a scalar; it runs in another thread, one step ahead."""

    name: str
    epochs: int
    steps: int  # in an epoch
    groups: list[dict[str, Any]]  # AdamW's parameter groups, each with its peak lr
    modules: Mapping[str, nn.Module]  # what is trained, by name
    batch: Callable[[int, int], Any]
    loss: Callable[[Any], Tensor]
    validate: Callable[[], dict[str, float]] = field(default=dict)
    best_by: str | None = None  # the figure whose highest value chooses the epoch; None: the last one


def rng_of(*key: int) -> np.random.Generator:
    """A generator that hangs on the key alone: (seed, stage's number, epoch, step)."""
    return np.random.default_rng(key)


@lru_cache(maxsize=4)
def _order(key: tuple[int, ...], weights: tuple[float, ...]) -> npt.NDArray[np.int64]:
    rng = rng_of(*key)
    order = rng.permutation(len(weights))
    # A row of weight 2.5 comes twice or three times; the passes together see each as often as it weighs.
    edges = np.floor(np.cumsum(np.array(weights)[order]) + rng.random()).astype(np.int64)
    return rng.permutation(np.repeat(order, np.diff(edges, prepend=0)))


def rows_of(key: tuple[int, ...], weights: Sequence[float], batch: int, step: int) -> npt.NDArray[np.int64]:
    """Which rows a step of the epoch ``key`` sees; a row of weight 1 is seen once an epoch.

    Whole batches only: a short one has fewer negatives and so another loss. Fewer than one batch is one batch.
    """
    return _order(key, tuple(weights))[step * batch : (step + 1) * batch]


def endless_rows(key: tuple[int, ...], weights: Sequence[float], batch: int, at: int) -> npt.NDArray[np.int64]:
    """Which rows the step ``at`` of a run sees, counted over all epochs: a pass begins where the last one ends."""
    if not batch or not len(weights):
        return np.empty(0, dtype=np.int64)
    steps = steps_of(weights, batch)
    return rows_of((*key, at // steps), weights, batch, at % steps)


def steps_of(weights: Sequence[float], batch: int) -> int:
    """How many steps an epoch has."""
    return max(1, int(math.fsum(weights) // batch))


def run_stage(stage: Stage, schedule: Schedule, curves: Curves) -> None:
    """Train to the last epoch, to patience's end, or to the deadline; leave the best averaged weights in the modules.

    A finished stage is loaded, not run again. When the deadline cuts it, the weights are the best so far.

    Raises:
        ValidationFailed: what was saved is of a run that was told otherwise, or the loss is no number any more.
    """
    groups = [{**group, "lr": group["lr"] * schedule.learning_rate} for group in stage.groups]
    progress = Progress(
        schedule.state / f"{stage.name}.pt", groups, stage.modules, _factor(stage), stage.epochs * stage.steps
    )
    progress.restore({**schedule.told(stage.name), "epochs": str(stage.epochs)})
    while not progress.done and progress.epoch < stage.epochs and time.monotonic() < schedule.deadline:
        started = time.monotonic()
        if not _run_epoch(stage, schedule, progress):
            break
        with progress.averaged():
            figures = {"loss": progress.mean_loss(), **stage.validate()}
        progress.end_epoch(None if stage.best_by is None else figures[stage.best_by])
        progress.done = progress.epoch >= stage.epochs or progress.since_best >= schedule.patience
        progress.save()
        curves.add(stage.name, progress.epoch, seconds=time.monotonic() - started, **figures)
    progress.load_best()


def _run_epoch(stage: Stage, schedule: Schedule, progress: Progress) -> bool:
    """The epoch's remaining steps; False: the deadline came first, and the state is saved."""
    for module in stage.modules.values():
        module.train()
    parameters = [p for group in progress.optimizer.param_groups for p in group["params"]]
    epoch, saved = progress.epoch, time.monotonic()
    named = f"{stage.name} {epoch + 1}/{stage.epochs}"
    with progress_bar(named, stage.steps, done=progress.step) as advance:
        for batch in _ahead(stage, epoch, progress.step):
            torch.manual_seed(zlib.crc32(f"{schedule.seed}/{stage.name}/{epoch}/{progress.step}".encode()))
            with torch.autocast(schedule.device.type, torch.bfloat16, enabled=schedule.bf16):
                loss = stage.loss(batch)
            value = float(loss.detach())
            if not math.isfinite(value):
                raise ValidationFailed(
                    f"the loss of stage {stage.name} became {value} at epoch {epoch + 1}, step {progress.step + 1}; "
                    f"train with a smaller --learning-rate than {schedule.learning_rate:g}, in another --out"
                )
            progress.optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            progress.advance(value)
            advance(1, f"loss {progress.mean_loss():.3f}")
            late = time.monotonic() > schedule.deadline and progress.step < stage.steps
            if late or time.monotonic() - saved > schedule.save_every_s:
                progress.save()
                saved = time.monotonic()
            if late:
                return False
    return True


def convolving(device: torch.device) -> AbstractContextManager[Any]:
    """Around a pass of the trunk: in bfloat16 if the stage is, but never on a CPU.

    Measured on an AVX512-BF16 CPU: the GRU's pass takes half the time in bfloat16, the convolutions' 1.5 times.
    """
    return torch.autocast("cpu", enabled=False) if device.type == "cpu" else nullcontext()


def _ahead(stage: Stage, epoch: int, first: int) -> Iterator[Any]:
    """The batches of an epoch, the next being made while the last is trained on."""
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
        coming = pool.submit(stage.batch, epoch, first) if first < stage.steps else None
        for step in range(first, stage.steps):
            assert coming is not None
            batch = coming.result()
            coming = pool.submit(stage.batch, epoch, step + 1) if step + 1 < stage.steps else None
            yield batch


def _factor(stage: Stage) -> Callable[[int], float]:
    """Share of the peak learning rate: up over the first 5 % of the steps, then down a cosine to 2 %."""
    total = stage.epochs * stage.steps
    warm = max(1, total // 20)

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, total - warm))))

    return factor
