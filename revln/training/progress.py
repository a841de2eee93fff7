"""How far a stage has come: weights, their average, the optimizer, the best epoch; saved whole, restored whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from revln.errors import ValidationFailed
from revln.training.files import replace_file

__all__ = ["Progress"]

# Of the average: the last hundred steps or so, two hundred in a stage that has many; fewer at the start, where weights
# a hundred steps old are of no use.
_MOST_DECAY, _MOST_DECAY_LONG = 0.99, 0.995
_LONG = 300  # steps

_Tensors = tuple[Tensor, ...] | list[Tensor]
_State = dict[str, dict[str, Tensor]]


class Progress:
    """The state of one stage. ``epoch`` and ``step`` are the next to be run."""

    def __init__(
        self,
        path: Path,
        groups: list[dict[str, Any]],
        modules: Mapping[str, nn.Module],
        factor: Callable[[int], float],
        steps: int,
    ) -> None:
        """``steps``: of all epochs together."""
        self._path, self._modules, self._told = path, modules, dict[str, str]()
        self.optimizer = torch.optim.AdamW(groups, weight_decay=0.01, betas=(0.9, 0.98))
        self._scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, factor)
        average = partial(_average, _MOST_DECAY_LONG if steps > _LONG else _MOST_DECAY)
        self._averages = {name: AveragedModel(module, multi_avg_fn=average) for name, module in modules.items()}
        self.epoch, self.step, self.done, self.since_best = 0, 0, False, 0
        self._losses = 0.0
        self._best_figure, self._best = -math.inf, self._averaged_state()

    def advance(self, loss: float) -> None:
        """One optimizer step, with the gradients that stand in the parameters."""
        self.optimizer.step()
        self._scheduler.step()
        for name, average in self._averages.items():
            average.update_parameters(self._modules[name])
        self.step += 1
        self._losses += loss

    def mean_loss(self) -> float:
        return self._losses / max(1, self.step)

    def end_epoch(self, figure: float | None) -> None:
        """Go on to the next epoch; the average is the best so far if ``figure`` is, or if there is none."""
        self.epoch, self.step, self._losses = self.epoch + 1, 0, 0.0
        self.since_best += 1
        if figure is None or figure > self._best_figure:
            self.since_best = 0
            self._best_figure, self._best = figure if figure is not None else -math.inf, self._averaged_state()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The modules in eval mode with the averaged weights; then the trained ones again."""
        trained = {name: _copy(module.state_dict()) for name, module in self._modules.items()}
        self._load(self._averaged_state())
        try:
            yield
        finally:
            self._load(trained)

    def load_best(self) -> None:
        """The best epoch's averaged weights; before any epoch has ended, the average as it stands."""
        self._load(self._best if self.epoch else self._averaged_state())

    def save(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "told": self._told,
            "epoch": self.epoch,
            "step": self.step,
            "done": self.done,
            "since_best": self.since_best,
            "losses": self._losses,
            "best_figure": self._best_figure,
            "best": self._best,
            "modules": {name: module.state_dict() for name, module in self._modules.items()},
            "averages": {name: average.state_dict() for name, average in self._averages.items()},
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self._scheduler.state_dict(),
        }
        replace_file(self._path, lambda partial: torch.save(state, partial))

    def restore(self, told: Mapping[str, str]) -> None:
        """Take up what `save` left, if it did. ``told``: options and their values, all that a state hangs on.

        Raises:
            ValidationFailed: it was saved under others.
        """
        self._told = dict(told)
        if not self._path.is_file():
            return
        device = next(iter(next(iter(self._modules.values())).parameters())).device
        state = torch.load(self._path, map_location=device, weights_only=True)
        before = state.get("told", {})
        for option in sorted(told.keys() | before.keys()):
            was, now = (values.get(option, "not given") for values in (before, told))
            if was != now:
                raise ValidationFailed(f"{self._path} is of a run with {option} {was}, not {now}; name another --out")
        for name in ("epoch", "step", "done", "since_best"):
            setattr(self, name, state[name])
        self._losses, self._best_figure, self._best = state["losses"], state["best_figure"], state["best"]
        self._load(state["modules"])
        for name, average in self._averages.items():
            average.load_state_dict(state["averages"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self._scheduler.load_state_dict(state["scheduler"])

    def _averaged_state(self) -> _State:
        return {name: _copy(average.module.state_dict()) for name, average in self._averages.items()}

    def _load(self, state: _State) -> None:
        for name, module in self._modules.items():
            module.load_state_dict(state[name])
            module.eval()


def _copy(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in state.items()}


@torch.no_grad()
def _average(most_decay: float, averaged: _Tensors, current: _Tensors, steps: Tensor | int) -> None:
    n = int(steps)
    torch._foreach_lerp_(averaged, current, 1.0 - min(most_decay, (1 + n) / (10 + n)))
