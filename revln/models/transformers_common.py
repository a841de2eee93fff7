"""What every family that comes through transformers shares: loading by the Auto classes, and the ways that can fail.

Only files of a checkpoint that is here already are read (`local_files_only`), weights only as safetensors, and no code
that a checkpoint brings along is ever run.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.utils import logging as transformers_logging

from revln.errors import ModelUnavailable
from revln.models.checkpoint import Checkpoint

__all__ = ["DTYPES", "load_part", "load_weights", "max_batch", "to_device"]

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def load_part(auto: Any, checkpoint: Checkpoint, **options: Any) -> Any:
    """A configuration, tokenizer or processor, by one of transformers' Auto classes.

    Raises:
        ModelUnavailable: a file is missing or damaged, or it needs code of its own.
    """
    try:
        return auto.from_pretrained(checkpoint.folder, local_files_only=True, trust_remote_code=False, **options)
    except Exception as err:  # of every kind: the tokenizers library raises bare Exception for what it cannot read
        raise ModelUnavailable(_why(auto, checkpoint, err)) from err


def load_weights(auto: Any, checkpoint: Checkpoint, device: str, dtype: str, **options: Any) -> Any:
    """A model in eval mode on its device, by one of the Auto classes. Every tensor of it comes from the checkpoint.

    Raises:
        ModelUnavailable: as `load_part`; or the weights do not fit the configuration.
    """
    transformers_logging.disable_progress_bar()
    model, info = load_part(
        auto, checkpoint, use_safetensors=True, dtype=DTYPES[dtype], output_loading_info=True, **options
    )
    # transformers would fill what is missing with random numbers and only warn.
    lacking = sorted({*info["missing_keys"], *(str(each[0]) for each in info["mismatched_keys"])})
    if lacking:
        raise ModelUnavailable(
            f"The weights of {checkpoint.source} do not fit its config.json: {len(lacking)} tensors are missing or of "
            f"another shape, {lacking[0]} first. Fetch the model again, or name the family that it was saved as."
        )
    if info["unexpected_keys"]:
        log.info("%s: %d tensors of the file are not used", checkpoint.source, len(info["unexpected_keys"]))
    return model.to(device).eval().requires_grad_(False)


def to_device(tensors: Mapping[str, Tensor], device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Move a batch; floating tensors take the dtype of the weights. To a GPU from pinned memory, without waiting."""
    moved: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        cast = tensor.to(dtype) if tensor.is_floating_point() else tensor
        moved[name] = cast if device == "cpu" else cast.pin_memory().to(device, non_blocking=True)
    return moved


def max_batch(device: str) -> int:
    """Pictures or texts in one forward pass of an encoder: enough to fill a GPU; on a CPU more gains nothing."""
    return 32 if device == "cpu" else 256


def _why(auto: Any, checkpoint: Checkpoint, err: Exception) -> str:
    said = " ".join(str(err).split())
    if "trust_remote_code" in said or "remote code" in said.lower():
        return (
            f"{checkpoint.source} needs code of its own, which revln never runs; use a model that transformers knows."
        )
    return f"{getattr(auto, '__name__', auto)} cannot read {checkpoint.source}: {type(err).__name__}: {said[:300]}"
