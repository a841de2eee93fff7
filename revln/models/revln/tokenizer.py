"""The revln family's tokenizer: lower case, NFC, byte-level BPE, so that no text is out of vocabulary.

Sennrich et al., ACL 2016 (BPE); the byte-level form is GPT-2's. A thin layer over the `tokenizers` library that knows
the three special tokens and how a prompt is put together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Tokenizer as _Bpe
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from revln.errors import ModelUnavailable

__all__ = ["BOS", "EOS", "MOST_LEVELS", "PAD", "Tokenizer", "train_tokenizer"]

PAD, BOS, EOS = 0, 1, 2
_SPECIAL = ["<pad>", "<bos>", "<eos>"]
# The decoder's prompt, word for word as it was trained; see Tokenizer.prompt.
_BEFORE, _AFTER = "similar:", "this picture shows:"
# How the byte-level form writes the space before a word.
_SPACE = "Ġ"
MOST_LEVELS = 10  # each is one figure


class Tokenizer:
    """Text ↔ token ids. Thread-safe."""

    def __init__(self, bpe: _Bpe) -> None:
        # No special token may come out of a user's text: "<eos>" in a prompt would end the caption before it began.
        bpe.encode_special_tokens = True
        self._bpe = bpe
        self._before = self.encode(_BEFORE)
        self._after = self.encode(_AFTER)
        self._stop = self.encode(".")[-1]
        self._levels = [self.encode(f"{level}:") for level in range(MOST_LEVELS)]

    @classmethod
    def read(cls, path: Path) -> Tokenizer:
        try:
            return cls(_Bpe.from_file(str(path)))
        except Exception as err:  # the library raises bare Exception for what it cannot read
            raise ModelUnavailable(f"{path} is not a tokenizer ({err}); fetch the folder again.") from err

    def write(self, path: Path) -> None:
        self._bpe.save(str(path), pretty=False)

    @property
    def size(self) -> int:
        return self._bpe.get_vocab_size()

    def words(self) -> list[str]:
        """Return the whole words that have a token of their own, in the order of their tokens."""
        by_id = sorted((number, token) for token, number in self._bpe.get_vocab().items())
        return [token[1:] for _, token in by_id if token[:1] == _SPACE and token[1:].isalpha() and len(token) > 3]

    def encode(self, text: str) -> list[int]:
        """Words carry the space before them, so the ids of 'a' + ' dog' are the ids of 'a dog'."""
        return self._bpe.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Special tokens dropped, spaces trimmed; bytes that form no character become U+FFFD."""
        return " ".join(self._bpe.decode(list(ids), skip_special_tokens=True).split())

    def prompt(self, evidence: Iterable[tuple[int | None, str]], each: int) -> list[int]:
        """Return ``<bos> 3: a. 2: b. 0: c. this picture shows:``; without evidence ``<bos> this picture shows:``.

        The figure before a retrieved caption is its level: how near it is to the picture. Where no caption has one,
        the prompt is ``<bos> similar: a. b. c. this picture shows:``. ``each`` is the number of tokens that one
        caption is cut to (Ramos et al., SmallCap, CVPR 2023).
        """
        cut = [(level, self.encode(caption.strip().rstrip(". "))[:each]) for level, caption in evidence]
        shown = [(level, text) for level, text in cut if text]
        ids = [BOS]
        if shown and all(level is None for level, _ in shown):
            ids += self._before
        for level, text in shown:
            ids += [*(self._levels[level] if level is not None else ()), *text, self._stop]
        return ids + self._after


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learn the merges; the same texts in the same order give the same file."""
    bpe = _Bpe(models.BPE())
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=_SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return Tokenizer(bpe)
