"""Captioners of transformers as Models: VisionEncoderDecoder (ViT-GPT2), BLIP, GIT.

Li et al., ICML 2022 (BLIP); Wang et al., TMLR 2022 (GIT). Processor, tokenizer, networks and `generate` are the
library's. None of the three was trained with other captions in its prompt, so evidence does not go there.

Where the library's own ``generate`` first encodes the picture and then asks its text decoder, the decoder is asked
directly: it counts positions from the mask, which a prompt that is padded on the left needs.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer, GenerationConfig

from revln.errors import ModelUnavailable
from revln.models.base import Caption, CaptionOptions, CaptionRequest, ModelInfo, Operation
from revln.models.checkpoint import Checkpoint
from revln.models.decoding import Decoded, Row, Tokens, copies, decode, seed_from
from revln.models.transfer import Collated, Transfer
from revln.models.transformers_common import load_part, load_weights

__all__ = ["Captioning", "Prepared", "end_tokens", "load_blip", "load_git", "load_vision_encoder_decoder"]

# Pictures in one forward pass; each is as many rows as there are beams or samples.
_MAX_BATCH = {"cpu": 8, "cuda": 32}
# What a checkpoint says of its tokens; how to search is the request's to say.
_STRUCTURE = (
    "bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "forced_bos_token_id",
    "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens", "bad_words_ids",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Prepared:
    """One picture: the row to decode, and what the network wants beside it.

    Attributes:
        inputs: (1, …) tensors, or (patches, …) where a processor packs them.
        by_token: (1, T) tensors beside the prompt's ids.
    """

    row: Row
    options: CaptionOptions
    inputs: Mapping[str, Tensor]
    by_token: Mapping[str, Tensor]


class Captioning:
    """Implements revln.models.base.Overlapping. ``forward`` belongs to one thread; the rest is thread-safe."""

    # Whether prompts of different length can share a batch: the network must take positions from the mask.
    pads = True

    def __init__(
        self, info: ModelInfo, net: Any, reader: Any, tokenizer: Any, tokens: Tokens, device: str, dtype: str
    ) -> None:
        self.info = info
        self.device = device
        self.dtype = dtype
        self.net = net
        self.reader = reader
        self.tokenizer = tokenizer
        self.tokens = tokens
        self.lock = Lock()  # the tokenizers library fails when two threads read at once with different settings
        net.generation_config = _structure(net.generation_config)
        self._transfer = Transfer(device, dtype)

    def prompt(self, request: CaptionRequest) -> tuple[list[int], Mapping[str, Tensor], Mapping[str, Tensor]]:
        """The ids before the user's prefix, and the inputs as in `Prepared`."""
        raise NotImplementedError

    def generate(
        self, rows: Sequence[Row], options: CaptionOptions, inputs: Mapping[str, Tensor]
    ) -> list[list[Decoded]]:
        """``inputs`` hold each row ``copies(options)`` times."""
        raise NotImplementedError

    def positions(self) -> int:
        """How many tokens there are places for, prompt included."""
        return int(self.net.config.get_text_config(decoder=True).max_position_embeddings)

    def prepare(self, operation: Operation, item: Any) -> Prepared:  # noqa: ARG002
        request = cast(CaptionRequest, item)
        before, inputs, by_token = self.prompt(request)
        own = self.encode(request.prompt.strip())
        # At least one token must fit behind the prompt.
        own = own[: max(0, self.positions() - len(before) - 1)]
        room = max(1, min(request.options.max_new_tokens, self.positions() - len(before) - len(own)))
        seed = seed_from(request.options.seed, *(t.numpy().tobytes() for _, t in sorted(inputs.items())))
        padded = {name: torch.nn.functional.pad(t, (0, len(own))) for name, t in by_token.items()}
        row = Row([*before, *own], len(own), seed)
        return Prepared(row, replace(request.options, max_new_tokens=room), inputs, padded)

    def merge_key(self, operation: Operation, prepared: Prepared) -> Hashable:  # noqa: ARG002
        shapes = tuple((name, tuple(t.shape)) for name, t in sorted(prepared.inputs.items()))
        return replace(prepared.options, seed=0), shapes, None if self.pads else len(prepared.row.prompt)

    def collate(self, operation: Operation, batch: Sequence[Prepared]) -> Collated:  # noqa: ARG002
        """What the network wants beside the prompts, which stay here: padding wants them here."""
        spread = [item for item in batch for _ in range(copies(batch[0].options))]
        joined = {name: torch.cat([item.inputs[name] for item in spread]) for name in batch[0].inputs}
        longest = max(len(item.row.prompt) for item in batch)
        for name in batch[0].by_token:
            rows = [item.by_token[name] for item in spread]
            joined[name] = torch.cat([torch.nn.functional.pad(t, (longest - t.shape[1], 0)) for t in rows])
        return Collated(self._transfer.send(joined), batch)

    @torch.inference_mode()
    def forward_collated(self, operation: Operation, collated: Collated) -> Sequence[Any]:  # noqa: ARG002
        batch: Sequence[Prepared] = collated.kept
        inputs = self._transfer.receive(collated.sent)
        found = self.generate([item.row for item in batch], batch[0].options, inputs)
        return [(self._prefix(item), captions) for item, captions in zip(batch, found, strict=True)]

    def forward(self, operation: Operation, batch: Sequence[Prepared]) -> Sequence[Any]:
        return self.forward_collated(operation, self.collate(operation, batch))

    def finish(self, operation: Operation, raw: Any) -> tuple[Caption, ...]:  # noqa: ARG002
        prefix, found = raw
        with self.lock:
            texts = self.tokenizer.batch_decode([[*prefix, *one.ids] for one in found], skip_special_tokens=True)
        return tuple(Caption(" ".join(text.split()), one.log_prob) for text, one in zip(texts, found, strict=True))

    def max_batch(self, operation: Operation) -> int:  # noqa: ARG002
        return _MAX_BATCH["cpu" if self.device == "cpu" else "cuda"]

    def encode(self, text: str) -> list[int]:
        with self.lock:
            return list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

    @staticmethod
    def _prefix(item: Prepared) -> list[int]:
        return list(item.row.prompt[len(item.row.prompt) - item.row.prefix :])


