"""One model from several that were trained from the same start: the mean of their weights.

Wortsman et al., Model soups, ICML 2022 (arXiv:2203.05482). It costs nothing in use, and on small data runs of other
seeds err in other places. Models of other starts have nothing in common that a mean would keep.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from revln.errors import ValidationFailed
from revln.models.revln_card import TOKENIZER_FILE, RevlnConfig
from revln.models.revln_family import load
from revln.training.export import write_checkpoint

__all__ = ["average"]

# Measured of a model, said of it, or how it is used: no size of its networks, and so the first folder's are taken.
_SAID = (
    "license",
    "match_min_score",
    "evidence_min_score",
    "mirror",
    "caption_no_repeat_ngram_size",
    "caption_cosine",
)


def average(folders: Sequence[Path], out: Path) -> None:
    """Write the model whose weights are the mean of those of ``folders``; the first says all that is no size.

    Its thresholds are to be measured again, and its decoder wants a pass over the new trunk: both are done by
    ``revln train --init OUT --epochs 0``.

    Raises:
        ValidationFailed: fewer than two models, or one that has other sizes or other words than the first.
        ModelUnavailable: a folder holds no model of this family.
    """
    if len(folders) < 2:
        raise ValidationFailed("a mean takes two models or more")
    first, *others = (load(folder.name, folder, "cpu") for folder in folders)
    mean = {name: tensor.clone() for name, tensor in first.net.state_dict().items()}
    for number, (folder, model) in enumerate(zip(folders[1:], others, strict=True), start=2):
        if _sizes(model.config) != _sizes(first.config):
            raise ValidationFailed(f"{folder} has other sizes than {folders[0]}; only equal networks have a mean")
        if (folder / TOKENIZER_FILE).read_bytes() != (folders[0] / TOKENIZER_FILE).read_bytes():
            raise ValidationFailed(f"{folder} has other words than {folders[0]}; train both from the same --init")
        for name, tensor in model.net.state_dict().items():
            if tensor.is_floating_point():
                mean[name] = torch.lerp(mean[name], tensor, 1 / number)
    first.net.load_state_dict(mean)
    out.mkdir(parents=True, exist_ok=True)
    names = ", ".join(folder.name for folder in folders)
    card = f"# A revln model\n\nThe mean of the weights of {names}, by `revln average`.\n"
    write_checkpoint(out, first.config, first.net, first.tokenizer, card)


def _sizes(config: RevlnConfig) -> dict[str, object]:
    return {name: value for name, value in asdict(config).items() if name not in _SAID}
