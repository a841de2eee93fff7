"""Captioners of transformers against a direct call of the library on the same checkpoint, batched against single."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from revln.errors import ModelUnavailable
from revln.models.base import CaptionOptions, CaptionRequest, Evidence, Model, Operation, Overlapping
from revln.models.captioners import Captioning
from revln.models.decoding import Decoded
from revln.models.registry import ModelCatalog
from revln.settings import ModelSettings
from tests.tiny_captioners import CAPTIONERS, save_blip, save_llava, save_vit_gpt2
from tests.tiny_models import photo

TOLD = (Evidence("1", "Two men play a guitar.", 0.5), Evidence("2", "a dog", 0.4))
# Prompts of different length; the last picture is of another shape.
REQUESTS = [
    (photo(1), "", ()),
    (photo(2), "a dog", TOLD),
    (photo(3), "a", TOLD[1:]),
    (photo(4, 40, 90), "", ()),
]
OPTIONS = {
    "greedy": CaptionOptions(num_beams=1, max_new_tokens=7),
    "beam": CaptionOptions(num_beams=3, num_captions=2, max_new_tokens=7, length_penalty=0.6),
    "nucleus": CaptionOptions(temperature=1.0, num_captions=2, max_new_tokens=7, seed=3),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("captioners")
    return {name: make(root / name) for name, make in CAPTIONERS.items()}


@cache
def load(folder: Path, **spec: Any) -> Model:
    return ModelCatalog({"m": ModelSettings(source=str(folder), **spec)}).load("m", "cpu")


def run(model: Model, prepared: list[Any]) -> list[list[Decoded]]:
    """In as few batches as the batcher would make."""
    groups: dict[Any, list[int]] = {}
    for i, one in enumerate(prepared):
        groups.setdefault(model.merge_key(Operation.CAPTION, one), []).append(i)
    found: dict[int, list[Decoded]] = {}
    for places in groups.values():
        raws = model.forward(Operation.CAPTION, [prepared[i] for i in places])
        found.update((i, raw[1]) for i, raw in zip(places, raws, strict=True))
    return [found[i] for i in range(len(prepared))]


@cache
def _net(folder: Path) -> Any:
    return transformers.AutoModelForImageTextToText.from_pretrained(folder)


def direct(name: str, folder: Path, at: int, options: CaptionOptions, end: int) -> list[tuple[int, ...]]:
    """What the library's own documentation says to do; the new tokens up to ``end``."""
    picture, prefix, told = REQUESTS[at]
    net = _net(folder)
    if name == "vision-encoder-decoder":
        reader, tokenizer = (
            auto.from_pretrained(folder) for auto in (transformers.AutoImageProcessor, transformers.AutoTokenizer)
        )
        inputs = dict(reader(picture, return_tensors="pt"))
        if prefix:
            start = net.generation_config.decoder_start_token_id
            inputs["decoder_input_ids"] = torch.tensor([[start, *tokenizer(prefix)["input_ids"]]])
    else:
        processor = transformers.AutoProcessor.from_pretrained(folder)
        tokenizer = processor.tokenizer
        if name.startswith(("llava", "qwen", "smolvlm")):
            told_text = "; ".join(one.text.rstrip(".") for one in told)
            before = (
                f"Pictures that look like this one were described so: {told_text}. Some of that may not hold here. "
            )
            question = (before if told else "") + "Describe this picture in one short sentence."
            content = [{"type": "image"}, {"type": "text", "text": question}]
            text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
            inputs = dict(processor(images=picture, text=text + prefix, return_tensors="pt"))
        elif name == "florence":
            inputs = dict(processor(images=picture, text="<CAPTION>", return_tensors="pt"))
            if prefix:
                ids = tokenizer(prefix, add_special_tokens=False)["input_ids"]
                inputs["decoder_input_ids"] = torch.tensor([[2, 0, *ids]])
        else:
            inputs = dict(processor(images=picture, text=prefix or None, return_tensors="pt"))
            if name == "git" and prefix:  # its documentation: the prompt after [CLS], and no [SEP]
                inputs = {"pixel_values": inputs["pixel_values"], "input_ids": inputs["input_ids"][:, :-1]}
    asked = inputs.get("decoder_input_ids", inputs.get("input_ids") if name != "florence" else None)
    beams = {"length_penalty": options.length_penalty} if options.num_beams > 1 else {}
    with torch.inference_mode():
        out = net.generate(
            **inputs, **beams, num_beams=options.num_beams, num_return_sequences=options.num_captions,
            max_new_tokens=options.max_new_tokens, no_repeat_ngram_size=0, do_sample=False,
        )  # fmt: skip
    # BLIP's takes the last token of the prompt away; without a prompt there is one token to begin with.
    length = 1 if asked is None else asked.shape[1] - (name == "blip")
    return [tuple(row[: row.index(end)] if end in row else row) for row in out[:, length:].tolist()]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("name", CAPTIONERS)
def test_tokens_equal_the_librarys_and_a_batch_its_single_items(
    folders: dict[str, Path], name: str, options: CaptionOptions
) -> None:
    model = load(folders[name])
    assert isinstance(model, Model)
    assert isinstance(model, Captioning)
    requests = [CaptionRequest(picture, told, prompt, options) for picture, prompt, told in REQUESTS]
    prepared = [model.prepare(Operation.CAPTION, request) for request in requests]
    together = run(model, prepared)
    for i, one in enumerate(prepared):
        (alone,) = run(model, [one])
        assert [found.ids for found in together[i]] == [found.ids for found in alone]
        assert [found.log_prob for found in together[i]] == pytest.approx([found.log_prob for found in alone], abs=1e-3)
        if options.temperature == 0:
            assert [found.ids for found in alone] == direct(name, folders[name], i, options, model.tokens.ends[0])
    # Pictures are told apart: else all of the above would hold for a model that sees nothing.
    assert abs(together[0][0].log_prob - together[3][0].log_prob) > 0.01


