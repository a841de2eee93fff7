"""`revln eval` on models that only embed, or only caption."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from revln.cli.evaluate import evaluate
from tests.tiny_captioners import save_vit_gpt2
from tests.tiny_models import photo, save_clip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    lines = []
    for i in range(4):
        photo(i).save(folder / f"{i}.png")
        lines += [
            {"file": f"{i}.png", "split": split, "captions": [f"picture {i}", "a b c"]} for split in ("train", "dev")
        ]
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def test_eval_measures_what_a_model_does_and_drops_evidence_that_is_too_far(
    data: Path, tmp_path: Path, small_checkpoint: Path
) -> None:
    captions = str(data / "captions.jsonl")

    def report(model: Path, *more: str) -> dict[str, Any]:
        args = ["--model", str(model), "--data", captions, "--images", str(data), "--json", "--limit", "3", *more]
        result = CliRunner().invoke(evaluate, args)
        assert result.exit_code == 0, result.output
        return dict(json.loads(result.stdout))

    clip, captioner = save_clip(tmp_path / "clip"), save_vit_gpt2(tmp_path / "vit-gpt2")
    found = report(clip, "--store", captions)
    assert found["i2t"]["r10"] > 0
    assert found["caption"] is found["caption_no_retrieval"] is None

    found = report(captioner, "--store", captions, "--retriever", str(clip))
    assert found["i2t"] is found["t2i"] is None
    assert found["with_evidence"] == 3
    assert set(found["caption"]) == set(found["caption_no_retrieval"])
    refused = CliRunner().invoke(
        evaluate, ["--model", str(captioner), "--data", captions, "--images", str(data), "--store", captions]
    )
    assert refused.exit_code == 1
    assert "--retriever" in refused.output

    far = tmp_path / "far"
    shutil.copytree(small_checkpoint, far)
    config = json.loads((far / "config.json").read_text())
    (far / "config.json").write_text(json.dumps(config | {"evidence_min_score": 1.0}))
    found = report(far, "--store", captions)
    assert found["with_evidence"] == 0
    assert found["caption"] == found["caption_no_retrieval"]
