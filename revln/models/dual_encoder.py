"""Dual encoders of transformers as Models: CLIP, SigLIP, SigLIP 2 (NaFlex too), Chinese-CLIP, ALIGN.

Radford et al., ICML 2021 (CLIP); Zhai et al., ICCV 2023 (SigLIP); Tschannen et al., arXiv:2502.14786 (SigLIP 2); Yang
et al., arXiv:2211.01335 (Chinese-CLIP); Jia et al., ICML 2021 (ALIGN). Everything is the library's: processor,
tokenizer, ``get_image_features``, ``get_text_features``; only the unit norm is added.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from revln.errors import ModelUnavailable
from revln.models.base import ModelInfo, Operation
from revln.models.checkpoint import Checkpoint
from revln.models.dual_encoder_card import reads_lower_case
from revln.models.encoder import Encoder
from revln.models.text_batch import TextReader
from revln.models.transformers_common import load_part, load_weights

__all__ = ["DualEncoder", "load"]

# Trained on texts padded to the end without a mask: padding is part of what the model expects to see.
_PADDED_TO_THE_END = frozenset({"siglip", "siglip2"})


class DualEncoder(Encoder):
    """Implements revln.models.base.Counting too. ``forward`` belongs to one thread; the rest is thread-safe."""

    def __init__(self, info: ModelInfo, net: Any, pictures: Any, texts: TextReader, device: str, dtype: str) -> None:
        super().__init__(info, device, dtype)
        self._net = net
        self._pictures = pictures
        self._texts = texts

    def prepare(self, operation: Operation, item: Any) -> Mapping[str, Any]:
        if operation is Operation.EMBED_TEXT:
            return self._texts.read(cast(str, item))
        return dict(self._pictures(images=cast(Image.Image, item), return_tensors="pt"))

    def count_tokens(self, text: str) -> int:
        return self._texts.count(text)

    def merge_key(self, operation: Operation, prepared: Mapping[str, Any]) -> Hashable:
        # A processor that does not resize gives pictures of several shapes; they cannot share a tensor.
        return None if operation is Operation.EMBED_TEXT else tuple(tuple(t.shape) for t in prepared.values())

    def join(self, operation: Operation, batch: Sequence[Mapping[str, Any]]) -> Mapping[str, Tensor]:
        if operation is Operation.EMBED_TEXT:
            return self._texts.pad(batch)
        return {name: torch.cat([item[name] for item in batch]) for name in batch[0]}

    def encode(self, operation: Operation, inputs: Mapping[str, Tensor]) -> Tensor:
        net = self._net
        return _pooled(
            (net.get_text_features if operation is Operation.EMBED_TEXT else net.get_image_features)(**inputs)
        )


def load(info: ModelInfo, checkpoint: Checkpoint, device: str, dtype: str) -> DualEncoder:
    """The family's entry in `revln.models.families`.

    Raises:
        ModelUnavailable: a file is missing or damaged, or the weights do not fit.
    """
    pictures = load_part(AutoImageProcessor, checkpoint)
    tokenizer = load_part(AutoTokenizer, checkpoint)
    net = load_weights(AutoModel, checkpoint, device, dtype)
    if not hasattr(net, "get_image_features"):
        raise ModelUnavailable(
            f"{checkpoint.source} is a {type(net).__name__}, not a dual encoder of family {info.family}."
        )
    texts = TextReader(
        tokenizer,
        positions=net.config.text_config.max_position_embeddings,
        to_the_end=net.config.model_type in _PADDED_TO_THE_END,
        lower=reads_lower_case(checkpoint),
    )
    return DualEncoder(replace(info, max_tokens=texts.limit), net, pictures, texts, device, dtype)


def _pooled(features: Any) -> Tensor:
    """transformers 5 answers with the tower's outputs, whose pooled one is the feature; before, with the tensor."""
    return cast(Tensor, features if isinstance(features, Tensor) else features.pooler_output)
