"""The revln family: its contract on a tiny random checkpoint, and a few promises of the shipped one."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from revln.errors import ItemInvalid, ModelUnavailable
from revln.models.base import CaptionOptions, CaptionRequest, Evidence, Model, ModelInfo, Operation
from revln.models.decoding import Decoded, Row, pad_left
from revln.models.revln import card as revln_card
from revln.models.revln.captioning import caption
from revln.models.revln.card import RevlnConfig
from revln.models.revln.model import RevlnModel, load
from revln.models.revln.net import RevlnNet
from revln.models.revln.text_gru import pad
from revln.models.revln.tokenizer import EOS, PAD, train_tokenizer
from revln.training.contrast import embed_images
from revln.training.export import export
from revln.training.options import TrainOptions

TEXTS = ["a black dog runs", "two men play a guitar outside in the rain", "a child", "snow", "a red kite over the sea"]
SHIPPED = Path(__file__).parents[3] / "revln/weights/revln-tiny"
USE = {"trunk": "mobilenet_v2", "mirror": False, "caption_no_repeat_ngram_size": 0, "caption_cosine": 0.0}
WEIGHT = 100.0
OPTIONS = [
    CaptionOptions(num_beams=1, max_new_tokens=8),
    CaptionOptions(num_beams=3, max_new_tokens=8),
    CaptionOptions(num_beams=4, num_captions=3, max_new_tokens=8, length_penalty=0.5),
]


def image(width: int, height: int, seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with random weights and small networks."""
    out = tmp_path_factory.mktemp("tiny")
    tokenizer = train_tokenizer(TEXTS, 400)
    config = RevlnConfig(
        image_size=64, trunk="mobilenet_v2", dim=32, vocab_size=tokenizer.size, text_embedding=16, text_hidden=24,
        caption_width=32, caption_layers=2, caption_inner=64,
    )  # fmt: skip
    torch.manual_seed(0)
    net = RevlnNet(config)
    for parameter in net.captioner.parameters():
        # GPT-2's small start makes every next token equally likely, and beams would tie.
        parameter.data += 0.3 * torch.randn_like(parameter)
    export(out, config, net, tokenizer, TrainOptions(data=out, images=out, out=out))
    return out


@pytest.fixture(scope="module")
def model(folder: Path) -> RevlnModel:
    return load("tiny", folder, "cpu")


