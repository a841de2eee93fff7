"""Sentence encoders as sentence-transformers writes them now: pooling, prompts, lengths, language models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from revln.errors import ModelUnavailable, SettingsError
from revln.models.base import Counting, ModelInfo, Operation
from revln.models.prompts import QueryText
from revln.models.registry import ModelCatalog
from revln.settings import ModelSettings, Settings
from tests.tiny_models import DECODERS, DUAL_ENCODERS, save_decoder, save_sentence, write_modules
from tests.unit.models.test_other_encoders import load, run

TEXT = Operation.EMBED_TEXT
# None is longer than any of them reads; of several lengths, so that a batch is padded.
TEXTS = ["a black dog runs", "snow", "two men play", "a child"]


def alone(folder: Path, text: str) -> torch.Tensor:
    """The library's own states of one text, without any padding: (T, H)."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        return transformers.AutoModel.from_pretrained(folder)(**tokenizer(text, return_tensors="pt")).last_hidden_state[
            0
        ]


def pooled(mode: str, states: torch.Tensor) -> torch.Tensor:
    weights = torch.arange(1, len(states) + 1)[:, None].float()
    return {
        "cls": states[0],
        "max": states.amax(0),
        "mean": states.mean(0),
        "mean_sqrt_len_tokens": states.sum(0) / len(states) ** 0.5,
        "weightedmean": (states * weights).sum(0) / weights.sum(),
        "lasttoken": states[-1],
    }[mode]


def unit(rows: list[torch.Tensor]) -> NDArray[np.float32]:
    return torch.nn.functional.normalize(torch.stack(rows), dim=-1).numpy()


