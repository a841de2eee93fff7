"""Models that are talked to about a picture (image-text-to-text): Qwen2-VL, SmolVLM, Idefics 3, LLaVA; and Florence-2.

Prompted with the retrieved captions in words, as SmallCap does it (Ramos et al., CVPR 2023), through the checkpoint's
own chat template. Florence-2 (Xiao et al., CVPR 2024) knows only fixed tasks, of which <CAPTION> is one: it takes no
evidence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from revln.errors import ModelUnavailable
from revln.models.base import CaptionOptions, CaptionRequest, ModelInfo
from revln.models.captioners import Captioning, end_tokens
from revln.models.checkpoint import Checkpoint
from revln.models.decoding import Decoded, Row, Tokens, decode
from revln.models.transformers_common import load_part, load_weights

__all__ = ["load"]

_ASKED = "Describe this picture in one short sentence."
_TOLD = "Pictures that look like this one were described so: {}. Some of that may not hold here. "
# So much of one retrieved caption is shown; a caption is a sentence, and what is longer is a text of another kind.
_EVIDENCE_CHARS = 200


class _Chat(Captioning):
    def prompt(self, request: CaptionRequest) -> tuple[list[int], Mapping[str, Tensor], Mapping[str, Tensor]]:
        said = [{"type": "image"}, {"type": "text", "text": _instruction(request)}]
        with self.lock:
            text = self.reader.apply_chat_template([{"role": "user", "content": said}], add_generation_prompt=True)
            read = self.reader(images=[request.image], text=[text], return_tensors="pt")
        ids = read.pop("input_ids")  # (1, T)
        read.pop("attention_mask")
        by_token = {name: t for name, t in read.items() if t.shape == ids.shape}
        return ids[0].tolist(), {name: t for name, t in read.items() if name not in by_token}, by_token

    def generate(
        self, rows: Sequence[Row], options: CaptionOptions, inputs: Mapping[str, Tensor]
    ) -> list[list[Decoded]]:
        return decode(self.net, rows, options, self.tokens, self.device, **inputs)


class _Florence(Captioning):
    """The task goes to an encoder, whose input is the same for every picture; the caption comes from a decoder."""

    pads = False  # its decoder counts positions by column

    def prompt(self, request: CaptionRequest) -> tuple[list[int], Mapping[str, Tensor], Mapping[str, Tensor]]:
        with self.lock:
            read = self.reader(images=[request.image], text=["<CAPTION>"], return_tensors="pt")
        settings = self.net.generation_config
        first = settings.forced_bos_token_id
        # With more than the start given, the library no longer forces what comes next.
        begin = [] if first is None or not request.prompt.strip() else [first]
        return [settings.decoder_start_token_id, *begin], dict(read), {}

    def generate(
        self, rows: Sequence[Row], options: CaptionOptions, inputs: Mapping[str, Tensor]
    ) -> list[list[Decoded]]:
        return decode(self.net, rows, options, self.tokens, self.device, **inputs)


def load(info: ModelInfo, checkpoint: Checkpoint, device: str, dtype: str) -> Captioning:
    """The family's entry in `revln.models.families`.

    Raises:
        ModelUnavailable: a file is missing or damaged, the weights do not fit, or there is no chat template.
    """
    processor = load_part(AutoProcessor, checkpoint)
    net = load_weights(AutoModelForImageTextToText, checkpoint, device, dtype)
    tokenizer = processor.tokenizer
    ends = end_tokens(checkpoint, net.generation_config.eos_token_id, tokenizer.eos_token_id)
    pad = ends[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    parts = (info, net, processor, tokenizer, Tokens(pad, ends), device, dtype)
    if net.config.is_encoder_decoder:
        return _Florence(*parts)
    if not processor.chat_template:
        raise ModelUnavailable(
            f"{checkpoint.source} has no chat template, so nothing says how it is asked; use a checkpoint that was "
            "trained to be talked to (its name often ends in Instruct)."
        )
    return _Chat(*parts)


def _instruction(request: CaptionRequest) -> str:
    told = "; ".join(one.text.strip().rstrip(". ")[:_EVIDENCE_CHARS] for one in request.evidence)
    return (_TOLD.format(told) if told else "") + _ASKED
