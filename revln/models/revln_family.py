"""The revln family as a Model: a CNN and a GRU in one joint space, and a retrieval-prompted decoder over the CNN."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from revln.errors import ItemInvalid, ModelUnavailable
from revln.models.base import Caption, CaptionOptions, CaptionRequest, ModelInfo, Operation
from revln.models.captioner import Captioner
from revln.models.checkpoint import Checkpoint
from revln.models.decoding import Decoded, Row, seed_from
from revln.models.image_cnn import CHANNELS, ImageEncoder, pixels, to_unit
from revln.models.revln_card import TOKENIZER_FILE, WEIGHTS_FILE, RevlnConfig, describe
from revln.models.text_gru import TextEncoder, pad
from revln.models.tokenizer import PAD, Tokenizer
from revln.models.transfer import DTYPES, Collated, Transfer

__all__ = ["PreparedCaption", "RevlnModel", "RevlnNet", "load", "load_checkpoint"]

# Images and texts on a GPU: large enough to fill it. On a CPU more than this gains nothing and delays the neighbours.
_MAX_BATCH = {"cuda": {"embed": 256, "caption": 64}, "cpu": {"embed": 32, "caption": 8}}


class RevlnNet(nn.Module):
    """The three networks, as trained and as saved."""

    def __init__(self, config: RevlnConfig) -> None:
        super().__init__()
        self.image = ImageEncoder(config.dim, config.pool_heads)
        self.text = TextEncoder(config.vocab_size, config.text_embedding, config.text_hidden, config.dim)
        self.captioner = Captioner(
            channels=CHANNELS,
            places=config.places,
            vocab_size=config.vocab_size,
            positions=config.caption_positions,
            width=config.caption_width,
            layers=config.caption_layers,
            heads=config.caption_heads,
            inner=config.caption_inner,
        )


@dataclass(frozen=True, slots=True)
class PreparedCaption:
    """One picture's bytes, its prompt's tokens, and how to decode. ``prefix`` is what the user asked it to continue."""

    image: Tensor  # (3, S, S) uint8
    prompt: tuple[int, ...]
    prefix: tuple[int, ...]
    options: CaptionOptions
    seed: int  # the row's own


# The ids as told, the user's prefix included, and their log-probability.
_RawCaption = list[tuple[list[int], float]]


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
        return tuple(Caption(self.tokenizer.decode(ids), log_prob) for ids, log_prob in cast(_RawCaption, raw))

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
        best = [evidence.text for evidence in request.evidence[: config.max_evidence]]
        prefix = self.tokenizer.encode(request.prompt.strip())[: config.prefix_tokens] if request.prompt.strip() else []
        prompt = (*self.tokenizer.prompt(best, config.evidence_tokens), *prefix)
        if options.no_repeat_ngram_size is None:
            options = replace(options, no_repeat_ngram_size=config.caption_no_repeat_ngram_size)
        room = min(options.max_new_tokens, config.max_new_tokens)
        image = pixels(request.image, config.image_size)
        seed = seed_from(options.seed, image.numpy().tobytes())
        return PreparedCaption(image, prompt, tuple(prefix), replace(options, max_new_tokens=room), seed)

    def _unit(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) uint8 → what the trunk takes"""
        return to_unit(images, DTYPES[self.dtype]).contiguous(memory_format=torch.channels_last)

    def _forward_captions(self, batch: Sequence[PreparedCaption], images: Tensor) -> list[_RawCaption]:
        places = self.net.image.places(self._unit(images))  # (B, P, 1280)
        rows = [Row(item.prompt, len(item.prefix), item.seed) for item in batch]
        options = batch[0].options
        beams = max(options.num_beams, options.num_captions)
        ranked = self.config.caption_cosine != 0 and options.temperature == 0 and beams > 1
        asked = replace(options, num_captions=beams) if ranked else options
        found = self.net.captioner.generate(self.net.captioner.look(places), rows, asked)
        if ranked:
            found = self._rank(batch, places, found)
        # The caption that a user asked to have continued is returned whole; its log-probability is of the new tokens.
        return [
            [([*item.prefix, *one.ids], one.log_prob) for one in captions]
            for item, captions in zip(batch, found, strict=True)
        ]

    def _rank(
        self, batch: Sequence[PreparedCaption], places: Tensor, found: Sequence[Sequence[Decoded]]
    ) -> list[list[Decoded]]:
        """Of each picture's beams the ``num_captions`` best: those that are likely, and near it in the joint space."""
        texts = [
            self._ids(self.tokenizer.decode([*item.prefix, *one.ids]))
            for item, beams in zip(batch, found, strict=True)
            for one in beams
        ]
        ids, lengths = pad([text or [PAD] for text in texts])
        told = self.net.text(ids.to(self.device), lengths).unflatten(0, (len(batch), -1))  # (B, N, D)
        cosines = torch.einsum("bd,bnd->bn", self.net.image.embed(places), told)  # (B, N)
        # A caption without a word is near nothing.
        cosines = cosines.cpu().where(torch.tensor([bool(text) for text in texts]).view(cosines.shape), 0.0)
        options = batch[0].options

        def score(one: Decoded, cosine: float) -> float:
            likely: float = one.log_prob / (len(one.ids) + 1) ** options.length_penalty
            return likely + self.config.caption_cosine * cosine

        ranked = [
            sorted(zip(beams, near, strict=True), key=lambda pair: -score(*pair))
            for beams, near in zip(found, cosines.tolist(), strict=True)
        ]
        return [[one for one, _ in beams[: options.num_captions]] for beams in ranked]


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
