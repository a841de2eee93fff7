"""What the files of a captioner of transformers say. Imports nothing heavy."""

from __future__ import annotations

from revln.models.base import ModelInfo, Operation
from revln.models.checkpoint import Checkpoint
from revln.models.dual_encoder_card import needed_side

__all__ = ["describe"]


def describe(name: str, family: str, checkpoint: Checkpoint) -> ModelInfo:
    """Raises ModelUnavailable if a file is missing or damaged."""
    return ModelInfo(
        name=name,
        family=family,
        operations=(Operation.CAPTION,),
        dim=None,
        fingerprint=checkpoint.fingerprint(family),
        image_size=needed_side(checkpoint),
        parameters=checkpoint.parameters(),
    )
