"""Evidence of every quality, and what is measured of it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from revln.models.revln.tokenizer import train_tokenizer
from revln.training.calibrate import evidence_levels, fitted_confidence
from revln.training.captions import fitted_noise
from revln.training.contrast import contrastive_loss
from revln.training.evidence import Naming, Prompter, Store, draw_evidence


def unit(rng: np.random.Generator, *shape: int) -> npt.NDArray[np.float32]:
    vectors = rng.normal(size=shape)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True), dtype=np.float32)


def store(n: int = 40) -> Store:
    return Store([f"sentence {i}" for i in range(n)], unit(np.random.default_rng(0), n, 8))


def test_a_pictures_own_sentences_are_not_retrieved_for_it_and_the_others_come_nearest_first() -> None:
    of, own = store(), [{0, 1, 2}, set()]
    queries = of.vectors[[0, 5]]
    for row, query, mine in zip(of.nearest(np.random.default_rng(1), queries, own), queries, own, strict=True):
        assert len(row) == 12
        assert mine.isdisjoint(row)
        rest = [j for j in np.argsort(-(of.vectors @ query)).tolist() if j not in mine]
        assert row == rest[:12]


def test_prompts_hold_evidence_of_every_quality() -> None:
    rng, of, near, own = np.random.default_rng(0), store(), list(range(10, 22)), [1, 2, 3]
    drawn = [draw_evidence(rng, of, near, own, 4) for _ in range(2000)]
    none = np.mean([not one for one in drawn])
    with_own = np.mean([bool(set(own) & set(one)) for one in drawn])
    retrieved = np.mean([bool(one) and set(one) <= set(near) for one in drawn])
    strange = np.mean([any(j not in near and j not in own for j in one) for one in drawn])
    for share, wanted in ((none, 0.30), (with_own, 0.20), (retrieved, 0.35), (strange, 0.17)):
        assert share == pytest.approx(wanted, abs=0.05)
    # A picture without other sentences is told no own ones.
    assert not any({1, 2, 3} & set(draw_evidence(rng, store(3 * 10**5), near, [], 4)) for _ in range(50))


def test_the_sentence_to_be_told_is_in_18_of_100_prompts() -> None:
    rng, of, near, own = np.random.default_rng(0), store(), list(range(10, 22)), [1, 2, 3]
    drawn = [draw_evidence(rng, of, near, own, 4, 0) for _ in range(3000)]
    exact = [one for one in drawn if one[:1] == [0] and set(one[1:]) <= set(near)]
    assert len(exact) / len(drawn) == pytest.approx(0.18, abs=0.03)
    assert {len(one) for one in exact} == {1, 2, 3, 4}
    assert np.mean([not one for one in drawn]) == pytest.approx(0.82 * 0.30, abs=0.04)


def test_a_prompt_says_how_near_each_sentence_is_nearest_first() -> None:
    tokenizer = train_tokenizer(["a dog", "a cat", "0: 1: 2:", "this picture shows:"], 300)
    of = Store(["a dog", "a cat", "a cow"], np.array([[1, 0], [0.6, 0.8], [0, 1]], dtype=np.float32))
    prompter = Prompter(tokenizer, 2, 6, [0.5, 0.9])
    got = prompter(np.array([1, 0], dtype=np.float32), of, [2, 1, 0])
    assert got == tokenizer.prompt([(2, "a dog"), (1, "a cat")], 6)
    assert prompter(np.array([1, 0], dtype=np.float32), of, []) == tokenizer.prompt((), 6)


def test_a_labelled_picture_is_told_of_by_a_sentence_that_names_it_and_is_near_it() -> None:
    texts = [f"a golden retriever runs {i}" for i in range(20)] + ["two dogs", "the golden gate"]
    of = Store(texts, unit(np.random.default_rng(0), len(texts), 8))
    naming, rng = Naming(of), np.random.default_rng(0)
    nearest = set(np.argsort(-(of.vectors[:20] @ of.vectors[3]))[:8].tolist())
    assert {naming.fitting(rng, "golden retriever", of.vectors[3]) for _ in range(60)} <= nearest
    assert naming.fitting(rng, "dog", of.vectors[3]) is None  # one sentence is no choice
    assert naming.fitting(rng, "black retriever", of.vectors[3]) in nearest  # by its last word


def test_a_sentence_with_noise_fits_another_of_its_picture_as_well_as_a_picture_does() -> None:
    rng = np.random.default_rng(0)
    centres = unit(rng, 60, 32)
    vectors = np.concatenate([centres + 0.05 * rng.normal(size=(60, 32)) for _ in range(3)]).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    of = Store([str(i) for i in range(180)], vectors)
    groups = [[i, i + 60, i + 120] for i in range(60)]
    noises = {wanted: fitted_noise(of, groups, wanted)[0] for wanted in (0.8, 0.6, 0.4)}
    assert 0 < noises[0.8] < noises[0.6] < noises[0.4] < 3
    assert fitted_noise(of, groups, 0.6)[1].shape == (32,)


def test_levels_are_shares_of_a_pictures_own_captions() -> None:
    cosines = np.linspace(0, 1, 1001).astype(np.float32)
    assert evidence_levels(cosines) == [0.02, 0.1, 0.25, 0.5, 0.75]


def test_confidence_is_how_right_a_caption_is() -> None:
    rng = np.random.default_rng(0)
    features = np.column_stack([rng.uniform(size=4000), rng.normal(-2, 1, 4000), np.zeros(4000), np.zeros(4000)])
    right = 1 / (1 + np.exp(-(4 * features[:, 0] + features[:, 1])))
    bias, *slopes = fitted_confidence(features, right)
    said = 1 / (1 + np.exp(-(bias + features @ slopes)))
    assert np.abs(said - right).mean() < 0.02
    assert slopes[0] > 1
    assert slopes[2] == slopes[3] == 0  # what never varies says nothing


def test_pictures_of_one_name_are_not_each_others_negatives() -> None:
    images = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]), dim=1)
    owner, scale = torch.arange(3), torch.tensor(20.0)
    fits = torch.tensor([[True, True, False], [True, True, False], [False, False, True]])
    assert contrastive_loss(images, images, owner, scale, 0.5, fits).item() < 0.01
    assert contrastive_loss(images, images, owner, scale, 0.5).item() > 0.3
    # Texts of no picture are wrong answers, too.
    assert contrastive_loss(images, images, owner, scale, 0.0, fits, images[:1]).item() > 0.1
    alone = contrastive_loss(images[:1], images[:1], owner[:1], scale.requires_grad_(), 0.0)
    torch.autograd.backward(alone)
    assert alone.item() == pytest.approx(0, abs=1e-6)
    assert torch.isfinite(scale.grad if scale.grad is not None else torch.tensor(torch.nan))
