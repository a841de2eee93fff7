"""What every family that comes through transformers shares: loading by the Auto classes, and the ways that can fail.

Only files of a checkpoint that is here already are read (`local_files_only`), weights only as safetensors, and no code
that a checkpoint brings along is ever run.
"""

from __future__ import annotations

import logging
from typing import Any

from transformers.utils import logging as transformers_logging

from revln.errors import ModelUnavailable
from revln.models.checkpoint import Checkpoint
from revln.models.transfer import DTYPES

__all__ = ["load_part", "load_weights"]

log = logging.getLogger(__name__)


def load_part(auto: Any, checkpoint: Checkpoint, **options: Any) -> Any:
    """A configuration, tokenizer or processor, by one of transformers' Auto classes.

    Raises:
        ModelUnavailable: a file is missing or damaged, or it needs code of its own.
    """
    try:
        return auto.from_pretrained(checkpoint.folder, local_files_only=True, trust_remote_code=False, **options)
    except Exception as err:  # of every kind: the tokenizers library raises bare Exception for what it cannot read
        raise ModelUnavailable(_why(auto, checkpoint, err)) from err


def load_weights(
    auto: Any, checkpoint: Checkpoint, device: str, dtype: str, unused: tuple[str, ...] = (), **options: Any
) -> Any:
    """A model in eval mode on its device, by one of the Auto classes. Every tensor of it comes from the checkpoint.

    ``unused``: how the names of tensors begin that the caller does not use, so that they may be missing.

    Raises:
        ModelUnavailable: as `load_part`; or the weights do not fit the configuration.
    """
    transformers_logging.disable_progress_bar()
    model, info = load_part(
        auto, checkpoint, use_safetensors=True, dtype=DTYPES[dtype], output_loading_info=True, **options
    )
    # transformers would fill what is missing with random numbers and only warn.
    bad = {*info["missing_keys"], *(str(each[0]) for each in info["mismatched_keys"])}
    lacking = sorted(name for name in bad if not name.startswith(unused))
    if lacking:
        raise ModelUnavailable(
            f"The weights of {checkpoint.source} do not fit its config.json: {len(lacking)} tensors are missing or of "
            f"another shape, {lacking[0]} first. Fetch the model again, or name the family that it was saved as."
        )
    if info["unexpected_keys"]:
        log.info("%s: %d tensors of the file are not used", checkpoint.source, len(info["unexpected_keys"]))
    return model.to(device).eval().requires_grad_(False)


def _why(auto: Any, checkpoint: Checkpoint, err: Exception) -> str:
    said = " ".join(str(err).split())
    if "trust_remote_code" in said or "remote code" in said.lower():
        return (
            f"{checkpoint.source} needs code of its own, which revln never runs; use a model that transformers knows."
        )
    return f"{getattr(auto, '__name__', auto)} cannot read {checkpoint.source}: {type(err).__name__}: {said[:300]}"