@pytest.mark.parametrize("name", CAPTIONERS)
def test_batches_that_are_put_together_ahead_give_the_captions_of_single_ones(
    folders: dict[str, Path], name: str
) -> None:
    model = load(folders[name])
    assert isinstance(model, Overlapping)
    for options in (OPTIONS["beam"], OPTIONS["nucleus"]):
        requests = [CaptionRequest(picture, told, prompt, options) for picture, prompt, told in REQUESTS]
        prepared = [model.prepare(Operation.CAPTION, request) for request in requests]
        first = model.merge_key(Operation.CAPTION, prepared[0])
        alike = [one for one in prepared if model.merge_key(Operation.CAPTION, one) == first]
        batches = [alike, *([one] for one in prepared)]
        ahead = [model.collate(Operation.CAPTION, batch) for batch in batches]
        raws = [model.forward_collated(Operation.CAPTION, one) for one in ahead]
        assert raws == [model.forward(Operation.CAPTION, batch) for batch in batches]


@pytest.mark.parametrize("name", CAPTIONERS)
def test_a_caption_continues_the_prompt_and_the_card_says_what_it_is(folders: dict[str, Path], name: str) -> None:
    model = load(folders[name])
    assert model.info.operations == (Operation.CAPTION,)
    assert model.info.dim is None
    assert model.info.fingerprint.startswith(model.info.family)
    options = CaptionOptions(num_beams=2, num_captions=2, max_new_tokens=5)
    raw = model.forward(
        Operation.CAPTION,
        [model.prepare(Operation.CAPTION, CaptionRequest(photo(1), prompt="a dog", options=options))],
    )
    captions = model.finish(Operation.CAPTION, raw[0])
    assert len(captions) == 2
    for caption in captions:
        assert caption.text.startswith("a dog")
        assert caption.log_prob < 0


def test_evidence_goes_into_the_prompt_of_what_is_talked_to_and_of_no_other(folders: dict[str, Path]) -> None:
    for name in CAPTIONERS:
        model = load(folders[name])
        assert isinstance(model, Captioning)
        with_it, without = (
            model.prepare(Operation.CAPTION, CaptionRequest(photo(1), told)).row.prompt for told in (TOLD, ())
        )
        if name.startswith(("llava", "qwen", "smolvlm")):
            assert "Two men play a guitar; a dog." in model.tokenizer.decode(with_it)
        else:
            assert with_it == without


def test_no_prompt_leaves_the_decoder_without_a_place(folders: dict[str, Path]) -> None:
    model = load(folders["vision-encoder-decoder"])
    request = CaptionRequest(photo(1), prompt="long " * 40, options=CaptionOptions(num_beams=1, max_new_tokens=64))
    prepared = model.prepare(Operation.CAPTION, request)
    assert len(prepared.row.prompt) + prepared.options.max_new_tokens <= 64
    assert model.forward(Operation.CAPTION, [prepared])[0][1][0].log_prob < 0


def test_what_a_checkpoint_says_of_searching_is_not_what_was_asked(tmp_path: Path) -> None:
    folder = save_vit_gpt2(tmp_path / "m")
    options = CaptionOptions(num_beams=1, max_new_tokens=12)
    found = []
    for said in ({}, {"max_length": 3, "num_beams": 4, "no_repeat_ngram_size": 1, "early_stopping": True}):
        settings = json.loads((folder / "generation_config.json").read_text())
        (folder / "generation_config.json").write_text(json.dumps(settings | said))
        load.cache_clear()
        model = load(folder)
        prepared = [model.prepare(Operation.CAPTION, CaptionRequest(photo(1), options=options))]
        found.append(run(model, prepared))
    assert found[0] == found[1]


def test_a_checkpoint_that_cannot_caption_is_refused(tmp_path: Path) -> None:
    folder = save_llava(tmp_path / "llava")
    for name in ("chat_template.jinja", "chat_template.json"):
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(ModelUnavailable, match="no chat template"):
        load(folder)
    blip = save_blip(tmp_path / "blip")
    weights = load_file(blip / "model.safetensors")
    del weights["text_decoder.cls.predictions.transform.dense.weight"]
    save_file(weights, blip / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelUnavailable, match="do not fit"):
        load(blip)


@pytest.mark.gpu
def test_a_gpu_captions_as_a_cpu_does(folders: dict[str, Path]) -> None:
    request = CaptionRequest(photo(1), options=CaptionOptions(num_beams=1, max_new_tokens=4))
    for name in CAPTIONERS:
        scores = []
        for device, dtype in (("cpu", "float32"), ("cuda", "float32")):
            model = ModelCatalog({"m": ModelSettings(source=str(folders[name]), dtype=dtype)}).load("m", device)
            scores.append(run(model, [model.prepare(Operation.CAPTION, request)])[0][0])
        assert scores[0].ids == scores[1].ids
        assert scores[0].log_prob == pytest.approx(scores[1].log_prob, abs=0.05)
