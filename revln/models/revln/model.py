"""The revln family as a Model: a CNN and a GRU in one joint space, and a retrieval-prompted decoder over the CNN."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from revln.errors import ItemInvalid, ModelUnavailable
from revln.models.base import Caption, CaptionRequest, ModelInfo, Operation
from revln.models.checkpoint import Checkpoint
from revln.models.decoding import seed_from
from revln.models.revln.captioning import PreparedCaption, RawCaptions, caption
from revln.models.revln.card import TOKENIZER_FILE, WEIGHTS_FILE, RevlnConfig, describe
from revln.models.revln.image_cnn import pixels, to_unit
from revln.models.revln.net import RevlnNet
from revln.models.revln.text_gru import pad
from revln.models.revln.tokenizer import Tokenizer
from revln.models.transfer import DTYPES, Collated, Transfer

__all__ = ["RevlnModel", "load", "load_checkpoint"]

# Images and texts on a GPU: large enough to fill it. On a CPU more than this gains nothing and delays the neighbours.
_MAX_BATCH = {"cuda": {"embed": 256, "caption": 64}, "cpu": {"embed": 32, "caption": 8}}


class RevlnModel:
    """Implements revln.models.base.Overlapping. ``forward`` belongs to one thread; the rest is thread-safe."""

    def __init__(
        self, info: ModelInfo, config: RevlnConfig, net: RevlnNet, tokenizer: Tokenizer, device: str, dtype: str
    ) -> None:
        self.info = info
        self.device = device
        self.dtype = dtype
        self.config = config
        self.tokenizer = tokenizer
        self.net = net.to(device=device, dtype=DTYPES[dtype]).eval().requires_grad_(False)
        self.net.image.to(memory_format=torch.channels_last)
        for gru in (self.net.text.rightward, self.net.text.leftward):
            gru.flatten_parameters()  # apart, as ``to`` leaves them, cuDNN puts them together on every call
        self._transfer = Transfer(device, dtype)

    def prepare(self, operation: Operation, item: Any) -> Any:
        if operation is Operation.EMBED_IMAGE:
            return pixels(cast(Image.Image, item), self.config.image_size)
        if operation is Operation.EMBED_TEXT:
            return self._text(cast(str, item))
        return self._caption(cast(CaptionRequest, item))

    def merge_key(self, operation: Operation, prepared: Any) -> Hashable:
        return replace(prepared.options, seed=0) if operation is Operation.CAPTION else None

    def collate(self, operation: Operation, batch: Sequence[Any]) -> Collated:
        """Pictures go to the device as bytes. Prompts stay here: padding wants them here."""
        if operation is Operation.EMBED_TEXT:
            ids, lengths = pad(batch)
            return Collated(self._transfer.send({"ids": ids, "lengths": lengths}), batch)
        images = batch if operation is Operation.EMBED_IMAGE else [item.image for item in batch]
        return Collated(self._transfer.send({"images": torch.stack(list(images))}), batch)

    @torch.inference_mode()
    def forward_collated(self, operation: Operation, collated: Collated) -> Sequence[Any]:
        sent = self._transfer.receive(collated.sent)
        if operation is Operation.EMBED_IMAGE:
            return list(self.net.image.vectors(self._unit(sent["images"]), self.config.mirror).cpu())
        if operation is Operation.EMBED_TEXT:
            return list(self.net.text(sent["ids"], sent["lengths"]).cpu())
        return self._forward_captions(collated.kept, sent["images"])

    def forward(self, operation: Operation, batch: Sequence[Any]) -> Sequence[Any]:
        return self.forward_collated(operation, self.collate(operation, batch))

    def finish(self, operation: Operation, raw: Any) -> Any:
        if operation is not Operation.CAPTION:
            return cast(Tensor, raw).numpy().astype(np.float32, copy=False)
        return tuple(
            Caption(self.tokenizer.decode(ids), log_prob, confidence)
            for ids, log_prob, confidence in cast(RawCaptions, raw)
        )

    def max_batch(self, operation: Operation) -> int:
        sizes = _MAX_BATCH["cpu" if self.device == "cpu" else "cuda"]
        return sizes["caption" if operation is Operation.CAPTION else "embed"]

    def count_tokens(self, text: str) -> int:
        return len(self.tokenizer.encode(text.strip()))

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text.strip())[: self.config.text_tokens] if text.strip() else []

    def _text(self, text: str) -> list[int]:
        ids = self._ids(text)
        if not ids:
            raise ItemInvalid(f"the text {text[:40]!r} is empty; send at least one character that is not a space")
        return ids

    def _caption(self, request: CaptionRequest) -> PreparedCaption:
        config, options = self.config, request.options
        prefix = self.tokenizer.encode(request.prompt.strip())[: config.prefix_tokens] if request.prompt.strip() else []
        if options.no_repeat_ngram_size is None:
            options = replace(options, no_repeat_ngram_size=config.caption_no_repeat_ngram_size)
        room = min(options.max_new_tokens, config.max_new_tokens)
        image = pixels(request.image, config.image_size)
        seed = seed_from(options.seed, image.numpy().tobytes())
        told = tuple(one.text for one in request.evidence if one.text.strip())
        return PreparedCaption(image, told, tuple(prefix), replace(options, max_new_tokens=room), seed)

    def _unit(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) uint8 → what the trunk takes"""
        return to_unit(images, DTYPES[self.dtype]).contiguous(memory_format=torch.channels_last)

    def _forward_captions(self, batch: Sequence[PreparedCaption], images: Tensor) -> list[RawCaptions]:
        places = self.net.image.places(self._unit(images))  # (B, P, 1280)
        return caption(self.net, self.config, self.tokenizer, places, batch)


def load_checkpoint(info: ModelInfo, checkpoint: Checkpoint, device: str, dtype: str) -> RevlnModel:
    """The family's entry in `revln.models.families`."""
    return _load(info, checkpoint.folder, device, dtype)


def load(name: str, folder: Path, device: str, dtype: str = "float32") -> RevlnModel:
    """Load a checkpoint folder.

    Raises:
        ModelUnavailable: a file is missing or damaged, the weights do not fit the configuration, or an unknown dtype.
    """
    if dtype not in DTYPES:
        raise ModelUnavailable(f"dtype '{dtype}' is not one of {', '.join(DTYPES)}")
    return _load(describe(name, folder), folder, device, dtype)


def _load(info: ModelInfo, folder: Path, device: str, dtype: str) -> RevlnModel:
    config = RevlnConfig.read(folder)
    tokenizer = Tokenizer.read(folder / TOKENIZER_FILE)
    net = RevlnNet(config)
    try:
        missing, unexpected = net.load_state_dict(load_file(folder / WEIGHTS_FILE), strict=False)
    except (SafetensorError, RuntimeError) as err:
        raise ModelUnavailable(f"{folder / WEIGHTS_FILE} does not fit its config.json: {err}") from err
    # The head is tied to the token embedding, and batch norm's step counters mean nothing outside training.
    lacking = [key for key in missing if key != "captioner.gpt2.lm_head.weight" and "num_batches" not in key]
    if lacking or unexpected:
        raise ModelUnavailable(
            f"{folder / WEIGHTS_FILE} does not fit its config.json: lacks {lacking[:3]}, has unknown {unexpected[:3]}"
        )
    return RevlnModel(info, config, net, tokenizer, device, dtype)
