"""What the files of a dual encoder say: the size of its joint space and of its pictures. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from revln.models.base import ModelInfo, Operation
from revln.models.checkpoint import CONFIG_FILE, Checkpoint
from revln.models.prompts import marked

__all__ = ["describe", "needed_side", "reads_lower_case"]

# save_pretrained leaves out what is as its class has it by default.
_PROJECTION = {"clip": 512, "chinese_clip": 512, "align": 640}
_SIGLIP_HIDDEN = 768
_PLACES = {"clip": 77, "siglip": 64, "siglip2": 64}
_LOWERING = frozenset({"", "SiglipTokenizer", "Siglip2Tokenizer"})
_USUAL_SIDE = 224
# The library resizes the whole picture. A JPEG decoded at an eighth of its size and then resized is another picture;
# at four times the needed side or more, none that a model could tell (docs/models.md has the figure).
_OVERSAMPLING = 4


def describe(name: str, family: str, checkpoint: Checkpoint) -> ModelInfo:
    """Raises ModelUnavailable if a file is missing or damaged."""
    config = checkpoint.json(CONFIG_FILE)
    fingerprint = checkpoint.fingerprint(family)
    return ModelInfo(
        name=name,
        family=family,
        operations=(Operation.EMBED_IMAGE, Operation.EMBED_TEXT),
        dim=_dim(config),
        # Versions before this one kept upper case: their vectors of texts may not meet these.
        fingerprint=marked(fingerprint, "lower case") if reads_lower_case(checkpoint) else fingerprint,
        image_size=needed_side(checkpoint),
        parameters=checkpoint.parameters(),
        max_tokens=_max_tokens(checkpoint, config),
    )


def reads_lower_case(checkpoint: Checkpoint) -> bool:
    """Whether its texts must be lowered for it: SigLIP 2 of fixed resolution comes with Gemma's tokenizer.

    Both SigLIPs were trained on lower case. The library's own tokenizers of them lower by themselves; Gemma's, which
    those checkpoints name, keeps upper case.
    """
    named = str(checkpoint.tokenizer_settings().get("tokenizer_class", "")).removesuffix("Fast")
    return checkpoint.json(CONFIG_FILE)["model_type"] == "siglip" and named not in _LOWERING


def _dim(config: Mapping[str, Any]) -> int:
    model_type = str(config["model_type"])
    if model_type in _PROJECTION:
        return int(config.get("projection_dim", _PROJECTION[model_type]))
    return int((config.get("vision_config") or {}).get("hidden_size", _SIGLIP_HIDDEN))


def _max_tokens(checkpoint: Checkpoint, config: Mapping[str, Any]) -> int:
    usual = _PLACES.get(str(config["model_type"]), 512)
    own = int((config.get("text_config") or {}).get("max_position_embeddings") or usual)
    return int(min(own, checkpoint.tokenizer_settings().get("model_max_length") or own))


def needed_side(checkpoint: Checkpoint) -> int:
    """The shorter side, in pixels, below which a picture may not be decoded for this model's image processor."""
    settings: Mapping[str, Any] = {}
    if checkpoint.here("preprocessor_config.json"):
        settings = checkpoint.json("preprocessor_config.json")
    if checkpoint.here("processor_config.json"):
        settings = checkpoint.json("processor_config.json").get("image_processor") or settings
    sides = [*_sides(settings.get("size")), *_sides(settings.get("crop_size"))]
    if "max_num_patches" in settings:  # NaFlex: as many patches as there may be, in any shape
        sides.append(int(settings["max_num_patches"] ** 0.5 * settings.get("patch_size", 16)))
    return _OVERSAMPLING * max(sides, default=_USUAL_SIDE)


def _sides(size: Any) -> list[int]:
    values = size.values() if isinstance(size, Mapping) else [size]
    return [value for value in values if isinstance(value, int) and not isinstance(value, bool)]