@pytest.fixture(scope="module")
def sentence(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_sentence(tmp_path_factory.mktemp("sentence") / "m")


@pytest.mark.parametrize("form", ["switches", "named"])
def test_every_pooling_is_the_librarys_in_both_forms_of_its_file(sentence: Path, form: str) -> None:
    switches = {
        "cls": "pooling_mode_cls_token", "max": "pooling_mode_max_tokens", "mean": "pooling_mode_mean_tokens",
        "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
        "weightedmean": "pooling_mode_weightedmean_tokens", "lasttoken": "pooling_mode_lasttoken",
    }  # fmt: skip
    for modes in (*([mode] for mode in switches), ["max", "mean"], ["cls", "lasttoken"]):
        if form == "named":
            said: dict[str, Any] = {"embedding_dimension": 32, "pooling_mode": modes if len(modes) > 1 else modes[0]}
        else:
            said = {"word_embedding_dimension": 32, **{name: mode in modes for mode, name in switches.items()}}
        (sentence / "1_Pooling/config.json").write_text(json.dumps(said))
        model = load(sentence)
        expected = unit([torch.cat([pooled(mode, alone(sentence, text)) for mode in modes]) for text in TEXTS])
        np.testing.assert_allclose(run(model, TEXT, TEXTS), expected, atol=2e-6, err_msg=str(modes))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("model_type", DECODERS)
def test_a_language_model_that_embeds_is_pooled_at_its_last_token(tmp_path: Path, model_type: str, side: str) -> None:
    folder = save_decoder(tmp_path / "m", model_type, "mean" if model_type == "gemma3_text" else "lasttoken", side)
    model = load(folder)
    assert (model.info.family, model.info.dim, model.info.max_tokens) == ("sentence", 32, 48)
    mode = "mean" if model_type == "gemma3_text" else "lasttoken"
    expected = unit([pooled(mode, alone(folder, text)) for text in TEXTS])
    np.testing.assert_allclose(run(model, TEXT, TEXTS), expected, atol=1e-5)
    assert (expected @ expected.T)[0, 1] < 0.99


def test_a_language_model_that_was_not_made_to_embed_is_refused(tmp_path: Path) -> None:
    folder = save_decoder(tmp_path / "m", "qwen3")
    (folder / "modules.json").unlink()
    with pytest.raises(ModelUnavailable, match=r"is a language model \(type qwen3\) without modules.json"):
        load(folder)


def test_an_unknown_pooling_is_named(tmp_path: Path) -> None:
    folder = save_sentence(tmp_path / "m")
    write_modules(folder, "attention")
    with pytest.raises(ModelUnavailable, match=r"pools by \['attention'\]; revln knows cls, max, mean"):
        load(folder)


def test_modules_are_applied_in_their_order_and_a_residual_is_added(tmp_path: Path) -> None:
    folder = save_sentence(tmp_path / "m", dense=8)
    entries = json.loads((folder / "modules.json").read_text())
    before = load(folder).info
    normalize = entries.pop()
    entries.insert(2, {**normalize, "path": ""})
    (folder / "modules.json").write_text(json.dumps(entries))
    facts = json.loads((folder / "2_Dense/config.json").read_text())
    (folder / "2_Dense/config.json").write_text(json.dumps({**facts, "use_residual": True}))
    layer = {**load_file(folder / "2_Dense/model.safetensors"), "residual.weight": torch.randn(8, 32)}
    save_file(layer, folder / "2_Dense/model.safetensors")
    model = load(folder)
    rows = [torch.nn.functional.normalize(pooled("mean", alone(folder, text)), dim=0) for text in TEXTS]
    expected = unit([
        torch.tanh(layer["linear.weight"] @ row + layer["linear.bias"]) + layer["residual.weight"] @ row for row in rows
    ])  # fmt: skip
    np.testing.assert_allclose(run(model, TEXT, TEXTS), expected, atol=1e-6)
    assert model.info.fingerprint != before.fingerprint


def prompted(folder: Path, said: dict[str, Any], **spec: Any) -> ModelInfo:
    (folder / "config_sentence_transformers.json").write_text(json.dumps(said))
    return ModelCatalog({"m": ModelSettings(source=str(folder), **spec)}).describe("m")


def test_a_query_is_read_with_its_prompt_and_a_document_with_its_own(tmp_path: Path) -> None:
    folder = save_sentence(tmp_path / "m")
    plain = load(folder)
    for named in ("document", "passage", "corpus"):
        prompted(folder, {"prompts": {"query": "ask ", named: "tell "}, "default_prompt_name": None})
        model = load(folder)
        np.testing.assert_allclose(run(model, TEXT, ["snow"]), run(plain, TEXT, ["tell snow"]), atol=1e-6)
        np.testing.assert_allclose(run(model, TEXT, [QueryText("snow")]), run(plain, TEXT, ["ask snow"]), atol=1e-6)
    model = load(folder, query_prompt="find ", document_prompt="")
    np.testing.assert_allclose(run(model, TEXT, ["snow"]), run(plain, TEXT, ["snow"]), atol=1e-6)
    np.testing.assert_allclose(run(model, TEXT, [QueryText("snow")]), run(plain, TEXT, ["find snow"]), atol=1e-6)


def test_what_no_prompt_is_named_for_takes_the_default_as_before(tmp_path: Path) -> None:
    folder = save_sentence(tmp_path / "m")
    info = prompted(folder, {"prompts": {"any": "a "}, "default_prompt_name": "any"})
    assert info.prompts is not None
    assert (info.prompts.query, info.prompts.document) == ("a ", "a ")


def test_prompts_are_in_the_fingerprint_and_those_of_queries_leave_collections_as_they_are(tmp_path: Path) -> None:
    folder = save_sentence(tmp_path / "m")
    bare = prompted(folder, {})
    asking = prompted(folder, {}, query_prompt="query: ")
    telling = prompted(folder, {}, document_prompt="passage: ")
    assert len({bare.fingerprint, asking.fingerprint, telling.fingerprint}) == 3
    assert bare.joint_fingerprint == asking.joint_fingerprint != telling.joint_fingerprint
    said = {"prompts": {"query": "q ", "document": "d "}}
    own = prompted(folder, said)
    # As the operator says them or as the file does: one model.
    assert prompted(folder, said, query_prompt="q ", document_prompt="d ") == own
    # Vectors made before there were two prompts are of the files alone, and can still be had.
    without = prompted(folder, said, query_prompt="", document_prompt="")
    assert without.fingerprint == without.joint_fingerprint
    assert own.fingerprint != without.fingerprint
    assert own.joint_fingerprint != without.joint_fingerprint


def test_a_prompt_may_be_left_out_of_the_pooling(tmp_path: Path) -> None:
    folder = save_sentence(tmp_path / "m")
    for mode in ("mean", "weightedmean", "cls"):
        write_modules(folder, mode, include_prompt=False)
        prompted(folder, {"prompts": {"query": "a dog "}})
        states = alone(folder, "a dog snow")[3:]  # [CLS] a dog
        weights = torch.arange(4, 4 + len(states))[:, None].float()
        expected = {
            "mean": states.mean(0), "weightedmean": (states * weights).sum(0) / weights.sum(), "cls": states[0],
        }[mode]  # fmt: skip
        both = run(load(folder), TEXT, [QueryText("snow"), "a much longer one"])
        np.testing.assert_allclose(both[:1], unit([expected]), atol=2e-6)


def test_prompts_for_a_model_that_takes_none_are_its_error(tmp_path: Path) -> None:
    folder = DUAL_ENCODERS["clip"](tmp_path / "m")
    with pytest.raises(ModelUnavailable, match="family clip, which takes no prompts"):
        load(folder, query_prompt="a photo of ")


@pytest.mark.parametrize("prompt", ["\ud800", "x" * 2_001, 5])
def test_a_prompt_that_cannot_be_shown_stops_start_up(prompt: Any) -> None:
    with pytest.raises(SettingsError, match=r"REVLN_MODELS, m\.query_prompt"):
        Settings.from_env({"REVLN_MODELS": json.dumps({"m": {"source": "/x", "query_prompt": prompt}})})


def test_a_checkpoint_that_says_what_json_cannot_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="malformed"):
        prompted(save_sentence(tmp_path / "m"), {"prompts": {"query": "\ud800"}})


@pytest.mark.parametrize("family", [*DUAL_ENCODERS, "sentence"])
def test_the_longest_text_is_known_without_loading_and_tokens_are_counted_whole(tmp_path: Path, family: str) -> None:
    folder = {**DUAL_ENCODERS, "sentence": save_sentence}[family](tmp_path / "m")
    model = load(folder)
    described = ModelCatalog({"m": ModelSettings(source=str(folder))}).describe("m")
    assert isinstance(model, Counting)
    assert described.max_tokens == model.info.max_tokens
    limit = model.info.max_tokens
    assert limit is not None
    lengths = [model.count_tokens("a " * count) for count in range(1, 60)]
    assert lengths == sorted(lengths)
    assert lengths[0] < limit < lengths[-1]
    # What is counted as too long is cut, and nothing else is.
    cut = next(count for count, length in enumerate(lengths, start=1) if length > limit)
    vectors = run(model, TEXT, ["snow " + "a " * count + end for count in (1, cut) for end in ("", "dog")])
    assert vectors[0] @ vectors[1] < 0.9999
    assert vectors[2] @ vectors[3] > 0.99999
