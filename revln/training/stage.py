"""One stage of training: epochs with a warm-up and a cosine, saved after each, and resumed to the same result.

Each epoch seeds itself from (seed, stage, epoch), so a run that was cut between two epochs goes on as if it had not.
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from revln.training.curves import Curves

__all__ = ["Schedule", "Stage", "run_stage"]


@dataclass(frozen=True, slots=True)
class Schedule:
    """What all stages share."""

    seed: int
    bf16: bool
    state: Path  # folder of the resumable states
    deadline: float  # time.monotonic() after which no further epoch begins


@dataclass(frozen=True, slots=True)
class Stage:
    """``batches(epoch)`` yields at most ``steps`` batches; ``loss`` turns one into a scalar."""

    name: str
    epochs: int
    steps: int
    groups: list[dict[str, Any]]  # AdamW's parameter groups, each with its peak lr
    modules: Mapping[str, nn.Module]  # what is trained, by name; saved with the state
    batches: Callable[[int], Iterable[Any]]
    loss: Callable[[Any], Tensor]
    validate: Callable[[], dict[str, float]] = field(default=dict)


def run_stage(stage: Stage, schedule: Schedule, curves: Curves) -> None:
    """Train to the last epoch, or to the deadline. A finished stage is loaded, not run again."""
    optimizer = torch.optim.AdamW(stage.groups, weight_decay=0.01, betas=(0.9, 0.98))
    total = stage.epochs * stage.steps
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _factor(step, total))
    path = schedule.state / f"{stage.name}.pt"
    epoch = _restore(path, stage, optimizer, scheduler)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    while epoch < stage.epochs and time.monotonic() < schedule.deadline:
        started, losses = time.monotonic(), []
        torch.manual_seed(zlib.crc32(f"{schedule.seed}/{stage.name}/{epoch}".encode()))
        for module in stage.modules.values():
            module.train()
        progress = tqdm(stage.batches(epoch), total=stage.steps, desc=f"{stage.name} {epoch + 1}/{stage.epochs}")
        for batch in progress:
            with torch.autocast("cpu", torch.bfloat16, enabled=schedule.bf16):
                loss = stage.loss(batch)
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            scheduler.step()
            losses.append(float(loss.detach()))
            progress.set_postfix(loss=f"{losses[-1]:.3f}")
        for module in stage.modules.values():
            module.eval()
        epoch += 1
        figures = {"loss": sum(losses) / max(1, len(losses)), **stage.validate()}
        _save(path, stage, optimizer, scheduler, epoch)
        curves.add(stage.name, epoch, seconds=time.monotonic() - started, **figures)
    for module in stage.modules.values():
        module.eval()


def _factor(step: int, total: int) -> float:
    """Share of the peak learning rate: up over the first 5 % of the steps, then down a cosine to 2 %."""
    warm = max(1, total // 20)
    if step < warm:
        return (step + 1) / warm
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, total - warm))))


def _save(path: Path, stage: Stage, optimizer: Any, scheduler: Any, epoch: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {
        "epoch": epoch,
        "modules": {name: module.state_dict() for name, module in stage.modules.items()},
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
    }
    partial = path.with_suffix(".part")
    torch.save(state, partial)
    partial.replace(path)


def _restore(path: Path, stage: Stage, optimizer: Any, scheduler: Any) -> int:
    if not path.is_file():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    for name, module in stage.modules.items():
        module.load_state_dict(state["modules"][name])
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    return int(state["epoch"])