@pytest.fixture(scope="module")
def bare(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RevlnModel:
    """The same networks in a folder that is older than the settings of their use."""
    copy = _copy(folder, tmp_path_factory.mktemp("older") / "bare")
    config = json.loads((copy / "config.json").read_text())
    for name in USE:
        del config[name]
    (copy / "config.json").write_text(json.dumps(config))
    return load("bare", copy, "cpu")


@pytest.fixture(scope="module")
def near(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RevlnModel:
    """The same networks with a cosine that weighs enough to change the order of most beams."""
    return load("near", _with(folder, tmp_path_factory.mktemp("near") / "near", caption_cosine=WEIGHT), "cpu")


@pytest.fixture(scope="module")
def shipped() -> RevlnModel:
    if not (SHIPPED / "config.json").is_file():
        pytest.skip(f"{SHIPPED} is absent")
    return load("revln-tiny", SHIPPED, "cpu")


def run(model: Model, operation: Operation, items: list[Any]) -> list[Any]:
    prepared = [model.prepare(operation, item) for item in items]
    return [model.finish(operation, raw) for raw in model.forward(operation, prepared)]


def requests(options: CaptionOptions) -> list[CaptionRequest]:
    evidence = tuple(Evidence(str(i), text, 0.5) for i, text in enumerate(TEXTS))
    return [
        CaptionRequest(image(50, 70, 1), evidence[:4], options=options),
        CaptionRequest(image(80, 40, 2), options=options),
        CaptionRequest(image(64, 64, 3), evidence[3:4], prompt="a photo of", options=options),
    ]


def test_the_family_keeps_the_model_contract(model: RevlnModel) -> None:
    assert isinstance(model, Model)
    assert model.info.dim == 32
    assert all(model.max_batch(operation) >= 1 for operation in Operation)


@pytest.mark.parametrize("operation", [Operation.EMBED_IMAGE, Operation.EMBED_TEXT])
def test_a_batch_of_vectors_equals_the_single_ones(model: RevlnModel, operation: Operation) -> None:
    items = TEXTS if operation is Operation.EMBED_TEXT else [image(30 + 9 * i, 50, i) for i in range(5)]
    together = run(model, operation, items)
    alone = [run(model, operation, [item])[0] for item in items]
    for a, b in zip(together, alone, strict=True):
        assert a.dtype == np.float32
        assert a.shape == (32,)
        assert np.linalg.norm(a) == pytest.approx(1.0, abs=1e-5)
        assert float(a @ b) >= 0.9999


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("mirror", [True, False])
def test_vectors_in_half_precision_are_of_unit_norm(folder: Path, tmp_path: Path, dtype: str, mirror: bool) -> None:
    half = load("half", _with(folder, tmp_path / "half", mirror=mirror), "cpu", dtype)
    pictures = [image(50, 50, seed) for seed in range(5)]
    for operation, items in ((Operation.EMBED_TEXT, TEXTS), (Operation.EMBED_IMAGE, pictures)):
        vectors = np.stack(run(half, operation, items))
        assert vectors.dtype == np.float32
        assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(5), abs=1e-5)


def test_vectors_under_autocast_are_of_unit_norm(model: RevlnModel) -> None:
    ids, lengths = pad([model.prepare(Operation.EMBED_TEXT, text) for text in TEXTS])
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        both = [model.net.image.embed(torch.randn(5, 4, 1280)), model.net.text(ids, lengths)]
    for vectors in both:
        assert vectors.dtype == torch.float32
        assert vectors.norm(dim=1).numpy() == pytest.approx(np.ones(5), abs=1e-5)


def test_a_pictures_vector_is_that_of_the_sum_of_its_own_and_its_mirror_images(
    model: RevlnModel, bare: RevlnModel
) -> None:
    picture = image(64, 64)
    both = [picture, picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    own, mirrored = run(bare, Operation.EMBED_IMAGE, both)
    assert np.abs(own - mirrored).max() > 1e-3
    for vector in run(model, Operation.EMBED_IMAGE, both):
        assert vector == pytest.approx((own + mirrored) / np.linalg.norm(own + mirrored), abs=1e-5)


def test_training_measures_the_vectors_that_are_served(model: RevlnModel, bare: RevlnModel) -> None:
    pictures = [image(64, 64, seed) for seed in range(3)]
    for one in (model, bare):
        pixels = np.stack([one.prepare(Operation.EMBED_IMAGE, picture).numpy() for picture in pictures])
        measured = embed_images(one.net.image, pixels, one.config.mirror, torch.device("cpu"))
        assert measured == pytest.approx(np.stack(run(one, Operation.EMBED_IMAGE, pictures)), abs=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (3000, 2), (2000, 1500)])
def test_a_picture_of_any_size_is_embedded(model: RevlnModel, size: tuple[int, int]) -> None:
    vector = run(model, Operation.EMBED_IMAGE, [image(*size)])[0]
    assert np.isfinite(vector).all()


@pytest.mark.parametrize("text", ["", "   ", "\n\t"])
def test_an_empty_text_is_an_invalid_item(model: RevlnModel, text: str) -> None:
    with pytest.raises(ItemInvalid, match="empty"):
        model.prepare(Operation.EMBED_TEXT, text)


def test_a_text_of_any_script_and_length_is_embedded(model: RevlnModel) -> None:
    vectors = run(model, Operation.EMBED_TEXT, ["Ein Hund läuft über 草地 🐕", "dog " * 5000, "<eos>", "\x00"])
    assert np.isfinite(np.stack(vectors)).all()


def test_letter_case_and_unicode_form_change_nothing(model: RevlnModel) -> None:
    upper, lower, composed, decomposed = run(model, Operation.EMBED_TEXT, ["A DOG", "a dog", "caf\u00e9", "cafe\u0301"])
    assert np.array_equal(upper, lower)
    assert np.array_equal(composed, decomposed)


@pytest.mark.parametrize("options", OPTIONS)
def test_a_batch_of_captions_with_mixed_prompts_equals_the_single_ones(
    model: RevlnModel, options: CaptionOptions
) -> None:
    items = requests(options)
    together = run(model, Operation.CAPTION, items)
    for request, captions in zip(items, together, strict=True):
        (alone,) = run(model, Operation.CAPTION, [request])
        assert [c.text for c in captions] == [c.text for c in alone]
        assert [c.log_prob for c in captions] == pytest.approx([c.log_prob for c in alone], abs=1e-3)
        assert len(captions) == options.num_captions


def test_captions_merge_only_with_equal_options(model: RevlnModel) -> None:
    keys = [model.merge_key(Operation.CAPTION, model.prepare(Operation.CAPTION, requests(o)[0])) for o in OPTIONS]
    assert len(set(keys)) == len(OPTIONS)


def test_a_request_without_a_rule_against_repeats_has_the_models_own(model: RevlnModel, bare: RevlnModel) -> None:
    def told(one: RevlnModel, size: int | None) -> tuple[list[list[int]], Any]:
        options = CaptionOptions(num_beams=1, min_new_tokens=30, max_new_tokens=30, no_repeat_ngram_size=size)
        prepared = [one.prepare(Operation.CAPTION, request) for request in requests(options)]
        raw = one.forward(Operation.CAPTION, prepared)
        return [ids for ((ids, *_),) in raw], one.merge_key(Operation.CAPTION, prepared[0])

    def repeats(ids: list[int]) -> bool:
        return len(set(pairwise(ids))) < len(ids) - 1

    (own, own_key), (free, free_key) = told(model, None), told(model, 0)
    assert not any(map(repeats, own))
    assert any(map(repeats, free))
    assert (own, own_key) == told(model, 2)
    assert own_key != free_key
    assert told(bare, None) == (free, free_key)


@pytest.mark.parametrize("num_captions", [1, 2, 4])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_the_best_of_the_beams_are_likely_and_near_the_picture(
    near: RevlnModel, bare: RevlnModel, num_captions: int, length_penalty: float
) -> None:
    options = CaptionOptions(num_beams=4, max_new_tokens=8, length_penalty=length_penalty, no_repeat_ngram_size=0)
    asked = requests(replace(options, num_captions=num_captions))
    ranked = run(near, Operation.CAPTION, asked)
    moved = 0
    for i, request in enumerate(requests(replace(options, num_captions=4))):
        prepared = bare.prepare(Operation.CAPTION, request)
        ((*beams,),) = bare.forward(Operation.CAPTION, [prepared])
        (picture,) = run(bare, Operation.EMBED_IMAGE, [request.image])
        captions = bare.finish(Operation.CAPTION, beams)
        vectors = run(bare, Operation.EMBED_TEXT, [caption.text for caption in captions])
        scores = [
            log_prob / (len(ids) - len(prepared.prefix) + 1) ** length_penalty + WEIGHT * float(picture @ vector)
            for (ids, log_prob, _), vector in zip(beams, vectors, strict=True)
        ]
        order = sorted(range(4), key=lambda j: -scores[j])[:num_captions]
        moved += order != list(range(num_captions))
        assert [one.text for one in ranked[i]] == [captions[j].text for j in order]
        assert [one.log_prob for one in ranked[i]] == pytest.approx([captions[j].log_prob for j in order], abs=1e-3)
        (alone,) = run(near, Operation.CAPTION, [asked[i]])
        assert [one.text for one in alone] == [one.text for one in ranked[i]]
    assert moved


@pytest.mark.parametrize(
    "options",
    [
        CaptionOptions(num_beams=1, max_new_tokens=8, no_repeat_ngram_size=0),
        CaptionOptions(num_beams=4, num_captions=4, temperature=1.2, max_new_tokens=8, no_repeat_ngram_size=0),
    ],
    ids=["greedy", "sampled"],
)
def test_only_beams_are_ranked_by_the_picture(near: RevlnModel, bare: RevlnModel, options: CaptionOptions) -> None:
    assert run(near, Operation.CAPTION, requests(options)) == run(bare, Operation.CAPTION, requests(options))


def test_the_decoder_is_asked_for_all_beams_only_if_they_are_ranked(
    near: RevlnModel, bare: RevlnModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    for one, expected in ((near, 3), (bare, 1)):
        asked: list[int] = []
        generate = one.net.captioner.generate

        def spy(
            seen: Tensor, rows: list[Row], options: CaptionOptions, asked: list[int] = asked, generate: Any = generate
        ) -> Any:
            asked.append(options.num_captions)
            return generate(seen, rows, options)

        monkeypatch.setattr(one.net.captioner, "generate", spy)
        assert [len(found) for found in run(one, Operation.CAPTION, requests(OPTIONS[1]))] == [1, 1, 1]
        assert asked == [expected]


def test_a_caption_without_a_word_is_ranked_by_its_likelihood_alone(
    near: RevlnModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    item = near.prepare(Operation.CAPTION, requests(CaptionOptions(num_beams=3, num_captions=3))[0])
    places = torch.randn(1, near.config.places, 1280)

    def told(*beams: Decoded) -> list[float]:
        monkeypatch.setattr(near.net.captioner, "generate", lambda *_: [list(beams)])
        with torch.inference_mode():
            (row,) = caption(near.net, near.config, near.tokenizer, places, [item])
        return [log_prob for _, log_prob, _ in row]

    empty = [Decoded((), -score) for score in (3.0, 1.0, 2.0)]
    assert told(*empty) == [-1.0, -2.0, -3.0]
    spoken = Decoded(tuple(near.tokenizer.encode("a dog")), -1.5)
    with torch.inference_mode():
        (vector,) = run(near, Operation.EMBED_TEXT, ["a dog"])
        cosine = float(near.net.image.embed(places)[0].numpy() @ vector)
    # Nearer than nothing or farther: whichever it is, its cosine decides against the empty one's 0.
    assert told(empty[1], spoken, empty[0]).index(-1.5) == (0 if cosine > 0 else 2)


def prompts(model: RevlnModel, monkeypatch: pytest.MonkeyPatch, asked: list[CaptionRequest]) -> list[list[int]]:
    """What the decoder is prompted with."""
    seen: list[Row] = []
    generate = model.net.captioner.generate

    def spy(places: Tensor, rows: list[Row], options: CaptionOptions) -> Any:
        seen.extend(rows)
        return generate(places, rows, options)

    with monkeypatch.context() as patch:
        patch.setattr(model.net.captioner, "generate", spy)
        run(model, Operation.CAPTION, asked)
    return [list(row.prompt) for row in seen]


def test_log_prob_equals_that_of_a_teacher_forced_pass(model: RevlnModel, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = requests(OPTIONS[1])[0]
    item = model.prepare(Operation.CAPTION, asked)
    ((captions,),) = [model.forward(Operation.CAPTION, [item])]
    ids, log_prob, _ = captions[0]
    (prompt,) = prompts(model, monkeypatch, [asked])
    whole = [*prompt, *ids] + ([EOS] if len(ids) < item.options.max_new_tokens else [])
    with torch.inference_mode():
        captioner = model.net.captioner
        places = model.net.image.places(item.image[None].float() / 127.5 - 1)
        logits = captioner.logits(*pad_left([whole], PAD), captioner.look(places, model.net.image.embed(places)))
        (again,) = captioner.log_probs(captioner.look(places, model.net.image.embed(places)), [prompt], [ids])
    expected = sum(float(logits[0, t - 1].log_softmax(dim=-1)[whole[t]]) for t in range(len(prompt), len(whole)))
    assert log_prob == pytest.approx(expected, abs=1e-3)
    if whole[-1] == EOS:
        assert again == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("levels", [None, [0.0], [-1.0, -0.5, 0.5, 2.0]])
def test_evidence_is_prompted_by_its_own_nearness_and_with_its_level(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, levels: list[float] | None
) -> None:
    """Whatever score and place the request gives it: that is of the item it was found with."""
    one = load("one", _with(folder, tmp_path / "one", mirror=False, max_evidence=3, evidence_levels=levels), "cpu")
    picture = image(50, 70, 1)
    evidence = tuple(Evidence(str(i), text, 1.0 - i / 10) for i, text in enumerate([*TEXTS, " "]))
    (vector,) = run(one, Operation.EMBED_IMAGE, [picture])
    cosines = np.stack(run(one, Operation.EMBED_TEXT, TEXTS)) @ vector
    nearest = [(i, sum(cosines[i] >= level for level in levels or ())) for i in np.argsort(-cosines)[:3]]
    expected = one.tokenizer.prompt([(None if levels is None else level, TEXTS[i]) for i, level in nearest], 20)
    options = CaptionOptions(num_beams=1, max_new_tokens=2)
    asked = [CaptionRequest(picture, evidence, options=options), CaptionRequest(picture, options=options)]
    assert prompts(one, monkeypatch, asked) == [expected, one.tokenizer.prompt((), 20)]


def test_a_level_stands_before_each_sentence_of_a_prompt(model: RevlnModel) -> None:
    tokenizer = model.tokenizer

    def read(*evidence: tuple[int | None, str]) -> str:
        return tokenizer.decode(tokenizer.prompt(evidence, 20))

    assert read((3, "a child."), (0, " snow . ")) == "3: a child. 0: snow. this picture shows:"
    assert read((None, "a child."), (None, "snow")) == "similar: a child. snow. this picture shows:"
    assert read((2, " . ")) == read() == "this picture shows:"


# Bias, and of each of CONFIDENCE_FEATURES.
CONFIDENCE = [0.3, 2.0, 0.5, 1.5, 0.75, -0.5, 0.25, 1.25]


def confident(folder: Path, to: Path, *weights: float) -> RevlnModel:
    return load("confident", _with(folder, to, mirror=False, caption_confidence=list(weights)), "cpu")


def test_retrieved_captions_compete_with_the_decoders_own(folder: Path, tmp_path: Path) -> None:
    """With the likeliest to be right first."""
    retrieved = confident(folder, tmp_path / "retrieved", 0, 0, 0, 0, 0, 0, 100, 0)
    own = confident(folder, tmp_path / "own", 0, 0, 0, 0, 0, 0, -100, 0)
    options = CaptionOptions(num_beams=3, num_captions=3, max_new_tokens=30)
    told, *_ = requests(options)
    told = replace(told, evidence=told.evidence[:3])
    assert {caption.text for caption in run(retrieved, Operation.CAPTION, [told])[0]} == set(TEXTS[:3])
    for one, asked in (
        (own, told),
        (retrieved, replace(told, prompt="a")),  # none continues what the user began
        (retrieved, replace(told, options=replace(options, temperature=1.0))),  # a sample is the decoder's own
        (retrieved, replace(told, options=replace(options, max_new_tokens=1))),  # all are longer
    ):
        assert not set(TEXTS).intersection(caption.text for caption in run(one, Operation.CAPTION, [asked])[0])


def test_confidence_is_what_its_weights_make_of_a_caption(folder: Path, tmp_path: Path, model: RevlnModel) -> None:
    one = confident(folder, tmp_path / "one", *CONFIDENCE)

    def told(text: str) -> list[int]:
        return one.tokenizer.encode(text.strip().rstrip(". "))

    def overlap(left: list[int], right: list[int]) -> float:
        runs = [[{tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)} for ids in (left, right)] for n in (1, 2, 3)]
        return sum(len(a & b) / max(1, len(a), len(b)) for a, b in runs) / 3

    asked = requests(CaptionOptions(num_beams=4, num_captions=4, max_new_tokens=12))[:2]
    raw = one.forward(Operation.CAPTION, [one.prepare(Operation.CAPTION, request) for request in asked])
    for request, captions in zip(asked, raw, strict=True):
        (picture,) = run(one, Operation.EMBED_IMAGE, [request.image])
        texts = [shown.text for shown in request.evidence]
        near = np.stack(run(one, Operation.EMBED_TEXT, texts)) if texts else np.zeros((0, 32))
        confidences = [confidence for *_, confidence in captions]
        assert len(captions) == 4
        assert confidences == sorted(confidences, reverse=True)
        for ids, log_prob, confidence in captions:
            text = one.tokenizer.decode(ids)
            (vector,) = run(one, Operation.EMBED_TEXT, [text])
            cosines = near @ picture
            shares = np.exp(10 * cosines) / np.exp(10 * cosines).sum()
            consensus = float(shares @ (near @ vector)) * max(0.0, float(shares @ cosines)) if texts else 0.0
            others = [overlap(ids, other) for other in map(told, texts) if other != list(ids)]
            score = next((shown.score for shown in request.evidence if told(shown.text) == list(ids)), None)
            features = (
                1, picture @ vector, log_prob / (len(ids) + 1), consensus, np.mean(others) if others else 0.0,
                not texts, score is not None, score or 0.0,
            )  # fmt: skip
            logit = sum(weight * float(value) for weight, value in zip(CONFIDENCE, features, strict=True))
            assert confidence == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-3)
    assert all(caption.confidence is None for found in run(model, Operation.CAPTION, asked) for caption in found)


def test_sampling_gives_more_captions_than_beams_likeliest_first(model: RevlnModel) -> None:
    torch.manual_seed(0)
    options = CaptionOptions(num_beams=1, num_captions=5, temperature=1.2, max_new_tokens=8)
    for captions in run(model, Operation.CAPTION, requests(options)):
        scores = [caption.log_prob for caption in captions]
        assert len(captions) == 5
        assert scores == sorted(scores, reverse=True)
        assert len({caption.text for caption in captions}) > 1


def test_a_caption_continues_the_users_prompt(model: RevlnModel) -> None:
    captions = run(model, Operation.CAPTION, requests(OPTIONS[0]))[2]
    assert captions[0].text.startswith("a photo of")


def test_a_caption_holds_no_special_token(model: RevlnModel) -> None:
    torch.manual_seed(1)
    options = CaptionOptions(num_captions=8, temperature=5.0, max_new_tokens=30)
    for captions in run(model, Operation.CAPTION, requests(options)):
        assert not any(mark in c.text for c in captions for mark in ("<pad>", "<bos>", "<eos>"))


@pytest.mark.parametrize("levels", [None, [0.1, 0.2]])
def test_no_caption_is_longer_than_the_decoder_has_positions(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, levels: list[float] | None
) -> None:
    model = load("levels", _with(folder, tmp_path / "levels", evidence_levels=levels), "cpu")
    evidence = tuple(Evidence(str(i), "word " * 200, 0.1) for i in range(9))
    request = CaptionRequest(
        image(9, 9), evidence, prompt="long " * 200, options=CaptionOptions(num_beams=1, max_new_tokens=10_000)
    )
    prepared = model.prepare(Operation.CAPTION, request)
    (prompt,) = prompts(model, monkeypatch, [request])
    assert len(prompt) + prepared.options.max_new_tokens <= model.config.caption_positions
    assert run(model, Operation.CAPTION, [request])[0][0].log_prob < 0


def test_the_fingerprint_hangs_on_weights_and_configuration(folder: Path, tmp_path: Path) -> None:
    first = revln_card.fingerprint(folder)
    assert first == revln_card.fingerprint(folder) == revln_card.describe("x", folder).fingerprint
    assert first.startswith("revln-")
    assert len(first) == len("revln-") + 16
    seen = {first}
    for name, old, new in (
        ("config.json", b'"max_evidence": 4', b'"max_evidence": 3'),
        ("model.safetensors", b"", b" "),
        ("tokenizer.json", b"", b" "),
    ):
        copy = _copy(folder, tmp_path / name)
        whole = (copy / name).read_bytes()
        (copy / name).write_bytes(whole.replace(old, new) if old else whole + new)
        seen.add(revln_card.fingerprint(copy))
    assert len(seen) == 4


def test_thresholds_measured_anew_make_no_other_model(folder: Path, tmp_path: Path) -> None:
    copy = _copy(folder, tmp_path / "measured")
    config = json.loads((copy / "config.json").read_text())
    config |= {"match_min_score": {"text": 0.3, "image": 0.5}, "evidence_min_score": 0.4}
    (copy / "config.json").write_text(json.dumps(config))
    before, after = revln_card.describe("x", folder), revln_card.describe("x", copy)
    assert (after.fingerprint, after.joint_fingerprint) == (before.fingerprint, before.joint_fingerprint)
    assert after.match_min_score == {"text": 0.3, "image": 0.5}
    assert after.evidence_min_score == 0.4


def test_the_joint_fingerprint_stays_when_only_the_captioner_is_trained_again(folder: Path, tmp_path: Path) -> None:
    first = revln_card.describe("x", folder)
    assert first.joint_fingerprint != first.fingerprint

    def described(change: str) -> ModelInfo:
        copy = _copy(folder, tmp_path / change)
        weights = load_file(copy / "model.safetensors")
        name = next(key for key in weights if key.startswith(change) and weights[key].is_floating_point())
        weights[name] = weights[name] + 1
        save_file(weights, copy / "model.safetensors")
        return revln_card.describe("x", copy)

    captioner, image, text = (described(part) for part in ("captioner.", "image.", "text."))
    assert captioner.fingerprint != first.fingerprint
    assert captioner.joint_fingerprint == first.joint_fingerprint
    assert len({first.joint_fingerprint, image.joint_fingerprint, text.joint_fingerprint}) == 3

    config = json.loads((folder / "config.json").read_text())
    for setting, same in (
        ("max_evidence", True),
        ("caption_positions", True),
        ("caption_cosine", True),
        ("caption_vector_tokens", True),
        ("caption_no_repeat_ngram_size", True),
        ("image_size", False),
        ("mirror", False),
    ):
        copy = _copy(folder, tmp_path / setting)
        (copy / "config.json").write_text(json.dumps(config | {setting: config[setting] + 32}))
        assert (revln_card.joint_fingerprint(copy) == first.joint_fingerprint) is same


def test_a_folder_that_is_older_than_the_settings_of_its_use_reads_as_without(bare: RevlnModel) -> None:
    assert {name: getattr(bare.config, name) for name in USE} == USE
    assert all(getattr(RevlnConfig(), name) != value for name, value in USE.items())


def test_describe_counts_parameters_without_torch(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from revln.models.revln.card import describe; "
        "print(describe('tiny', Path(sys.argv[1])).parameters); assert 'torch' not in sys.modules"
    )
    out = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert int(out.stdout) > 2_000_000


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["missing", "cut short", "garbage"])
def test_a_damaged_folder_is_refused_with_the_files_name(folder: Path, tmp_path: Path, name: str, damage: str) -> None:
    copy = _copy(folder, tmp_path / "copy")
    path = copy / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if damage == "cut short" else b"\xff" * 64)
    with pytest.raises(ModelUnavailable, match=name):
        load("tiny", copy, "cpu")


