"""One model from several that were trained from the same start: the mean of their weights.

Wortsman et al., Model soups, ICML 2022 (arXiv:2203.05482). It costs nothing in use, and on small data runs of other
seeds err in other places. Models of other starts have nothing in common that a mean would keep.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from revln.errors import ValidationFailed
from revln.models.revln.card import TOKENIZER_FILE, RevlnConfig
from revln.models.revln.model import load
from revln.training.export import write_checkpoint

__all__ = ["average"]

# Measured of a model, said of it, or how it is used: no size of its networks, and so the first folder's are taken.
_SAID = (
    "license",
    "match_min_score",
    "evidence_min_score",
    "mirror",
    "text_tokens",
    "caption_no_repeat_ngram_size",
    "caption_cosine",
    "caption_confidence",
    "evidence_levels",
    "max_evidence",
    "evidence_tokens",
    "prefix_tokens",
)
_BETWEEN_TERMS = "; "


def average(folders: Sequence[Path], out: Path) -> None:
    """Write the model whose weights are the mean of those of ``folders``; the first says all that is no size.

    It comes from all of them, and so has the license terms of all. Its thresholds are to be measured again, and its
    decoder wants a pass over the new trunk: both are done by ``revln train --init OUT --epochs 0``.

    Raises:
        ValidationFailed: fewer than two models, or one that has other sizes or other words than the first.
        ModelUnavailable: a folder holds no model of this family.
    """
    if len(folders) < 2:
        raise ValidationFailed("a mean takes two models or more")
    first, *others = (load(folder.name, folder, "cpu") for folder in folders)
    mean = {name: tensor.clone() for name, tensor in first.net.state_dict().items()}
    for number, (folder, model) in enumerate(zip(folders[1:], others, strict=True), start=2):
        if unlike := _unlike(model.config, first.config):
            raise ValidationFailed(
                f"{folder} has other sizes than {folders[0]}: {unlike}; only equal networks have a mean"
            )
        if (folder / TOKENIZER_FILE).read_bytes() != (folders[0] / TOKENIZER_FILE).read_bytes():
            raise ValidationFailed(f"{folder} has other words than {folders[0]}; train both from the same --init")
        for name, tensor in model.net.state_dict().items():
            if tensor.is_floating_point():
                mean[name] = torch.lerp(mean[name], tensor, 1 / number)
    first.net.load_state_dict(mean)
    out.mkdir(parents=True, exist_ok=True)
    names = ", ".join(folder.name for folder in folders)
    config = replace(first.config, license=_terms([first.config, *(model.config for model in others)]))
    card = (
        f"# A revln model\n\nThe mean of the weights of {names}, by `revln average`.\n\n"
        f"Licence and terms of the data: {config.license}\n"
    )
    write_checkpoint(out, config, first.net, first.tokenizer, card)


def _unlike(config: RevlnConfig, first: RevlnConfig) -> str:
    """The networks' settings that differ, with both values."""
    theirs = asdict(first)
    differ = ((name, value) for name, value in asdict(config).items() if name not in _SAID and value != theirs[name])
    return ", ".join(f"{name} {value}, not {theirs[name]}" for name, value in differ)


def _terms(configs: Sequence[RevlnConfig]) -> str:
    """Each term once: one of the models may be a mean itself."""
    return _BETWEEN_TERMS.join(dict.fromkeys(part for each in configs for part in each.license.split(_BETWEEN_TERMS)))
