"""Texts for transformers models: read one by one in many threads, padded to a batch in one.

The tokenizers library keeps padding and truncation as state of the tokenizer, so two threads that read at once with
other settings fail with "Already borrowed": one lock for each tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any

import torch
from tokenizers.normalizers import Lowercase
from tokenizers.normalizers import Sequence as Sequential
from torch import Tensor

from revln.errors import ItemInvalid

__all__ = ["POOLED", "TextReader"]

# Beside the tokenizer's own inputs: 1 for each token that is pooled.
POOLED = "pooled"


class TextReader:
    """A tokenizer with the model's limit: longer texts are cut, and keep their end token. Thread-safe."""

    def __init__(
        self, tokenizer: Any, positions: int, *, limit: int | None = None, to_the_end: bool = False, lower: bool = False
    ) -> None:
        """``positions``: how many tokens the model has places for; ``to_the_end`` pads every text to that.

        ``limit``: what the checkpoint says in the place of its tokenizer's; ``lower``: texts are read in lower case.
        """
        self._tokenizer = tokenizer
        if lower:
            _lower(tokenizer.backend_tokenizer)
        # A tokenizer that knows no limit says 10^30.
        self.limit = int(min(limit or tokenizer.model_max_length, positions))
        self._to_the_end = to_the_end
        self._lock = Lock()
        self._fill = {
            "input_ids": tokenizer.pad_token_id or 0,
            "token_type_ids": tokenizer.pad_token_type_id,
            "attention_mask": 0,
            POOLED: 0,
        }

    def read(self, text: str) -> Mapping[str, list[int]]:
        """Raises ItemInvalid for a text of nothing but spaces."""
        if not text.strip():
            raise ItemInvalid(f"the text {text[:40]!r} is empty; send at least one character that is not a space")
        padding = "max_length" if self._to_the_end else False
        with self._lock:
            read = self._tokenizer(text, truncation=True, max_length=self.limit, padding=padding)
        return {name: list(values) for name, values in read.items()}

    def count(self, text: str) -> int:
        """How many tokens the whole text is, with those that the tokenizer adds."""
        with self._lock:
            return len(self._tokenizer(text, truncation=False, padding=False, verbose=False)["input_ids"])

    def count_prompt(self, prompt: str) -> int:
        """How many tokens stand for a prompt before a text: its own, and what the tokenizer puts first."""
        with self._lock:
            ids = self._tokenizer(prompt, truncation=False, padding=False, verbose=False)["input_ids"]
        return len(ids) - (bool(ids) and ids[-1] in self._tokenizer.all_special_ids)

    def pad(self, batch: Sequence[Mapping[str, list[int]]]) -> dict[str, Tensor]:
        """(B, T) int64 of each input, T the longest of the batch, on the side where the model's tokenizer pads."""
        longest = max(len(item["input_ids"]) for item in batch)
        left = self._tokenizer.padding_side == "left"
        padded: dict[str, Tensor] = {}
        for name in batch[0]:
            rows = []
            for item in batch:
                fill = [self._fill[name]] * (longest - len(item[name]))
                rows.append([*fill, *item[name]] if left else [*item[name], *fill])
            padded[name] = torch.tensor(rows, dtype=torch.int64)  # (B, T)
        return padded


def _lower(backend: Any) -> None:
    """Let a tokenizer read lower case: by its own library, which lowers letter by letter (Σ, which Python does not)."""
    own = backend.normalizer
    backend.normalizer = Sequential([Lowercase(), *([] if own is None else [own])])
