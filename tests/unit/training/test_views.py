"""Views that are kept as the output of a frozen bottom, and the classes that a backbone tells."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from revln.errors import ValidationFailed
from revln.models.revln.image_cnn import ImageEncoder
from revln.training.classes import class_chances, read_classes
from revln.training.image import _others_cosine
from revln.training.pixels import Augment, whole
from revln.training.views import Fresh, Kept, keep_bottom

CPU = torch.device("cpu")


def test_what_the_top_makes_of_kept_maps_is_what_the_trunk_makes_of_the_pictures(tmp_path: Path) -> None:
    torch.manual_seed(0)
    image = ImageEncoder("mobilenet_v2", 16, 4).eval()
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 64, 64), dtype=np.uint8)
    mirror, augment = np.ones(5, dtype=bool), Augment(64, 0.4, 0.3)
    maps = keep_bottom(image, 15, images, mirror, augment, 2, tmp_path, CPU)
    assert maps.shape == (5, 3, 160, 2, 2)
    with torch.no_grad():
        kept, plain = Kept(image, maps, 15, CPU), image.places(whole(images, CPU))
        near = torch.cat(list(kept.whole()))
        torch.testing.assert_close(near, plain, atol=2e-2 * float(plain.abs().max()), rtol=1e-2)
        fresh = Fresh(image, images, mirror, augment, CPU)
        np.testing.assert_allclose(kept.vectors(False), fresh.vectors(False), atol=2e-2)
        rng = np.random.default_rng(1)
        drawn = torch.stack([kept.draw(rng, np.array([2]))[0] for _ in range(60)])
    assert len({row.numpy().tobytes() for row in drawn}) == 3  # the whole picture and two views of it
    again = keep_bottom(image, 15, images, mirror, augment, 2, tmp_path, CPU)
    assert np.array_equal(again, maps)
    assert len(list(tmp_path.glob("bottom-*.npy"))) == 1
    with torch.no_grad():
        next(image.trunk[3].parameters()).add_(1)
    keep_bottom(image, 15, images, mirror, augment, 2, tmp_path, CPU)
    assert len(list(tmp_path.glob("bottom-*.npy"))) == 2


def test_the_backbones_own_classes_are_read_with_their_names(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("background\ntench, Tinca tinca\ngoldfish\n")
    weight = torch.eye(3, 1280) * 50
    classes = read_classes(path, {"classifier.1.weight": weight, "classifier.1.bias": torch.zeros(3)})
    assert classes.names == [("tench", "Tinca tinca"), ("goldfish",)]
    maps = torch.zeros(2, 4, 1280)
    maps[0, :, 1] = maps[1, :, 2] = 1.0
    found = class_chances(classes, iter([maps]), ["2", "pictures"], tmp_path)
    assert found.argmax(axis=1).tolist() == [0, 1]
    assert found.sum(axis=1) == pytest.approx([1, 1], abs=1e-3)
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ValidationFailed, match="names 0 classes, and the backbone has 3; give its own"):
        read_classes(tmp_path / "empty.txt", {"_fc.weight": weight, "_fc.bias": torch.zeros(3)})
    released = read_classes(path, {"_fc.weight": weight[:2], "_fc.bias": torch.zeros(2)})
    assert released.names == classes.names
    with pytest.raises(ValidationFailed, match="names 2 classes, and the backbone has 5; give its own"):
        read_classes(path, {"_fc.weight": torch.zeros(5, 1280), "_fc.bias": torch.zeros(5)})
    with pytest.raises(ValidationFailed, match="needs a --backbone with its classifier"):
        read_classes(path, {})


def test_a_caption_is_compared_with_its_pictures_other_captions() -> None:
    torch.manual_seed(0)
    texts = torch.nn.functional.normalize(torch.randn(4, 6), dim=1)
    owner = torch.tensor([0, 0, 0, 1])
    got = _others_cosine(texts, owner, 2)
    others = torch.nn.functional.normalize(texts[1] + texts[2], dim=0)
    assert got[0, 0].item() == pytest.approx(float(others @ texts[0]), abs=1e-5)
    assert got[1, 3].item() == pytest.approx(1.0, abs=1e-5)  # its only caption fits it
    assert got[1, 0].item() == pytest.approx(float(texts[3] @ texts[0]), abs=1e-5)
