"""What a sentence encoder's folder says: its modules as sentence-transformers writes them. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from revln.errors import ModelUnavailable
from revln.models.base import ModelInfo, Operation
from revln.models.checkpoint import CONFIG_FILE, Checkpoint

__all__ = ["Dense", "Recipe", "describe"]

_POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
}
# config.json leaves out what is as its class has it by default, and calls it "dim" in one of them.
_WIDTH = 768


@dataclass(frozen=True, slots=True)
class Dense:
    """A layer after the pooling: where it lies, and its activation's class."""

    folder: str
    out_features: int
    activation: str


@dataclass(frozen=True, slots=True)
class Recipe:
    """From token states to a vector. The unit norm comes at the end in any case: vectors are compared by cosine."""

    poolings: tuple[str, ...] = ("mean",)  # several are put one after another
    dense: tuple[Dense, ...] = ()
    max_tokens: int | None = None
    lower_case: bool = False
    prompt: str = ""

    @classmethod
    def read(cls, checkpoint: Checkpoint) -> Recipe:
        """Without modules.json, the mean over tokens.

        Raises:
            ModelUnavailable: a module that revln does not know, or a file that is missing or damaged.
        """
        poolings: tuple[str, ...] = ("mean",)
        dense: list[Dense] = []
        for kind, folder in _modules(checkpoint):
            if kind == "Pooling":
                poolings = _poolings(checkpoint, folder)
            elif kind == "Dense":
                facts = checkpoint.json(f"{folder}/config.json")
                activation = str(facts.get("activation_function", "torch.nn.modules.linear.Identity"))
                dense.append(Dense(folder, int(facts["out_features"]), activation.rpartition(".")[2]))
            elif kind not in ("Transformer", "Normalize"):
                raise ModelUnavailable(
                    f"{checkpoint.source} has a module {kind!r}; revln knows Transformer, Pooling, Dense and Normalize."
                )
        settings = _optional(checkpoint, "sentence_bert_config.json")
        prompts = _optional(checkpoint, "config_sentence_transformers.json")
        prompt = (prompts.get("prompts") or {}).get(prompts.get("default_prompt_name") or "", "")
        longest = settings.get("max_seq_length")
        return cls(poolings, tuple(dense), longest, bool(settings.get("do_lower_case")), str(prompt))


def describe(name: str, family: str, checkpoint: Checkpoint) -> ModelInfo:
    """Raises ModelUnavailable if a file is missing or damaged, or a module unknown."""
    config, recipe = checkpoint.json(CONFIG_FILE), Recipe.read(checkpoint)
    width = int(config.get("hidden_size", config.get("dim", _WIDTH))) * len(recipe.poolings)
    return ModelInfo(
        name=name,
        family=family,
        operations=(Operation.EMBED_TEXT,),
        dim=recipe.dense[-1].out_features if recipe.dense else width,
        fingerprint=checkpoint.fingerprint(family),
        image_size=1,
        parameters=checkpoint.parameters(),
    )


def _modules(checkpoint: Checkpoint) -> list[tuple[str, str]]:
    """(class, folder) of each module, in order."""
    if not checkpoint.has("modules.json"):
        return []
    entries = checkpoint.json_list("modules.json")
    return [(str(entry["type"]).rpartition(".")[2], str(entry["path"])) for entry in entries]


def _poolings(checkpoint: Checkpoint, folder: str) -> tuple[str, ...]:
    facts = checkpoint.json(f"{folder}/config.json")
    wanted = [name for name, value in facts.items() if name.startswith("pooling_mode_") and value]
    unknown = [name for name in wanted if name not in _POOLINGS]
    if unknown or not wanted:
        there_are = ", ".join(_POOLINGS)
        raise ModelUnavailable(f"{checkpoint.source} pools by {unknown or 'nothing'}; revln knows {there_are}.")
    return tuple(_POOLINGS[name] for name in _POOLINGS if name in wanted)  # in sentence-transformers' order


def _optional(checkpoint: Checkpoint, name: str) -> Mapping[str, Any]:
    return checkpoint.json(name) if checkpoint.has(name) else {}
