"""Caption scores against the reference scorer's, and recall against a count by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from revln.training.metrics import bleu, cider, rouge_l, score_captions, tokenize
from revln.training.recall import recall_both_ways

REFERENCE = Path(__file__).parents[3] / "shared/data/caption_metrics/val2014_fakecap_pycocoevalcap.json"


def test_scores_equal_those_of_the_reference_scorer_to_four_decimals() -> None:
    if not REFERENCE.is_file():
        pytest.skip(f"{REFERENCE} is absent")
    data = json.loads(REFERENCE.read_text())
    hyps = [caption[0].split() for caption in data["hyps_tok"].values()]
    refs = [[text.split() for text in data["refs_tok"][key]] for key in data["hyps_tok"]]
    expected = data["overall"]
    assert bleu(hyps, refs) == pytest.approx([expected[f"Bleu_{n}"] for n in range(1, 5)], abs=5e-5)
    assert rouge_l(hyps, refs) == pytest.approx(expected["ROUGE_L"], abs=5e-5)
    assert cider(hyps, refs) == pytest.approx(expected["CIDEr"], abs=5e-5)


def test_a_caption_equal_to_its_reference_scores_full_marks() -> None:
    captions = ["a black dog runs on the grass", "two men play a guitar outside"]
    scores = score_captions(captions, [[text] for text in captions])
    assert scores == {"bleu1": 1.0, "bleu2": 1.0, "bleu3": 1.0, "bleu4": 1.0, "rouge_l": 1.0, "cider": 10.0}


def test_an_empty_caption_scores_nothing_and_breaks_nothing() -> None:
    scores = score_captions(["", "a dog"], [["a cat sits here"], ["the bird flies away"]])
    assert scores["bleu4"] == scores["rouge_l"] == scores["cider"] == 0.0


def test_tokens_are_lower_case_words_without_punctuation() -> None:
    assert tokenize("A dog's two-tone ball, thrown .") == ["a", "dog", "'s", "two-tone", "ball", "thrown"]


def test_tokens_are_words_of_any_script() -> None:
    assert tokenize("Ein Mädchen läuft, 2 Hunde_auch .") == ["ein", "mädchen", "läuft", "2", "hunde", "auch"]
    assert tokenize("\u72d7\u5728\u8dd1\u3002") == ["\u72d7\u5728\u8dd1"]
    assert tokenize("l'été") == ["l", "'été"]


def test_recall_counts_the_best_caption_and_ties_against_the_answer() -> None:
    images = np.eye(3, dtype=np.float32)
    texts = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]], dtype=np.float32)
    i2t, t2i = recall_both_ways(images, texts, [0, 1, 2, 2])
    assert (t2i.r1, t2i.r5) == (75.0, 100.0)
    assert t2i.median_rank == 1.0
    # Text 3 scores as high on pictures 0 and 1 as their own captions do.
    assert i2t.r1 == pytest.approx(33.33)


def test_a_model_that_says_the_same_of_everything_recalls_nothing() -> None:
    same = np.ones((20, 4), dtype=np.float32)
    i2t, t2i = recall_both_ways(same, same, list(range(20)))
    assert i2t.r10 == t2i.r10 == 0.0
