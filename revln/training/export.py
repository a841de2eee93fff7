"""Write a checkpoint folder: config.json, tokenizer.json, model.safetensors (fp16), MODEL_CARD.md."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file

from revln.models.revln_card import CONFIG_FILE, TOKENIZER_FILE, WEIGHTS_FILE, RevlnConfig
from revln.models.revln_family import RevlnNet
from revln.models.tokenizer import Tokenizer
from revln.training.options import TrainOptions

__all__ = ["export", "write_checkpoint"]


def export(folder: Path, config: RevlnConfig, net: RevlnNet, tokenizer: Tokenizer, options: TrainOptions) -> None:
    """Write what was trained, and how it was told to be."""
    write_checkpoint(folder, config, net, tokenizer, _card(options))


def write_checkpoint(folder: Path, config: RevlnConfig, net: RevlnNet, tokenizer: Tokenizer, card: str) -> None:
    """Each file is written beside its name and renamed, the configuration last: a folder with one is whole.

    A card that is there stays.
    """
    tensors = {
        name: (tensor.half() if tensor.is_floating_point() else tensor).contiguous().cpu()
        for name, tensor in net.state_dict().items()
        # The head is the token embedding, stored once; the step counters mean nothing outside training.
        if name != "captioner.gpt2.lm_head.weight" and not name.endswith("num_batches_tracked")
    }
    # fp16 ends at 65504; weights beyond it would be saved as infinities and show only as NaN vectors later.
    assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())
    _replace(folder / WEIGHTS_FILE, lambda path: save_file(tensors, path))
    _replace(folder / TOKENIZER_FILE, tokenizer.write)
    path = folder / "MODEL_CARD.md"
    if not path.is_file():
        path.write_text(card, encoding="utf-8")
    _replace(folder / CONFIG_FILE, lambda path: path.write_text(config.to_json(), encoding="utf-8"))


def _replace(path: Path, write: object) -> None:
    partial = path.with_name(path.name + ".part")
    assert callable(write)
    write(partial)
    # safetensors makes its file readable by its owner alone; a service may run as somebody else.
    partial.chmod(0o644)
    partial.replace(path)


def _card(options: TrainOptions) -> str:
    settings = json.dumps(asdict(options), indent=2, default=str)
    return f"""# A revln model

Made by `revln train`. Its curves stand in `curves.csv`; measure it with `revln eval --model {options.out}`.

Licence and terms of the data: {options.license}

```json
{settings}
```
"""
