"""What a model is to the rest of revln: three steps, so that the processor works while the accelerator does.

``prepare`` turns one item into tensors and runs in many threads. ``forward`` runs one batch and is only ever called by
the batcher's one thread per model. ``finish`` turns one raw output into a result, again in the caller's thread.

This module imports neither torch nor transformers, so that the API can read a model's description.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol, runtime_checkable

from PIL import Image

from revln.models.prompts import Prompts

__all__ = [
    "Caption",
    "CaptionOptions",
    "CaptionRequest",
    "Counting",
    "Evidence",
    "Model",
    "ModelInfo",
    "Operation",
    "Overlapping",
]


class Operation(StrEnum):
    """What a model can be asked to do with one item."""

    EMBED_IMAGE = "embed_image"  # PIL RGB image → (D,) float32, unit L2 norm
    EMBED_TEXT = "embed_text"  # str → (D,) float32, unit L2 norm
    CAPTION = "caption"  # CaptionRequest → tuple[Caption, ...]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model as `GET /v1/models` shows it.

    ``fingerprint`` covers family, weights and preprocessing. ``joint_fingerprint`` covers only what vectors come from,
    so that a retrained decoder leaves collections as they are; left out, it is the whole one. Two vectors may be
    compared only if their joint fingerprints are equal.
    """

    name: str
    family: str
    operations: tuple[Operation, ...]
    dim: int | None  # of the joint space; None for a captioner without one
    fingerprint: str
    image_size: int  # pixels on the shorter side that `prepare` needs; lets JPEGs be decoded at reduced size
    parameters: int | None = None
    license: str | None = None
    # Least cosine to an item that is a match at all, for a query by "text" and by "image"; None: not calibrated.
    match_min_score: Mapping[str, float] | None = None
    # Least cosine of a retrieved caption that may be evidence, by its operator or its card; None: neither says.
    evidence_min_score: float | None = None
    # Its captions say how likely they are right, by what its training measured.
    has_confidence: bool = False
    joint_fingerprint: str = ""
    # Of a text, with the tokens that the model adds; what is longer is cut. None: it reads no texts, or does not say.
    max_tokens: int | None = None
    prompts: Prompts | None = None  # of sentence encoders

    def __post_init__(self) -> None:
        if not self.joint_fingerprint:
            object.__setattr__(self, "joint_fingerprint", self.fingerprint)


@dataclass(frozen=True, slots=True)
class CaptionOptions:
    """How to decode. Requests merge into one forward pass only if their options, but for the seed, are equal."""

    num_beams: int = 3  # 1: greedy
    num_captions: int = 1  # at most num_beams unless temperature > 0
    max_new_tokens: int = 24
    min_new_tokens: int = 0
    temperature: float = 0.0  # 0: beam search; above: sampling
    top_p: float = 0.9  # of sampling: the smallest set of tokens that holds this probability
    seed: int = 0  # of sampling, at least 0: the same seed, picture and options give the same captions
    length_penalty: float = 1.0  # of beam search: scores are divided by length to this power
    repetition_penalty: float = 1.0  # above 1: tokens that the caption already has get less likely
    # No run of so many tokens twice in a caption; 0: anything goes; None: the model's own, which is 0 but for revln's.
    no_repeat_ngram_size: int | None = None


@dataclass(frozen=True, slots=True)
class Evidence:
    """A retrieved caption that the decoder is prompted with; ``score`` is a cosine in [-1, 1]."""

    id: str
    text: str
    score: float


@dataclass(frozen=True, slots=True)
class CaptionRequest:
    """One picture to be captioned. ``evidence`` is best first; ``prompt`` is a prefix that the caption continues."""

    image: Image.Image
    evidence: tuple[Evidence, ...] = ()
    prompt: str = ""
    options: CaptionOptions = field(default_factory=CaptionOptions)


@dataclass(frozen=True, slots=True)
class Caption:
    """One caption.

    Attributes:
        log_prob: sum of the natural log-probabilities of the generated tokens, end token included.
        confidence: how likely it is right, in [0, 1], by what the model's training measured; None: not measured.
    """

    text: str
    log_prob: float
    confidence: float | None = None


@runtime_checkable
class Model(Protocol):
    """One loaded model. Everything but ``forward`` is thread-safe."""

    info: ModelInfo
    device: str
    dtype: str

    def prepare(self, operation: Operation, item: Any) -> Any:
        """Turn one item into tensors on the CPU.

        Raises:
            ItemError: this item cannot be read by this model (an empty text, say).
        """
        ...

    def merge_key(self, operation: Operation, prepared: Any) -> Hashable:
        """Prepared items may share a forward pass only if their keys are equal (a caption's options, say)."""
        ...

    def forward(self, operation: Operation, batch: Sequence[Any]) -> Sequence[Any]:
        """Run one batch; one raw output for each prepared item, in order.

        A batch's result equals the single one's (cosine ≥ 0.9999 for vectors, the same tokens for captions).
        """
        ...

    def finish(self, operation: Operation, raw: Any) -> Any:
        """Turn one raw output into the operation's result: a numpy vector, or captions best first."""
        ...

    def max_batch(self, operation: Operation) -> int:
        """The largest batch worth running on this device; the batcher halves it when memory runs out."""
        ...


@runtime_checkable
class Overlapping(Model, Protocol):
    """A model whose next batch can be put together, and moved to its device, while that still runs the one before."""

    def collate(self, operation: Operation, batch: Sequence[Any]) -> Any:
        """Prepared items → what ``forward_collated`` takes; may run beside a forward pass of this model."""
        ...

    def forward_collated(self, operation: Operation, collated: Any) -> Sequence[Any]:
        """``forward`` is this after ``collate``."""
        ...


@runtime_checkable
class Counting(Model, Protocol):
    """A model of texts that can say how long one is."""

    def count_tokens(self, text: str) -> int:
        """Count a text's tokens as ``info.max_tokens`` does: uncut, with its prompt and what the model adds."""
        ...
