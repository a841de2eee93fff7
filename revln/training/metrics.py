"""BLEU-1..4, ROUGE-L and CIDEr of captions against several references each, on tokenised text.

Papineni et al., ACL 2002; Lin, 2004; Vedantam et al., CVPR 2015. They follow pycocoevalcap, the scorer that papers
report, in its smoothing constants too, and reproduce its figures without its Java tokenizer (`tokenize` stands in).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Cider", "bleu", "cider", "rouge_l", "score_captions", "tokenize"]

Words = list[str]
_Grams = Counter[tuple[str, ...]]
# The reference scorer's constants: against division by zero, and the F measure's weight of recall.
_TINY, _SMALL = 1e-15, 1e-9
_BETA = 1.2
_SIGMA = 6.0


def tokenize(text: str) -> Words:
    """Lower case, words and numbers of any script, no punctuation: the PTB tokenizer's result on all but rare captions.

    What is written without spaces is one word, as it is there.
    """
    return re.findall(r"[^\W_]+(?:-[^\W_]+)*|'[^\W\d_]+", text.lower())


def score_captions(captions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """bleu1..bleu4, rouge_l, cider of untokenised captions; CIDEr's word weights come from these references."""
    hyps = [tokenize(text) for text in captions]
    refs = [[tokenize(text) for text in texts] for texts in references]
    blue = bleu(hyps, refs)
    scores = {f"bleu{n}": blue[n - 1] for n in range(1, 5)}
    scores |= {"rouge_l": rouge_l(hyps, refs), "cider": cider(hyps, refs)}
    return {name: round(value, 4) for name, value in scores.items()}


def bleu(hyps: Sequence[Words], refs: Sequence[Sequence[Words]]) -> tuple[float, float, float, float]:
    """Corpus BLEU-1..4; the brevity penalty takes the closest reference's length."""
    guesses, correct = [0] * 4, [0] * 4
    hyp_length = ref_length = 0
    for hyp, several in zip(hyps, refs, strict=True):
        hyp_length += len(hyp)
        ref_length += min((abs(len(ref) - len(hyp)), len(ref)) for ref in several)[1]
        for n in range(1, 5):
            limit: _Grams = Counter()
            for ref in several:
                limit |= _grams(ref, n)
            guesses[n - 1] += max(0, len(hyp) - n + 1)
            correct[n - 1] += (_grams(hyp, n) & limit).total()
    ratio = (hyp_length + _TINY) / (ref_length + _SMALL)
    penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    scores, product = [], 1.0
    for n in range(1, 5):
        product *= (correct[n - 1] + _TINY) / (guesses[n - 1] + _SMALL)
        scores.append(penalty * product ** (1 / n))
    return scores[0], scores[1], scores[2], scores[3]


def rouge_l(hyps: Sequence[Words], refs: Sequence[Sequence[Words]]) -> float:
    """Mean F measure of the longest common subsequence; best precision and best recall over the references."""
    total = 0.0
    for hyp, several in zip(hyps, refs, strict=True):
        common = [_subsequence(ref, hyp) for ref in several]
        precision = max(c / max(1, len(hyp)) for c in common)
        recall = max(c / max(1, len(ref)) for c, ref in zip(common, several, strict=True))
        if precision and recall:
            total += (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)
    return total / len(hyps)


def cider(hyps: Sequence[Words], refs: Sequence[Sequence[Words]]) -> float:
    """Mean CIDEr of captions; the words' weights come from their own references."""
    scorer = Cider(refs)
    return sum(scorer.of(hyp, several) for hyp, several in zip(hyps, refs, strict=True)) / len(hyps)


class Cider:
    """CIDEr-D's form as pycocoevalcap computes it: clipped tf-idf cosines of 1- to 4-grams, times 10.

    Words weigh the more, the fewer of ``corpus``, pictures' references, they stand in.
    """

    def __init__(self, corpus: Sequence[Sequence[Words]]) -> None:
        self._frequency: Counter[tuple[str, ...]] = Counter()
        for several in corpus:
            self._frequency.update(set().union(*(_all_grams(ref) for ref in several)))
        self._log_images = math.log(len(corpus))
        # References are scored against again and again, of every candidate.
        self._weighed: dict[tuple[str, ...], _Weighed] = {}

    def of(self, hyp: Words, references: Sequence[Words]) -> float:
        """One caption's score."""
        mine, total = self._weigh(hyp), 0.0
        for ref in references:
            key = tuple(ref)
            if key not in self._weighed:
                self._weighed[key] = self._weigh(ref)
            theirs = self._weighed[key]
            length = math.exp(-((mine.length - theirs.length) ** 2) / (2 * _SIGMA**2))
            for n in range(4):
                a, b = mine.grams[n], theirs.grams[n]
                dot = sum(min(v, b[g]) * b[g] for g, v in a.items() if g in b)
                norm = mine.norms[n] * theirs.norms[n]
                total += 10 * length * (dot / norm if norm else dot) / (4 * len(references))
        return total

    def _weigh(self, words: Words) -> _Weighed:
        by_length: list[dict[tuple[str, ...], float]] = [{}, {}, {}, {}]
        for gram, count in _all_grams(words).items():
            by_length[len(gram) - 1][gram] = count * (self._log_images - math.log(max(1, self._frequency[gram])))
        norms = [math.sqrt(sum(v * v for v in d.values())) for d in by_length]
        # The reference measures length in bigrams.
        return _Weighed(by_length, norms, max(0, len(words) - 1))


@dataclass(frozen=True, slots=True)
class _Weighed:
    grams: list[dict[tuple[str, ...], float]]  # of 1 to 4 words, by their weights
    norms: list[float]
    length: int


def _grams(words: Words, n: int) -> _Grams:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def _all_grams(words: Words) -> _Grams:
    return sum((_grams(words, n) for n in range(1, 5)), Counter())


def _subsequence(a: Words, b: Words) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for x in a:
        diagonal = 0
        for j, y in enumerate(b, start=1):
            diagonal, row[j] = row[j], diagonal + 1 if x == y else max(row[j], row[j - 1])
    return row[-1]
