"""What a sentence encoder's folder says: its modules as sentence-transformers writes them. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from revln.errors import ModelUnavailable
from revln.models.base import ModelInfo, Operation
from revln.models.checkpoint import CONFIG_FILE, SENTENCE_FILES, Checkpoint
from revln.models.prompts import Prompts, marked

__all__ = ["Dense", "Normalize", "Recipe", "describe", "places"]

# As sentence-transformers calls them since 5.4, in its order; and the switches that it wrote before.
_POOLINGS = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
# config.json leaves out what is as its class has it by default, and calls it "dim" in one of them.
_WIDTH = 768
_PLACES = {"gemma3_text": 131_072, "mistral": 131_072, "qwen2": 32_768, "qwen3": 32_768, "modernbert": 8_192}
# Language models whose folder must say how they make a vector of a text: most are none that does.
_NEED_MODULES = frozenset({"gemma3_text", "mistral", "qwen2", "qwen3"})
# These count positions from behind the padding token's id, so that many fewer are left for tokens.
_SHIFTED = frozenset({"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet"})
# What is read in another way than by the versions before: their vectors may not meet these.
_READ_ANEW = "modules in order"


@dataclass(frozen=True, slots=True)
class Dense:
    """A layer after the pooling: where it lies, its activation's class, and whether its input is added again."""

    folder: str
    out_features: int
    activation: str
    residual: bool = False


