"""The families: what each is called, which checkpoints are of it, and where the code is that reads them.

A family is two functions, named as ``module:function`` so that nothing heavy is imported before it is used:

- ``describe(name, family, checkpoint) -> ModelInfo`` reads files only; it may not import torch or transformers.
- ``load(info, checkpoint, device, dtype) -> Model`` gets all files on this machine, a torch device and a dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, cast

from revln.errors import ModelUnavailable
from revln.models.base import Model, ModelInfo
from revln.models.checkpoint import CONFIG_FILE, Checkpoint

__all__ = ["AUTO", "FAMILIES", "Family", "find_family", "normal_name", "weights_only"]

AUTO = "auto"
Describe = Callable[[str, str, Checkpoint], ModelInfo]
Load = Callable[[ModelInfo, Checkpoint, str, str], Model]


@dataclass(frozen=True, slots=True)
class Family:
    """One row of the table.

    Attributes:
        model_types: what config.json calls checkpoints of it; empty: the family judges its files itself.
        variants: its name goes on after a colon.
        described_whole: not even describing it can do without the weights.
        half: what dtype ``auto`` is on a GPU.
        wide: model types that were trained in bfloat16 and outgrow float16, as language models do.
    """

    describe_at: str
    load_at: str
    model_types: frozenset[str] = frozenset()
    variants: bool = False
    described_whole: bool = False
    half: str = "float16"
    wide: frozenset[str] = frozenset()

    def half_of(self, checkpoint: Checkpoint) -> str:
        known = checkpoint.json(CONFIG_FILE) if self.wide else {}
        return "bfloat16" if known.get("model_type") in self.wide else self.half

    def describe(self, name: str, family: str, checkpoint: Checkpoint) -> ModelInfo:
        return cast(Describe, _resolve(self.describe_at))(name, family, checkpoint)

    def load(self, info: ModelInfo, checkpoint: Checkpoint, device: str, dtype: str) -> Model:
        return cast(Load, _resolve(self.load_at))(info, checkpoint, device, dtype)


def _transformers(
    card: str, code: str, *model_types: str, half: str = "float16", wide: frozenset[str] = frozenset()
) -> Family:
    return Family(f"revln.models.{card}", f"revln.models.{code}", frozenset(model_types), half=half, wide=wide)


def _dual_encoder(*model_types: str) -> Family:
    return _transformers("dual_encoder_card:describe", "dual_encoder:load", *model_types)


def _captioner(code: str, *model_types: str, half: str = "float16") -> Family:
    return _transformers("captioners_card:describe", code, *model_types, half=half)


# Those that were trained on to be sentence encoders; sentence_card refuses the others.
_LANGUAGE_MODELS = frozenset({"gemma3_text", "mistral", "qwen2", "qwen3"})

# Where a model type stands twice, "auto" takes the family of that name, else the first.
FAMILIES: dict[str, Family] = {
    # Its joint fingerprint covers some of the tensors alone, of which no hub states a hash.
    "revln": Family(
        "revln.models.revln.card:describe_checkpoint",
        "revln.models.revln.model:load_checkpoint",
        described_whole=True,
    ),
    "clip": _dual_encoder("clip"),
    # SigLIP 2 of fixed resolution is published as the architecture SigLIP, NaFlex as its own.
    "siglip": _dual_encoder("siglip", "siglip2"),
    "siglip2": _dual_encoder("siglip2", "siglip"),
    "chinese-clip": _dual_encoder("chinese_clip"),
    "align": _dual_encoder("align"),
    "sentence": _transformers(
        "sentence_card:describe",
        "sentence:load",
        "bert",
        "distilbert",
        "mpnet",
        "roberta",
        "xlm-roberta",
        "camembert",
        "albert",
        "electra",
        "modernbert",
        *_LANGUAGE_MODELS,
        wide=_LANGUAGE_MODELS,
    ),
    "vision-encoder-decoder": _captioner("captioners:load_vision_encoder_decoder", "vision-encoder-decoder"),
    "blip": _captioner("captioners:load_blip", "blip"),
    "git": _captioner("captioners:load_git", "git"),
    "image-text-to-text": _captioner(
        "chat_captioner:load",
        "florence2",
        "qwen2_vl",
        "qwen2_5_vl",
        "qwen3_vl",
        "smolvlm",
        "idefics3",
        "llava",
        "llava_next",
        "llava_onevision",
        half="bfloat16",
    ),
    "cnn": Family("revln.models.cnn_card:describe", "revln.models.cnn:load", variants=True, described_whole=True),
}


def normal_name(family: str) -> str:
    """As the table spells it: ``Chinese_CLIP`` is ``chinese-clip``."""
    head, colon, variant = family.strip().partition(":")
    return head.lower().replace("_", "-") + colon + variant


def weights_only(family: str) -> bool:
    """Whether its checkpoints are weights and nothing else, so that its name says which network they are of."""
    known = FAMILIES.get(normal_name(family).partition(":")[0])
    return known is not None and known.variants


def find_family(family: str, checkpoint: Checkpoint) -> tuple[str, Family]:
    """The family's full name and its entry; ``auto`` is found out from config.json.

    Raises:
        ModelUnavailable: the checkpoint is of another architecture, of one that no family reads, or needs code of its
            own.
    """
    family = normal_name(family)
    known = FAMILIES.get(family.partition(":")[0])
    if known is not None and not known.model_types:
        return family, known  # it judges its files itself
    if checkpoint.only is not None:
        raise ModelUnavailable(
            f"{checkpoint.source} is a single file, which says nothing of its architecture: name the family, as in "
            "cnn:resnet50, or give the folder."
        )
    config = checkpoint.json(CONFIG_FILE)
    if config.get("family") == "revln" and family == AUTO:
        return "revln", FAMILIES["revln"]
    model_type = config.get("model_type")
    if known is not None:
        if model_type not in known.model_types:
            raise ModelUnavailable(
                f"{checkpoint.source} is of type {model_type!r}; family {family} reads {_list(known.model_types)}. "
                'Name its own family, or "auto".'
            )
        return family, known
    own = normal_name(str(model_type))
    for name in (own, *FAMILIES):
        if name in FAMILIES and model_type in FAMILIES[name].model_types:
            return name, FAMILIES[name]
    if "auto_map" in config:
        raise ModelUnavailable(
            f"{checkpoint.source} (type {model_type!r}) needs code of its own, which revln never runs; use a model "
            "that transformers knows by itself."
        )
    types = _list({each for one in FAMILIES.values() for each in one.model_types})
    raise ModelUnavailable(f"{checkpoint.source} is of type {model_type!r}; revln reads {types}. See docs/models.md.")


def _list(names: Any) -> str:
    return ", ".join(sorted(names))


def _resolve(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)
