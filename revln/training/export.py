"""Write a checkpoint folder: config.json, tokenizer.json, model.safetensors (fp16), MODEL_CARD.md."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file

from revln.errors import ValidationFailed
from revln.models.revln.card import CONFIG_FILE, TOKENIZER_FILE, WEIGHTS_FILE, RevlnConfig
from revln.models.revln.net import RevlnNet
from revln.models.revln.tokenizer import Tokenizer
from revln.training.files import replace_file
from revln.training.options import TrainOptions

__all__ = ["export", "write_checkpoint"]


def export(folder: Path, config: RevlnConfig, net: RevlnNet, tokenizer: Tokenizer, options: TrainOptions) -> None:
    """Write what was trained, and how it was told to be."""
    write_checkpoint(folder, config, net, tokenizer, _card(options, config.license))


def write_checkpoint(folder: Path, config: RevlnConfig, net: RevlnNet, tokenizer: Tokenizer, card: str) -> None:
    """Each file is written beside its name and renamed, the configuration last: a folder with one is whole.

    A card that is there stays.

    Raises:
        ValidationFailed: a weight is no number, or none that 16 bits hold.
    """
    tensors = {
        name: (tensor.half() if tensor.is_floating_point() else tensor).contiguous().cpu()
        for name, tensor in net.state_dict().items()
        # The head is the token embedding, stored once; the step counters mean nothing outside training.
        if name != "captioner.gpt2.lm_head.weight" and not name.endswith("num_batches_tracked")
    }
    for name, tensor in tensors.items():
        # They would be saved as infinities, and show only as NaN vectors later.
        if not torch.isfinite(tensor).all():
            raise ValidationFailed(
                f"{name} holds numbers beyond 65504, where float16 ends; train with a smaller --learning-rate"
            )
    replace_file(folder / WEIGHTS_FILE, lambda path: save_file(tensors, path))
    replace_file(folder / TOKENIZER_FILE, tokenizer.write)
    if not (folder / "MODEL_CARD.md").is_file():
        replace_file(folder / "MODEL_CARD.md", lambda path: path.write_text(card, encoding="utf-8"))
    replace_file(folder / CONFIG_FILE, lambda path: path.write_text(config.to_json(), encoding="utf-8"))


def _card(options: TrainOptions, terms: str) -> str:
    settings = json.dumps(asdict(options), indent=2, default=str)
    return f"""# A revln model

Made by `revln train`. Its curves stand in `curves.csv`; measure it with `revln eval --model {options.out}`.

Licence and terms of the data: {terms}

```json
{settings}
```
"""
