"""A few pictures of new names: they are learned, and the words that were known stay."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch

from revln.models.revln.text_gru import TextEncoder, pad
from revln.models.revln.tokenizer import Tokenizer, train_tokenizer
from revln.training.corpus import Photo
from revln.training.curves import Curves
from revln.training.few import few_stage, wise
from revln.training.labels import NAMED
from revln.training.stage import Schedule, run_stage

OLD = ["cat", "dog", "car", "tree", "house", "boat", "bird", "horse", "apple", "bread", "chair", "table"]
NEW = ["zyx", "quokka", "okapi", "tapir"]


def told(text: TextEncoder, tokenizer: Tokenizer, names: list[str]) -> torch.Tensor:
    with torch.no_grad():
        vectors: torch.Tensor = text.eval()(*pad([tokenizer.encode(NAMED[0].format(name)) for name in names]))
    return vectors


def test_a_few_pictures_teach_new_names_and_leave_the_old_ones(tmp_path: Path) -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    tokenizer = train_tokenizer([one.format(name) for name in OLD for one in NAMED] * 3, 400)
    assert set(OLD) <= set(tokenizer.words())
    text = TextEncoder(tokenizer.size, 16, 32, 32)
    start = {name: tensor.clone() for name, tensor in text.state_dict().items()}
    # Pictures of old names lie where the start puts these; those of new ones anywhere.
    old = told(text, tokenizer, OLD)
    centres = rng.normal(size=(len(NEW), 32))
    seen = np.stack([np.repeat(centres, 5, axis=0) + 0.3 * rng.normal(size=(20, 32)) for _ in range(4)])
    vectors = (seen / np.linalg.norm(seen, axis=2, keepdims=True)).astype(np.float32)
    photos = [Photo(f"{i}.png", "mine", labels=(NEW[i // 5],)) for i in range(20)]

    def top1() -> float:
        return float(np.mean((vectors[0] @ told(text, tokenizer, NEW).numpy().T).argmax(axis=1) == np.arange(20) // 5))

    assert top1() < 0.6
    cpu = torch.device("cpu")
    stage = few_stage(text, tokenizer, photos, vectors, 12, 0, dict, None, cpu)
    # A text encoder of random weights learns slower than a trained one.
    schedule = Schedule(0, cpu, False, tmp_path, math.inf, 5, math.inf, learning_rate=10)
    run_stage(stage, schedule, Curves(tmp_path))
    wise(text, start)
    assert top1() > 0.9
    after = told(text, tokenizer, OLD)
    assert (old * after).sum(dim=1).mean() > 0.95
    assert ((old @ after.T).argmax(dim=1) == torch.arange(len(OLD))).all()