@dataclass(frozen=True, slots=True)
class Normalize:
    """Unit length, between the layers or behind them."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """From token states to a vector. The unit norm comes at the end in any case: vectors are compared by cosine."""

    poolings: tuple[str, ...] = ("mean",)  # several are put one after another
    pools_prompt: bool = True
    head: tuple[Dense | Normalize, ...] = ()
    max_tokens: int | None = None
    lower_case: bool = False
    prompts: Prompts = field(default_factory=Prompts)

    @classmethod
    def read(cls, checkpoint: Checkpoint) -> Recipe:
        """Without modules.json, the mean over tokens.

        Raises:
            ModelUnavailable: a module that revln does not know, or a file that is missing or damaged.
        """
        poolings: tuple[str, ...] = ("mean",)
        pools_prompt = True
        head: list[Dense | Normalize] = []
        for kind, folder in _modules(checkpoint):
            if kind == "Pooling":
                facts = checkpoint.json(f"{folder}/config.json")
                poolings, pools_prompt = _poolings(checkpoint, facts), bool(facts.get("include_prompt", True))
            elif kind == "Dense":
                head.append(_dense(checkpoint, folder))
            elif kind == "Normalize":
                _check_input(checkpoint, folder)
                head.append(Normalize())
            elif kind not in ("Transformer", "Dropout"):  # a dropout drops nothing once training is over
                raise ModelUnavailable(
                    f"{checkpoint.source} has a module {kind!r}; revln knows Transformer, Pooling, Dense and Normalize."
                )
        settings = next((checkpoint.json(name) for name in SENTENCE_FILES if checkpoint.has(name)), {})
        prompts = Prompts.read(_optional(checkpoint, "config_sentence_transformers.json"))
        longest = settings.get("max_seq_length")
        lower_case = bool(settings.get("do_lower_case"))
        return cls(poolings, pools_prompt, tuple(head), longest, lower_case, prompts)

    @property
    def dense(self) -> list[Dense]:
        return [layer for layer in self.head if isinstance(layer, Dense)]

    @property
    def read_anew(self) -> bool:
        """Whether versions before this one made other vectors of it."""
        normalized_before = any(
            isinstance(one, Normalize) and isinstance(two, Dense) for one, two in pairwise(self.head)
        )
        return normalized_before or {"mean", "max"} <= set(self.poolings) or any(one.residual for one in self.dense)


def describe(name: str, family: str, checkpoint: Checkpoint) -> ModelInfo:
    """Raises ModelUnavailable if a file is missing or damaged, or a module unknown."""
    config = checkpoint.json(CONFIG_FILE)
    if config.get("model_type") in _NEED_MODULES and not checkpoint.has("modules.json"):
        raise ModelUnavailable(
            f"{checkpoint.source} is a language model (type {config['model_type']}) without modules.json, which says "
            "how a sentence encoder makes a vector of a text; fetch one that sentence-transformers saved."
        )
    recipe = Recipe.read(checkpoint)
    width = int(config.get("hidden_size", config.get("dim", _WIDTH))) * len(recipe.poolings)
    fingerprint = checkpoint.fingerprint(family)
    return ModelInfo(
        name=name,
        family=family,
        operations=(Operation.EMBED_TEXT,),
        dim=recipe.dense[-1].out_features if recipe.dense else width,
        fingerprint=marked(fingerprint, _READ_ANEW) if recipe.read_anew else fingerprint,
        image_size=1,
        parameters=checkpoint.parameters(),
        max_tokens=_max_tokens(checkpoint, config, recipe),
        prompts=recipe.prompts,
    )


def places(config: Mapping[str, Any]) -> int:
    """How many tokens the network has places for."""
    model_type = str(config.get("model_type"))
    total = int(config.get("max_position_embeddings") or _PLACES.get(model_type, 512))
    return total - (int(config.get("pad_token_id", 1)) + 1 if model_type in _SHIFTED else 0)


def _max_tokens(checkpoint: Checkpoint, config: Mapping[str, Any], recipe: Recipe) -> int:
    own = places(config)
    return int(min(own, recipe.max_tokens or checkpoint.tokenizer_settings().get("model_max_length") or own))


def _modules(checkpoint: Checkpoint) -> list[tuple[str, str]]:
    """(class, folder) of each module, in order."""
    if not checkpoint.has("modules.json"):
        return []
    entries = checkpoint.json_list("modules.json")
    return [(str(entry["type"]).rpartition(".")[2], str(entry["path"])) for entry in entries]


def _poolings(checkpoint: Checkpoint, facts: Mapping[str, Any]) -> tuple[str, ...]:
    said = facts.get("pooling_mode")
    if said is None:
        known = {switch: mode for mode, switch in _POOLINGS.items()}
        on = [name for name, value in facts.items() if name.startswith("pooling_mode_") and value]
        wanted = [mode for switch, mode in known.items() if switch in on] + [name for name in on if name not in known]
    else:
        wanted = [said] if isinstance(said, str) else list(said)
    unknown = [mode for mode in wanted if mode not in _POOLINGS]
    if unknown or not wanted:
        there_are = ", ".join(_POOLINGS)
        raise ModelUnavailable(f"{checkpoint.source} pools by {unknown or 'nothing'}; revln knows {there_are}.")
    return tuple(wanted)


def _dense(checkpoint: Checkpoint, folder: str) -> Dense:
    facts = checkpoint.json(f"{folder}/config.json")
    _check_input(checkpoint, folder)
    activation = str(facts.get("activation_function", "torch.nn.modules.activation.Tanh"))
    residual = bool(facts.get("use_residual"))
    return Dense(folder, int(facts["out_features"]), activation.rpartition(".")[2], residual)


def _check_input(checkpoint: Checkpoint, folder: str) -> None:
    """Raises ModelUnavailable for a module that works on single tokens, as those of ColBERT do."""
    facts = _optional(checkpoint, f"{folder}/config.json")
    for name in ("module_input_name", "module_output_name"):
        if (said := facts.get(name)) not in (None, "sentence_embedding"):
            raise ModelUnavailable(
                f"{folder} of {checkpoint.source} has {name} {said!r}; revln reads whole texts only."
            )


def _optional(checkpoint: Checkpoint, name: str) -> Mapping[str, Any]:
    return checkpoint.json(name) if checkpoint.has(name) else {}
