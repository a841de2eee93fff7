"""Sentence encoders for text alone: BERT, MiniLM, MPNet, XLM-R and their kin, pooled as their folder says.

Reimers and Gurevych, Sentence-BERT, EMNLP 2019 (arXiv:1908.10084). The transformer and tokenizer are the library's;
pooling and dense layers follow sentence-transformers' files, without needing that library.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from revln.errors import ModelUnavailable
from revln.models.base import ModelInfo, Operation
from revln.models.checkpoint import Checkpoint
from revln.models.encoder import Encoder
from revln.models.sentence_card import Dense, Recipe
from revln.models.text_batch import TextReader
from revln.models.transfer import DTYPES
from revln.models.transformers_common import load_part, load_weights

__all__ = ["SentenceEncoder", "load"]

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "Identity": nn.Identity, "Tanh": nn.Tanh, "ReLU": nn.ReLU, "GELU": nn.GELU, "Sigmoid": nn.Sigmoid,
}  # fmt: skip
# These count positions from behind the padding token's id, so that many fewer are left for tokens.
_SHIFTED = frozenset({"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet"})


class SentenceEncoder(Encoder):
    """``forward`` belongs to one thread; the rest is thread-safe."""

    def __init__(
        self, info: ModelInfo, net: Any, head: nn.Sequential, texts: TextReader, recipe: Recipe, device: str, dtype: str
    ) -> None:
        super().__init__(info, device, dtype)
        self._net = net
        self._head = head
        self._texts = texts
        self._recipe = recipe

    def prepare(self, operation: Operation, item: Any) -> Mapping[str, Any]:  # noqa: ARG002
        text = cast(str, item)
        # An empty text stays one, prompt or not.
        text = self._recipe.prompt + text if text.strip() else text
        return self._texts.read(text.lower() if self._recipe.lower_case else text)

    def join(self, operation: Operation, batch: Sequence[Mapping[str, Any]]) -> Mapping[str, Tensor]:  # noqa: ARG002
        return self._texts.pad(batch)

    def encode(self, operation: Operation, inputs: Mapping[str, Tensor]) -> Tensor:  # noqa: ARG002
        states = self._net(**inputs).last_hidden_state  # (B, T, H)
        mask = inputs["attention_mask"][:, :, None].to(states.dtype)  # (B, T, 1)
        pooled = torch.cat([_pool(mode, states, mask) for mode in self._recipe.poolings], dim=1)
        return cast(Tensor, self._head(pooled))  # (B, D)


def load(info: ModelInfo, checkpoint: Checkpoint, device: str, dtype: str) -> SentenceEncoder:
    """The family's entry in `revln.models.families`.

    Raises:
        ModelUnavailable: a file is missing or damaged, or the weights do not fit.
    """
    recipe = Recipe.read(checkpoint)
    tokenizer = load_part(AutoTokenizer, checkpoint)
    # Many were saved without the pooler, which none of our poolings uses.
    net = load_weights(AutoModel, checkpoint, device, dtype, unused=("pooler.",))
    positions = net.config.max_position_embeddings
    if net.config.model_type in _SHIFTED:
        positions -= net.config.pad_token_id + 1
    texts = TextReader(tokenizer, min(positions, recipe.max_tokens or positions))
    head = nn.Sequential(*(_dense(checkpoint, layer) for layer in recipe.dense))
    return SentenceEncoder(
        info,
        net,
        head.to(device=device, dtype=DTYPES[dtype]).eval().requires_grad_(False),
        texts,
        recipe,
        device,
        dtype,
    )


def _pool(mode: str, states: Tensor, mask: Tensor) -> Tensor:
    """(B, T, H) and (B, T, 1) → (B, H), padding left out."""
    if mode == "cls":
        first = mask.argmax(dim=1, keepdim=True).expand(-1, -1, states.shape[2])  # the first token, on whichever side
        return states.gather(1, first)[:, 0]
    if mode == "max":
        return states.masked_fill(mask == 0, torch.finfo(states.dtype).min).amax(dim=1)
    count = mask.sum(dim=1).clamp(min=1e-9)  # (B, 1)
    return (states * mask).sum(dim=1) / (count.sqrt() if mode == "mean_sqrt_len" else count)


def _dense(checkpoint: Checkpoint, layer: Dense) -> nn.Module:
    path = checkpoint.folder / layer.folder / "model.safetensors"
    if layer.activation not in _ACTIVATIONS:
        raise ModelUnavailable(
            f"{checkpoint.source} ends in a {layer.activation}; revln knows {', '.join(_ACTIVATIONS)}."
        )
    try:
        weights = load_file(path)
        weight, bias = weights["linear.weight"], weights.get("linear.bias")
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
        linear.load_state_dict({"weight": weight, **({} if bias is None else {"bias": bias})})
    except (OSError, SafetensorError, KeyError, RuntimeError) as err:
        raise ModelUnavailable(f"{path} cannot be read ({err}); fetch the model again.") from err
    return nn.Sequential(linear, _ACTIVATIONS[layer.activation]())
