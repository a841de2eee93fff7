"""Sentence encoders for text alone: BERT, MiniLM, XLM-R, Qwen3, Gemma and their kin, pooled as their folder says.

Reimers and Gurevych, Sentence-BERT, EMNLP 2019 (arXiv:1908.10084). The transformer and tokenizer are the library's;
pooling and dense layers follow sentence-transformers' files, without needing that library.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
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
from revln.models.prompts import Prompts
from revln.models.sentence_card import Dense, Recipe, places
from revln.models.text_batch import POOLED, TextReader
from revln.models.transfer import DTYPES
from revln.models.transformers_common import load_part, load_weights

__all__ = ["SentenceEncoder", "load"]

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "Identity": nn.Identity, "Tanh": nn.Tanh, "ReLU": nn.ReLU, "GELU": nn.GELU, "Sigmoid": nn.Sigmoid,
}  # fmt: skip


class SentenceEncoder(Encoder):
    """Implements revln.models.base.Counting too. ``forward`` belongs to one thread; the rest is thread-safe."""

    def __init__(
        self, info: ModelInfo, net: Any, head: nn.Sequential, texts: TextReader, recipe: Recipe, device: str, dtype: str
    ) -> None:
        super().__init__(info, device, dtype)
        self._net = net
        self._head = head
        self._texts = texts
        self._recipe = recipe
        self._prompts = info.prompts or Prompts()
        self._left_out = {
            prompt: 0 if recipe.pools_prompt or not prompt else texts.count_prompt(prompt)
            for prompt in (self._prompts.query, self._prompts.document)
        }

    def prepare(self, operation: Operation, item: Any) -> Mapping[str, Any]:  # noqa: ARG002
        read = dict(self._texts.read(self._prompted(cast(str, item))))
        if left_out := self._left_out[self._prompts.before(item)]:
            count = len(read["input_ids"])
            read[POOLED] = [0] * min(left_out, count) + [1] * (count - left_out)
        return read

    def count_tokens(self, text: str) -> int:
        return self._texts.count(self._prompted(text))

    def join(self, operation: Operation, batch: Sequence[Mapping[str, Any]]) -> Mapping[str, Tensor]:  # noqa: ARG002
        if any(POOLED in item for item in batch):
            batch = [{POOLED: [1] * len(item["input_ids"]), **item} for item in batch]
        return self._texts.pad(batch)

    def encode(self, operation: Operation, inputs: Mapping[str, Tensor]) -> Tensor:  # noqa: ARG002
        read = {name: tensor for name, tensor in inputs.items() if name != POOLED}
        states = self._net(**read).last_hidden_state  # (B, T, H)
        whole = inputs["attention_mask"]  # (B, T)
        mask = inputs.get(POOLED, whole)
        pooled = torch.cat([_pool(mode, states, mask, whole) for mode in self._recipe.poolings], dim=1)
        return cast(Tensor, self._head(pooled))  # (B, D)

    def _prompted(self, text: str) -> str:
        # An empty text stays one, prompt or not.
        return self._prompts.before(text) + text if text.strip() else text


def load(info: ModelInfo, checkpoint: Checkpoint, device: str, dtype: str) -> SentenceEncoder:
    """The family's entry in `revln.models.families`.

    Raises:
        ModelUnavailable: a file is missing or damaged, or the weights do not fit.
    """
    recipe = Recipe.read(checkpoint)
    tokenizer = load_part(AutoTokenizer, checkpoint)
    # Many were saved without the pooler, which none of our poolings uses.
    net = load_weights(AutoModel, checkpoint, device, dtype, unused=("pooler.",))
    net.config.use_cache = False  # nothing is generated
    texts = TextReader(tokenizer, places(net.config.to_dict()), limit=recipe.max_tokens, lower=recipe.lower_case)
    head = nn.Sequential(*(_layer(checkpoint, layer) for layer in recipe.head))
    return SentenceEncoder(
        replace(info, max_tokens=texts.limit),
        net,
        head.to(device=device, dtype=DTYPES[dtype]).eval().requires_grad_(False),
        texts,
        recipe,
        device,
        dtype,
    )


def _pool(mode: str, states: Tensor, mask: Tensor, whole: Tensor) -> Tensor:
    """(B, T, H) states, (B, T) what is pooled and what is text → (B, H)."""
    T = mask.shape[1]
    if mode in ("cls", "lasttoken"):
        at = mask.argmax(dim=1) if mode == "cls" else T - 1 - mask.flip(1).argmax(dim=1)  # on whichever side padding is
        return states[torch.arange(len(states), device=states.device), at]
    if mode == "max":
        return states.masked_fill(mask[:, :, None] == 0, torch.finfo(states.dtype).min).amax(dim=1)
    weights = mask[:, :, None].float()  # (B, T, 1); half precision counts no further than 2,048
    if mode == "weightedmean":
        weights = weights * whole.cumsum(dim=1)[:, :, None]
    count = weights.sum(dim=1).clamp(min=1e-9)  # (B, 1)
    summed = (states.float() * weights).sum(dim=1)
    return (summed / (count.sqrt() if mode == "mean_sqrt_len_tokens" else count)).to(states.dtype)


class _Normalize(nn.Module):
    def forward(self, vectors: Tensor) -> Tensor:
        return nn.functional.normalize(vectors, dim=-1)


class _Residual(nn.Module):
    """A layer to whose output its input is added, projected where the two are of different width."""

    def __init__(self, layer: nn.Module, project: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.project = project

    def forward(self, vectors: Tensor) -> Tensor:
        return cast(Tensor, self.layer(vectors) + self.project(vectors))


def _layer(checkpoint: Checkpoint, layer: object) -> nn.Module:
    return _dense(checkpoint, layer) if isinstance(layer, Dense) else _Normalize()


def _dense(checkpoint: Checkpoint, layer: Dense) -> nn.Module:
    path = checkpoint.folder / layer.folder / "model.safetensors"
    if layer.activation not in _ACTIVATIONS:
        raise ModelUnavailable(
            f"{checkpoint.source} ends in a {layer.activation}; revln knows {', '.join(_ACTIVATIONS)}."
        )
    try:
        weights = load_file(path)
        whole = nn.Sequential(_linear(weights, "linear"), _ACTIVATIONS[layer.activation]())
        if not layer.residual:
            return whole
        project = _linear(weights, "residual") if "residual.weight" in weights else nn.Identity()
        return _Residual(whole, project)
    except (OSError, SafetensorError, KeyError, RuntimeError) as err:
        raise ModelUnavailable(f"{path} cannot be read ({err}); fetch the model again.") from err


def _linear(weights: Mapping[str, Tensor], name: str) -> nn.Linear:
    weight, bias = weights[f"{name}.weight"], weights.get(f"{name}.bias")
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    linear.load_state_dict({"weight": weight, **({} if bias is None else {"bias": bias})})
    return linear