class _OverPicture(Captioning):
    """A picture, and one token to begin with."""

    def __init__(self, *args: Any, start: int, **more: Any) -> None:
        super().__init__(*args, **more)
        self._start = start

    def prompt(self, request: CaptionRequest) -> tuple[list[int], Mapping[str, Tensor], Mapping[str, Tensor]]:
        picture: Image.Image = request.image
        return [self._start], {"pixel_values": self.reader(images=picture, return_tensors="pt")["pixel_values"]}, {}


class _VisionEncoderDecoder(_OverPicture):
    def generate(
        self, rows: Sequence[Row], options: CaptionOptions, inputs: Mapping[str, Tensor]
    ) -> list[list[Decoded]]:
        N = copies(options)
        seen = self.net.encoder(pixel_values=inputs["pixel_values"][::N]).last_hidden_state  # (B, P, W)
        if hasattr(self.net, "enc_to_dec_proj"):
            seen = self.net.enc_to_dec_proj(seen)
        seen = seen.repeat_interleave(N, dim=0)
        return decode(self.net.decoder, rows, options, self.tokens, self.device, encoder_hidden_states=seen)


class _Blip(_OverPicture):
    def generate(
        self, rows: Sequence[Row], options: CaptionOptions, inputs: Mapping[str, Tensor]
    ) -> list[list[Decoded]]:
        N = copies(options)
        seen = self.net.vision_model(pixel_values=inputs["pixel_values"][::N]).last_hidden_state  # (B, P, W)
        seen = seen.repeat_interleave(N, dim=0)
        return decode(self.net.text_decoder, rows, options, self.tokens, self.device, encoder_hidden_states=seen)


class _Git(_OverPicture):
    """The picture's tokens stand before the text's in one sequence, and in the cache."""

    def generate(
        self, rows: Sequence[Row], options: CaptionOptions, inputs: Mapping[str, Tensor]
    ) -> list[list[Decoded]]:
        return decode(self.net, rows, options, self.tokens, self.device, pixel_values=inputs["pixel_values"])


def load_vision_encoder_decoder(info: ModelInfo, checkpoint: Checkpoint, device: str, dtype: str) -> Captioning:
    """The family's entry in `revln.models.families`; raises ModelUnavailable, as the two below."""
    net, reader, tokenizer = _parts(checkpoint, device, dtype)
    settings, config = net.generation_config, net.config
    starts = (settings.decoder_start_token_id, config.decoder.bos_token_id, tokenizer.bos_token_id)
    start = next((each for each in starts if each is not None), None)
    ends = end_tokens(checkpoint, settings.eos_token_id, config.decoder.eos_token_id, tokenizer.eos_token_id)
    if start is None:
        raise ModelUnavailable(f"{checkpoint.source} does not say decoder_start_token_id; fetch the model again.")
    net.decoder.generation_config = _structure(settings)
    net.decoder.config.pad_token_id = None  # where it is the start token as well, every prompt would be warned of
    tokens = Tokens(_pad(tokenizer, ends), ends)
    return _VisionEncoderDecoder(info, net, reader, tokenizer, tokens, device, dtype, start=int(start))


def load_blip(info: ModelInfo, checkpoint: Checkpoint, device: str, dtype: str) -> Captioning:
    net, reader, tokenizer = _parts(checkpoint, device, dtype)
    text = net.config.text_config
    ends = end_tokens(checkpoint, text.sep_token_id)
    net.text_decoder.generation_config = _structure(net.text_decoder.generation_config)
    tokens = Tokens(_pad(tokenizer, ends), ends)
    return _Blip(info, net, reader, tokenizer, tokens, device, dtype, start=int(text.bos_token_id))


def load_git(info: ModelInfo, checkpoint: Checkpoint, device: str, dtype: str) -> Captioning:
    net, reader, tokenizer = _parts(checkpoint, device, dtype)
    ends = end_tokens(checkpoint, net.generation_config.eos_token_id, net.config.eos_token_id)
    start = net.generation_config.bos_token_id
    start = net.config.bos_token_id if start is None else start
    tokens = Tokens(_pad(tokenizer, ends), ends)
    return _Git(info, net, reader, tokenizer, tokens, device, dtype, start=int(start))


def end_tokens(checkpoint: Checkpoint, *said: int | list[int] | None) -> tuple[int, ...]:
    """The first that is said. Raises ModelUnavailable."""
    for each in said:
        if each is not None:
            return tuple(each) if isinstance(each, list) else (int(each),)
    raise ModelUnavailable(f"{checkpoint.source} does not say which token ends a text (eos_token_id).")


def _parts(checkpoint: Checkpoint, device: str, dtype: str) -> tuple[Any, Any, Any]:
    return (
        load_weights(AutoModelForImageTextToText, checkpoint, device, dtype),
        load_part(AutoImageProcessor, checkpoint),
        load_part(AutoTokenizer, checkpoint),
    )


def _pad(tokenizer: Any, ends: tuple[int, ...]) -> int:
    return int(ends[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id)


def _structure(settings: GenerationConfig) -> GenerationConfig:
    said = {name: getattr(settings, name, None) for name in _STRUCTURE}
    return GenerationConfig(**{name: value for name, value in said.items() if value is not None})