def test_weights_of_another_size_are_refused(folder: Path, tmp_path: Path) -> None:
    copy = _copy(folder, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"dim": 64}))
    with pytest.raises(ModelUnavailable, match="does not fit"):
        load("tiny", copy, "cpu")


def test_the_shipped_model_describes_itself_and_fits_its_size(shipped: RevlnModel) -> None:
    assert shipped.info.dim == 256
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) <= 48_000_000
    assert shipped.info.has_confidence
    assert (SHIPPED / "MODEL_CARD.md").is_file()


def test_the_shipped_model_puts_like_texts_closer_than_unlike_ones(shipped: RevlnModel) -> None:
    a, b, c = run(
        shipped,
        Operation.EMBED_TEXT,
        ["A dog runs through the grass.", "A puppy is running on a lawn.", "Two men play guitar on a stage."],
    )
    assert a @ b > a @ c + 0.2


def test_the_shipped_models_batch_of_captions_equals_the_single_ones(shipped: RevlnModel) -> None:
    items = requests(CaptionOptions())
    together = run(shipped, Operation.CAPTION, items)
    for request, captions in zip(items, together, strict=True):
        assert run(shipped, Operation.CAPTION, [request])[0][0].text == captions[0].text


def _with(folder: Path, to: Path, **settings: Any) -> Path:
    copy = _copy(folder, to)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | settings))
    return copy


def _copy(folder: Path, to: Path) -> Path:
    to.mkdir()
    for path in folder.iterdir():
        if path.is_file():
            (to / path.name).write_bytes(path.read_bytes())
    return to
