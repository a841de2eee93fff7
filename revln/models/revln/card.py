"""What stands in a revln checkpoint folder: its configuration, its fingerprint, its description.

A folder holds config.json, model.safetensors, tokenizer.json and MODEL_CARD.md. Nothing here imports torch, so that
the API process can describe a model that only workers load.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from revln.errors import ModelUnavailable
from revln.models.base import ModelInfo, Operation
from revln.models.checkpoint import CONFIG_FILE, Checkpoint, count_parameters, read_header

__all__ = [
    "CONFIG_FILE",
    "FAMILY",
    "TOKENIZER_FILE",
    "WEIGHTS_FILE",
    "RevlnConfig",
    "describe",
    "describe_checkpoint",
    "fingerprint",
    "joint_fingerprint",
]

FAMILY = "revln"
WEIGHTS_FILE = "model.safetensors"
# What vectors come from, by the names of tensors; and the settings that none hangs on, by how their names begin.
_JOINT_TENSORS = ("image.", "text.")
_CAPTION_ONLY = ("caption_", "max_evidence", "evidence_", "prefix_tokens", "license", "match_")
# Said of the outputs, and not what they are made of: to measure them again makes no other model.
_NOT_IN_FINGERPRINT = frozenset({"evidence_min_score", "match_min_score"})
# What a folder that does not say it was measured with: it is older than the setting.
_UNSAID: dict[str, Any] = {
    "trunk": "mobilenet_v2",
    "mirror": False,
    "caption_vector_tokens": 0,
    "caption_no_repeat_ngram_size": 0,
    "caption_cosine": 0.0,
    "caption_confidence": None,
    "evidence_levels": None,
}
TOKENIZER_FILE = "tokenizer.json"
# 1 kept the trunk's batch norms and one bidirectional GRU. 2 had one trunk, and a decoder that saw no vector.
_FORMAT, _READABLE = 3, (2, 3)


@dataclass(frozen=True, slots=True)
class RevlnConfig:
    """Sizes, preprocessing and decoding. Written to config.json, and so part of the fingerprint."""

    format: int = _FORMAT
    # Image: squashed to image_size × image_size with a bicubic antialiased filter, then x / 127.5 − 1.
    image_size: int = 224
    trunk: str = "efficientnet_lite2"  # one of revln.models.revln.trunks
    pool_heads: int = 8
    # A picture's vector is that of the sum of its own and its mirror image's.
    mirror: bool = True
    # The joint space.
    dim: int = 256
    # Text: lower-cased, NFC, byte-level BPE; longer texts are cut to text_tokens.
    vocab_size: int = 8000
    text_tokens: int = 64
    text_embedding: int = 256
    text_hidden: int = 512
    # Decoder: GPT-2 with cross-attention to the feature map, and to so many places made of the picture's vector.
    caption_vector_tokens: int = 4
    caption_width: int = 256
    caption_layers: int = 4
    caption_heads: int = 4
    caption_inner: int = 1024
    caption_positions: int = 200
    # Where a request says nothing: no run of so many tokens twice in a caption.
    caption_no_repeat_ngram_size: int = 2
    # Beams are ranked by log-probability a token, plus so many times the cosine of caption and picture; 0: without.
    # Where caption_confidence is measured, that ranks instead.
    caption_cosine: float = 1.0
    # Weights of a logistic regression on CONFIDENCE_FEATURES, the bias first: how likely a caption is right. Training
    # measures it. Retrieved captions then compete with the beams.
    caption_confidence: list[float] | None = None
    # Prompt: the nearest max_evidence captions, each cut to evidence_tokens; a user's prefix is cut to prefix_tokens.
    max_evidence: int = 4
    evidence_tokens: int = 20
    # A retrieved caption's level in the prompt is the number of these cosines, to the picture, that it reaches.
    evidence_levels: list[float] | None = None
    prefix_tokens: int = 32
    license: str = "not stated by whoever trained it"
    # Least cosine to an item that is a match at all, for a query by "text" and by "image". Training measures it.
    match_min_score: dict[str, float] | None = None
    # Least cosine of a retrieved caption that may be evidence; below it, the nearest is too far to tell anything.
    evidence_min_score: float | None = None

    @property
    def max_new_tokens(self) -> int:
        """What the longest prompt leaves of the positions; fixed, so that no neighbour shortens a caption."""
        fixed_words = 30  # <bos> … this picture shows:, were each byte a token
        each = self.evidence_tokens + (1 if self.evidence_levels is None else 3)  # "." and, before it, "2:"
        return self.caption_positions - fixed_words - self.max_evidence * each - self.prefix_tokens

    @property
    def places(self) -> int:
        """Cells of the feature map: the trunk halves five times, rounding up."""
        return math.ceil(self.image_size / 32) ** 2

    def to_json(self) -> str:
        return json.dumps({"family": FAMILY, **asdict(self)}, indent=2) + "\n"

    @classmethod
    def read(cls, folder: Path) -> RevlnConfig:
        """Raises ModelUnavailable when the file is missing, is no JSON, or names an unknown setting or family."""
        raw: dict[str, Any]
        try:
            raw = json.loads(_need(folder, CONFIG_FILE).read_text(encoding="utf-8"))
        except ValueError as err:
            raise ModelUnavailable(f"{folder / CONFIG_FILE} is not JSON ({err}); {_WAY_OUT}") from err
        if not isinstance(raw, dict) or raw.pop("family", None) != FAMILY:
            raise ModelUnavailable(f'{folder / CONFIG_FILE} does not say \'"family": "{FAMILY}"\'; {_WAY_OUT}')
        unknown = sorted(set(raw) - {field.name for field in fields(cls)})
        if unknown or raw.get("format", 1) not in _READABLE:
            raise ModelUnavailable(
                f"{folder / CONFIG_FILE} is of format {raw.get('format', 1)} with unknown settings {unknown}; "
                f"this revln reads formats {_READABLE[0]} to {_FORMAT}. Update revln, or train the model again."
            )
        return cls(**(_UNSAID | raw))


_WAY_OUT = "fetch the folder again, or make one with 'revln train'."


def _need(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise ModelUnavailable(f"{path} is missing; {_WAY_OUT}")
    return path


def fingerprint(folder: Path) -> str:
    """``revln-`` and 16 hex digits over family, config.json, weights and tokenizer; 25 MB hash in about 20 ms."""
    digest = hashlib.sha256(FAMILY.encode())
    config = json.loads(_need(folder, CONFIG_FILE).read_text(encoding="utf-8"))
    made_of = {name: value for name, value in config.items() if name not in _NOT_IN_FINGERPRINT}
    digest.update(json.dumps(made_of, sort_keys=True).encode())
    for name in (WEIGHTS_FILE, TOKENIZER_FILE):
        with _need(folder, name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"{FAMILY}-{digest.hexdigest()[:16]}"


def joint_fingerprint(folder: Path) -> str:
    """Of the joint space alone: what the decoder is made of, and how it is prompted, changes no vector."""
    path = _need(folder, WEIGHTS_FILE)
    config = json.loads(_need(folder, CONFIG_FILE).read_text(encoding="utf-8"))
    joint = {name: value for name, value in config.items() if not name.startswith(_CAPTION_ONLY)}
    digest = hashlib.sha256(json.dumps(joint, sort_keys=True).encode())
    tensors = {name: value for name, value in read_header(path).items() if name.startswith(_JOINT_TENSORS)}
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        for name, tensor in sorted(tensors.items()):
            digest.update(f"{name} {tensor['dtype']} {tensor['shape']}".encode())
            begin, end = tensor["data_offsets"]
            file.seek(start + begin)
            digest.update(file.read(end - begin))
    with _need(folder, TOKENIZER_FILE).open("rb") as file:
        digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"{FAMILY}-{digest.hexdigest()[:16]}"


def describe_checkpoint(name: str, family: str, checkpoint: Checkpoint) -> ModelInfo:  # noqa: ARG001
    """The family's entry in `revln.models.families`."""
    return describe(name, checkpoint.folder)


def describe(name: str, folder: Path) -> ModelInfo:
    """Read a checkpoint folder without loading it.

    Raises:
        ModelUnavailable: a file is missing, damaged, or of a format that this revln does not read.
    """
    config = RevlnConfig.read(folder)
    return ModelInfo(
        name=name,
        family=FAMILY,
        operations=(Operation.EMBED_IMAGE, Operation.EMBED_TEXT, Operation.CAPTION),
        dim=config.dim,
        fingerprint=fingerprint(folder),
        image_size=config.image_size,
        parameters=count_parameters(read_header(_need(folder, WEIGHTS_FILE))),
        license=config.license,
        match_min_score=config.match_min_score,
        evidence_min_score=config.evidence_min_score,
        has_confidence=config.caption_confidence is not None,
        joint_fingerprint=joint_fingerprint(folder),
        max_tokens=config.text_tokens,
    )
