"""What a run starts from: the networks and their sizes, a backbone or a trained model, and the words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from revln.errors import ValidationFailed
from revln.models.revln.card import TOKENIZER_FILE, RevlnConfig
from revln.models.revln.model import load
from revln.models.revln.net import RevlnNet
from revln.models.revln.tokenizer import Tokenizer, train_tokenizer
from revln.models.revln.trunks import fold_backbone
from revln.training.corpus import Corpus
from revln.training.options import TrainOptions

__all__ = ["Start", "start_of"]

# Names are few and short beside captions; told so often, they get words of their own.
_NAMES_TOLD = 3


@dataclass(frozen=True, slots=True)
class Start:
    """``backbone`` is the published state dict, which has a classifier that the trunk has not."""

    config: RevlnConfig
    net: RevlnNet
    tokenizer: Tokenizer
    backbone: Mapping[str, torch.Tensor] | None


def start_of(options: TrainOptions, corpus: Corpus) -> Start:
    """Raises ValidationFailed or ModelUnavailable: a file cannot be used, or two options contradict each other."""
    if options.init and (options.backbone or options.config):
        raise ValidationFailed("--init brings its own backbone and sizes; leave out --backbone and --config")
    backbone = None
    if options.init:
        model = load("init", options.init, "cpu")
        config, net, tokenizer = model.config, model.net.requires_grad_(True), model.tokenizer
    else:
        config = _config(options.config)
        tokenizer = _tokenizer(options.out / TOKENIZER_FILE, corpus, config.vocab_size)
        config = replace(config, vocab_size=tokenizer.size)
        net = RevlnNet(config)
    if options.backbone:
        try:
            backbone = _state(options.backbone)
            fold_backbone(config.trunk, net.image.trunk, backbone)
        except (OSError, ValueError, SafetensorError) as err:
            raise ValidationFailed(f"the backbone {options.backbone} cannot be used: {err}") from err
    if options.license is not None:
        config = replace(config, license=options.license)
    return Start(config, net, tokenizer, backbone)


def _tokenizer(path: Path, corpus: Corpus, size: int) -> Tokenizer:
    if not path.is_file():
        texts = [text for photo in corpus.captioned for text in photo.captions]
        texts += [text for group in corpus.extra for text in group]
        texts += [name for names in corpus.names.values() for name in names] * _NAMES_TOLD
        train_tokenizer(texts, size).write(path)
    return Tokenizer.read(path)


def _state(path: Path) -> dict[str, torch.Tensor]:
    """Read a state dict: safetensors, or what torch.save wrote, of which nothing but tensors is unpacked."""
    loaded: dict[str, torch.Tensor] = (
        load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    )
    return loaded


def _config(path: Path | None) -> RevlnConfig:
    if path is None:
        return RevlnConfig()
    try:
        return RevlnConfig(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as err:
        raise ValidationFailed(f"{path} is not a JSON object of model settings: {err}") from err
