"""From a name in REVLN_MODELS to files: folders, a hub's cache as it really lies on disk, and every way to fail."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from revln.errors import ModelUnavailable, NotFound, SettingsError
from revln.models.base import Operation
from revln.models.device import resolve_dtype
from revln.models.families import FAMILIES
from revln.models.registry import ModelCatalog
from revln.settings import ModelSettings, Settings
from tests.tiny_models import save_clip, save_sentence

HUB_ID = "acme/tiny-clip"
FIRST, SECOND = "1" * 40, "2" * 40


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip") / "clip")


@pytest.fixture
def cache(tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub's cache that holds two commits of one model: `main`, and the tag `v1` with other preprocessing."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    root = tmp_path / "models--acme--tiny-clip"
    for ref, commit in (("main", FIRST), ("v1", SECOND)):
        (root / "refs").mkdir(parents=True, exist_ok=True)
        (root / "refs" / ref).write_text(commit)
        shutil.copytree(clip, root / "snapshots" / commit)
    processor = root / "snapshots" / SECOND / "processor_config.json"
    facts = json.loads(processor.read_text())
    facts["image_processor"]["image_mean"] = [0.1, 0.1, 0.1]
    processor.write_text(json.dumps(facts))
    return tmp_path


def catalog(source: str | Path, **spec: Any) -> ModelCatalog:
    return ModelCatalog({"m": ModelSettings(source=str(source), **spec)})


def refusal(source: str | Path, **spec: Any) -> str:
    """What describing says, which loading says too."""
    with pytest.raises(ModelUnavailable) as described:
        catalog(source, **spec).describe("m")
    with pytest.raises(ModelUnavailable) as loaded:
        catalog(source, **spec).load("m", "cpu")
    assert described.value.message == loaded.value.message
    assert "\n" not in described.value.message
    return described.value.message


def test_a_cached_model_is_used_offline_in_the_revision_that_was_named(cache: Path, clip: Path) -> None:
    at_main, at_v1 = catalog(HUB_ID).describe("m"), catalog(HUB_ID, revision="v1").describe("m")
    assert at_main.fingerprint == catalog(clip).describe("m").fingerprint, "where files lie changes nothing"
    assert at_v1.fingerprint != at_main.fingerprint
    assert catalog(HUB_ID, revision=SECOND).describe("m").fingerprint == at_v1.fingerprint
    model = catalog(HUB_ID, revision="v1").load("m", "cpu")
    raw = model.forward(Operation.EMBED_TEXT, [model.prepare(Operation.EMBED_TEXT, "a dog")])
    assert model.finish(Operation.EMBED_TEXT, raw[0]).shape == (model.info.dim,)


def test_what_is_not_cached_offline_says_so(cache: Path) -> None:
    assert "HF_HUB_OFFLINE is set" in refusal("acme/other")
    assert "HF_HUB_OFFLINE is set" in refusal(HUB_ID, revision="v2")


def _http(kind: type[errors.HfHubHTTPError], status: int) -> Callable[[], Exception]:
    request = httpx2.Request("GET", "https://hub.invalid/")
    return lambda: kind("no", response=httpx2.Response(status, request=request))


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (_http(errors.GatedRepoError, 403), r"acme/tiny-clip is gated: accept its terms .* HF_TOKEN"),
        (_http(errors.RepositoryNotFoundError, 404), r"no folder 'acme/tiny-clip' here, and no such model on the hub"),
        (_http(errors.RevisionNotFoundError, 404), r"no revision 'v9'"),
        (lambda: errors.LocalEntryNotFoundError("no"), r"at revision 'v9' .*the hub does not answer; give a folder"),
        (lambda: OSError(28, "No space left on device"), r"could not be fetched: OSError: .*No space left"),
    ],
    ids=["gated", "missing", "no such revision", "no network", "disk full"],
)
def test_whatever_the_hub_refuses_becomes_one_sentence(
    monkeypatch: pytest.MonkeyPatch, error: Callable[[], Exception], says: str
) -> None:
    def refuse(*_: Any, **__: Any) -> str:
        raise error()

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(ModelUnavailable, match=says):
        catalog(HUB_ID, revision="v9").describe("m")


def on_the_hub(monkeypatch: pytest.MonkeyPatch, model: Path, here: Path) -> list[list[str]]:
    """A hub whose only repository, at `v1`, holds the files of ``model``, fetched to ``here``; what was asked for."""
    asked: list[list[str]] = []

    def download(_source: str, *, revision: str | None, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        assert revision == "v1"
        asked.append(allow_patterns)
        here.mkdir(exist_ok=True)
        for file in model.iterdir():
            if any(fnmatch.fnmatch(file.name, pattern) for pattern in allow_patterns):
                shutil.copy(file, here)
        return str(here)

    def tree(_source: str, *, revision: str) -> list[Any]:
        assert revision == here.name
        listed = []
        for file in model.iterdir():
            sha = SimpleNamespace(sha256=hashlib.sha256(file.read_bytes()).hexdigest())
            lfs = sha if file.suffix == ".safetensors" else None
            listed.append(SimpleNamespace(path=file.name, size=file.stat().st_size, lfs=lfs))
        return listed

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub, "get_cached_repo_tree", tree)
    return asked


def test_describing_downloads_no_weights_and_loading_changes_no_fingerprint(
    monkeypatch: pytest.MonkeyPatch, clip: Path, tmp_path: Path
) -> None:
    here = tmp_path / FIRST
    asked = on_the_hub(monkeypatch, clip, here)
    models = catalog(HUB_ID, revision="v1")
    described = models.describe("m")
    assert not (here / "model.safetensors").exists()
    assert described.parameters is None, "not known before its weights are here"
    assert described.fingerprint == catalog(clip).describe("m").fingerprint
    assert models.load("m", "cpu").info.fingerprint == described.fingerprint
    assert "model.safetensors" in asked[-1]
    assert models.fetch("m").parameters == catalog(clip).describe("m").parameters


@pytest.mark.parametrize("family", ["auto", "revln"])
def test_a_revln_model_of_a_hub_is_described_from_its_weights(
    monkeypatch: pytest.MonkeyPatch, small_checkpoint: Path, tmp_path: Path, family: str
) -> None:
    on_the_hub(monkeypatch, small_checkpoint, tmp_path / FIRST)
    models = catalog(HUB_ID, revision="v1", family=family)
    described = models.describe("m")
    assert described == catalog(small_checkpoint).describe("m"), "where files lie changes nothing"
    assert models.load("m", "cpu").info == described


def test_weights_that_could_run_code_are_not_read(tmp_path: Path, clip: Path) -> None:
    folder = shutil.copytree(clip, tmp_path / "pickled")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    said = refusal(folder)
    assert "safetensors only" in said
    assert "save_pretrained" in said
    (tmp_path / "weights.bin").write_bytes(b"x")
    assert "not a .safetensors file" in refusal(tmp_path / "weights.bin", family="cnn:resnet18")


def test_code_that_a_model_brings_along_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    config = {"model_type": "evil", "auto_map": {"AutoModel": "evil.Model", "AutoConfig": "evil.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "needs code of its own, which revln never runs" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("text", "says"),
    [("{", "not JSON"), ("[]", "not a JSON object"), ('{"model_type": "llama"}', "type 'llama'; revln reads")],
    ids=["cut off", "a list", "another architecture"],
)
def test_a_config_that_revln_cannot_read_says_why(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "config.json").write_text(text)
    assert says in refusal(tmp_path)


@pytest.mark.parametrize(
    ("file", "change", "says"),
    [
        ("modules.json", [{"idx": 0, "path": ""}], "KeyError: 'type'"),
        ("2_Dense/config.json", {"in_features": 32}, "KeyError: 'out_features'"),
        ("config_sentence_transformers.json", {"prompts": ["query: "]}, "AttributeError: "),
        ("config.json", {"model_type": "clip", "projection_dim": None}, "TypeError: int"),
        ("config.json", {"model_type": "clip", "projection_dim": "wide"}, "ValueError: invalid literal"),
        ("config.json", {"model_type": ["clip"]}, "TypeError: "),
        ("config.json", {"model_type": "bert", "hidden_size": float("inf")}, "OverflowError: "),
    ],
    ids=["no type", "no width", "a list", "null", "a word", "no name", "endless"],
)
def test_a_malformed_folder_is_refused_with_the_models_name_and_what_is_wrong(
    tmp_path: Path, file: str, change: Any, says: str
) -> None:
    folder = save_sentence(tmp_path / "malformed", dense=8)
    if file == "config.json":
        (folder / "modules.json").unlink()
    (folder / file).write_text(json.dumps(change))
    said = refusal(folder)
    assert said.startswith(f"Model m: a file of {folder} is malformed")
    assert says in said


def test_the_operators_limit_of_evidence_comes_before_the_checkpoints(
    clip: Path, small_checkpoint: Path, tmp_path: Path
) -> None:
    measured = shutil.copytree(small_checkpoint, tmp_path / "measured")
    config = json.loads((measured / "config.json").read_text())
    (measured / "config.json").write_text(json.dumps(config | {"evidence_min_score": 0.4}))
    for folder, own in ((clip, None), (measured, 0.4)):
        bare = catalog(folder).describe("m")
        assert bare.evidence_min_score == own
        for limit in (0.0, -1.0, 0.25):
            models = catalog(folder, evidence_min_score=limit)
            assert models.describe("m") == replace(bare, evidence_min_score=limit)
            assert models.load("m", "cpu").info == models.describe("m")


@pytest.mark.parametrize(
    ("limit", "says"), [(1.5, "less than or equal to 1"), (-2, "greater than or equal to -1"), ("near", "valid number")]
)
def test_a_limit_of_evidence_that_is_no_cosine_stops_start_up(limit: Any, says: str) -> None:
    models = {"m": {"source": "/x", "evidence_min_score": limit}}
    with pytest.raises(SettingsError, match=f"REVLN_MODELS, m.evidence_min_score: .*{says}"):
        Settings.from_env({"REVLN_MODELS": json.dumps(models)})


def test_another_family_than_the_checkpoints_own_is_refused(clip: Path) -> None:
    assert "is of type 'clip'; family siglip reads siglip, siglip2" in refusal(clip, family="siglip")


def test_a_family_that_does_not_exist_stops_start_up() -> None:
    with pytest.raises(SettingsError, match="'gpt'; there are auto, revln, clip"):
        catalog("/x", family="gpt")


def test_only_configured_names_are_found(clip: Path) -> None:
    models = catalog(clip)
    for name in (str(clip), HUB_ID, "../m", ""):
        with pytest.raises(NotFound, match="there are m, revln-tiny"):
            models.describe(name)


def test_a_device_that_is_not_there_is_named(clip: Path) -> None:
    with pytest.raises(ModelUnavailable, match=r"m is to run on cuda:99, but this worker's machine has"):
        catalog(clip, device="cuda:99").load("m", "cpu")


@pytest.mark.parametrize(("half", "capability", "got"), [
    ("float16", 9, "float16"), ("bfloat16", 9, "bfloat16"), ("bfloat16", 7, "float16"),
])  # fmt: skip
def test_auto_precision_on_a_gpu_is_the_familys_own_half(
    monkeypatch: pytest.MonkeyPatch, half: str, capability: int, got: str
) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: (capability, 0))
    assert resolve_dtype("auto", "cuda", half) == got
    assert FAMILIES["revln"].half == FAMILIES["clip"].half == "float16"
    assert FAMILIES["image-text-to-text"].half == "bfloat16"


def test_auto_precision_is_whole_on_a_processor_and_a_models_own_device_wins(clip: Path) -> None:
    model = catalog(clip, dtype="auto", device="cpu").load("m", "cuda")
    assert (model.device, model.dtype) == ("cpu", "float32")
