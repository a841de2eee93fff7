"""A model whose texts are orders: it waits, hangs or kills its own process. Only the processes of tests know it.

    "sleep 0.5 …"      takes so many seconds
    "gate /path …"     goes on once that file exists, or the one of its own process, /path.PID
    "wait /path …"     the same before the forward pass, so that nobody waits behind it
    "kill …"           SIGKILLs the process that runs it
    "hang …"           never comes back

Everything else is a text like any other, and takes no time.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

from revln.models.base import ModelInfo, Operation
from revln.models.checkpoint import Checkpoint
from revln.models.families import FAMILIES, Family
from tests.word_model import WordModel

__all__ = ["DIM", "FAMILY", "OTHER", "PuppetModel", "describe", "install", "load"]

FAMILY = "puppet"  # and the default model's name
DIM = 8
OTHER = "other"  # another model of the family, in a space of its own


class PuppetModel(WordModel):
    def __init__(self, name: str) -> None:
        super().__init__(name, DIM if name == FAMILY else 2 * DIM)
        self.info = replace(self.info, family=FAMILY)

    def prepare(self, operation: Operation, item: Any) -> Any:
        if isinstance(item, str) and item.startswith("wait "):
            _wait_for(item.split()[1])
        return super().prepare(operation, item)

    def _text(self, text: str) -> Any:
        match text.split():
            case ["sleep", seconds, *_]:
                time.sleep(float(seconds))
            case ["gate", path, *_]:
                _wait_for(path)
            case ["kill", *_]:
                os.kill(os.getpid(), signal.SIGKILL)
            case ["hang", *_]:
                Event().wait()
        return super()._text(text)


def _wait_for(path: str) -> None:
    while not (Path(path).exists() or Path(f"{path}.{os.getpid()}").exists()):
        time.sleep(0.02)


def describe(name: str, family: str, checkpoint: Checkpoint) -> ModelInfo:
    return PuppetModel(name).info


def load(info: ModelInfo, checkpoint: Checkpoint, device: str, dtype: str) -> PuppetModel:
    return PuppetModel(info.name)


def install() -> None:
    """Make the family known to this process and to those it forks."""
    FAMILIES[FAMILY] = Family(f"{__name__}:describe", f"{__name__}:load")
