"""Decoding: rows that hang on nobody else, against plain loops and the library's own generate."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from revln.models.base import CaptionOptions
from revln.models.decoding import Decoded, Row, pad_left, seed_from
from revln.models.revln.decoder import Captioner
from revln.models.revln.tokenizer import BOS, EOS, PAD

V = 40
ROWS = [Row([BOS, *range(5, 5 + n)], prefix, seed) for n, prefix, seed in [(1, 0, 1), (9, 3, 2), (4, 0, 3), (20, 8, 4)]]
OPTIONS = {
    "greedy": CaptionOptions(num_beams=1),
    "beam": CaptionOptions(num_beams=4, num_captions=3),
    "long beam": CaptionOptions(num_beams=3, length_penalty=2.0, min_new_tokens=6),
    "ruled beam": CaptionOptions(num_beams=3, num_captions=2, repetition_penalty=1.5, no_repeat_ngram_size=2),
    "ruled greedy": CaptionOptions(num_beams=1, repetition_penalty=1.3, no_repeat_ngram_size=1, min_new_tokens=4),
    "nucleus": CaptionOptions(temperature=1.0, top_p=0.8, num_captions=3),
    "ruled sampling": CaptionOptions(temperature=1.5, top_p=1.0, repetition_penalty=2.0, no_repeat_ngram_size=2),
}


@pytest.fixture(scope="module")
def captioner() -> Captioner:
    torch.manual_seed(3)
    net = Captioner(
        8, 4, vocab_size=V, positions=64, width=32, layers=2, heads=2, inner=32, dim=6, vector_tokens=2
    ).eval()
    for parameter in net.parameters():
        # GPT-2's small start makes every next token equally likely, and beams would tie.
        parameter.data += 0.2 * torch.randn_like(parameter)
    return net


@pytest.fixture(scope="module")
def seen(captioner: Captioner) -> Tensor:
    torch.manual_seed(4)
    with torch.inference_mode():
        return captioner.look(torch.randn(len(ROWS), 4, 8), torch.randn(len(ROWS), 6))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_row_comes_out_the_same_in_any_batch(captioner: Captioner, seen: Tensor, options: CaptionOptions) -> None:
    together = captioner.generate(seen, ROWS, options)
    order = [2, 0, 3, 1]
    shuffled = captioner.generate(seen[order], [ROWS[i] for i in order], options)
    for i, row in enumerate(ROWS):
        (alone,) = captioner.generate(seen[i : i + 1], [row], options)
        for other in (together[i], shuffled[order.index(i)]):
            assert [one.ids for one in other] == [one.ids for one in alone]
            assert [one.log_prob for one in other] == pytest.approx([one.log_prob for one in alone], abs=1e-4)
        assert len(alone) == options.num_captions
    assert len({one.ids for found in together for one in found}) > len(ROWS) // 2  # they are not all one caption


def _next(captioner: Captioner, seen: Tensor, ids: list[int]) -> Tensor:
    """(V,) log-probabilities of what comes next, by a whole pass without a cache."""
    with torch.inference_mode():
        return captioner.logits(*pad_left([ids], PAD), seen)[0, -1].log_softmax(dim=-1)


@pytest.mark.parametrize("i", range(len(ROWS)))
def test_greedy_equals_a_plain_loop_without_a_cache(captioner: Captioner, seen: Tensor, i: int) -> None:
    ids, log_prob = list(ROWS[i].prompt), 0.0
    for _ in range(12):
        chances = _next(captioner, seen[i : i + 1], ids)
        ruled = chances.clone()
        ruled[[PAD, BOS]] = -torch.inf
        ids.append(int(ruled.argmax()))
        log_prob += float(chances[ids[-1]])
        if ids[-1] == EOS:
            break
    expected = tuple(each for each in ids[len(ROWS[i].prompt) :] if each != EOS)
    ((found,),) = captioner.generate(seen[i : i + 1], [ROWS[i]], CaptionOptions(num_beams=1, max_new_tokens=12))
    assert found.ids == expected
    assert found.log_prob == pytest.approx(log_prob, abs=1e-4)


def test_beams_equal_the_librarys_own_search(captioner: Captioner, seen: Tensor) -> None:
    options = CaptionOptions(num_beams=4, num_captions=4, max_new_tokens=10, length_penalty=0.7)
    for i, row in enumerate(ROWS):
        out = captioner.gpt2.generate(
            torch.tensor([row.prompt]), attention_mask=torch.ones(1, len(row.prompt), dtype=torch.int64),
            encoder_hidden_states=seen[i : i + 1], num_beams=4, num_return_sequences=4, max_new_tokens=10,
            length_penalty=0.7, suppress_tokens=[PAD, BOS], pad_token_id=EOS, do_sample=False,
        )  # fmt: skip
        expected = [tuple(each for each in ids if each != EOS) for ids in out[:, len(row.prompt) :].tolist()]
        (found,) = captioner.generate(seen[i : i + 1], [row], options)
        assert [one.ids for one in found] == expected


def _first(found: list[list[Decoded]]) -> Tensor:
    """How often each token came first; a caption without one ended at once."""
    return torch.bincount(torch.tensor([one.ids[0] if one.ids else EOS for (one,) in found]), minlength=V).float()


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.6, 1.0), (1.3, 0.6)])
def test_samples_come_as_often_as_they_are_likely(
    captioner: Captioner, seen: Tensor, temperature: float, top_p: float
) -> None:
    n = 3000
    rows = [Row(ROWS[0].prompt, 0, seed_from(11, i.to_bytes(2, "little"))) for i in range(n)]
    options = CaptionOptions(temperature=temperature, top_p=top_p, max_new_tokens=1)
    found = captioner.generate(seen[:1].expand(n, -1, -1), rows, options)
    logits = _next(captioner, seen[:1], list(ROWS[0].prompt)).clone()
    logits[[PAD, BOS]] = -torch.inf
    chances = (logits / temperature).softmax(dim=-1)
    ordered, places = chances.sort(descending=True)
    kept = places[: int((ordered.cumsum(0) < top_p).sum()) + 1]  # the fewest that hold top_p
    expected = torch.zeros(V).index_copy(0, kept, chances[kept])
    expected = n * expected / expected.sum()
    counts = _first(found)
    assert counts[expected == 0].sum() == 0
    # Five standard deviations of each count; one more for those that hardly ever come.
    assert ((counts - expected).abs() <= 5 * expected.sqrt() + 1).all()
    assert (counts > 0).sum() > 3


def test_a_seed_decides_and_copies_differ(captioner: Captioner, seen: Tensor) -> None:
    options = CaptionOptions(temperature=1.5, top_p=1.0, num_captions=6)
    one, two = (captioner.generate(seen[:1], [Row(ROWS[0].prompt, 0, seed)], options)[0] for seed in (1, 2))
    assert one == captioner.generate(seen[:1], [Row(ROWS[0].prompt, 0, 1)], options)[0]
    assert {each.ids for each in one} != {each.ids for each in two}
    assert len({each.ids for each in one}) > 1
    assert [each.log_prob for each in one] == sorted((each.log_prob for each in one), reverse=True)


def _pairs(ids: list[int]) -> list[tuple[int, int]]:
    return list(pairwise(ids))


def test_no_run_comes_twice_in_a_caption_and_its_prefix_but_the_prompt_may_be_told(
    captioner: Captioner, seen: Tensor
) -> None:
    free = CaptionOptions(num_beams=1, max_new_tokens=20, min_new_tokens=20)
    ruled = CaptionOptions(num_beams=1, max_new_tokens=20, min_new_tokens=20, no_repeat_ngram_size=2)
    repeats = 0
    for i, row in enumerate(ROWS):
        (plain,), (kept,) = (captioner.generate(seen[i : i + 1], [row], each)[0] for each in (free, ruled))
        prefix = list(row.prompt)[len(row.prompt) - row.prefix :]
        repeats += len(_pairs([*prefix, *plain.ids])) - len(set(_pairs([*prefix, *plain.ids])))
        pairs = _pairs([*prefix, *kept.ids])
        assert len(pairs) == len(set(pairs))
        # Told before as evidence, it may be told again: the same as without the rule, as far as that repeats nothing.
        first = _pairs([*prefix, *plain.ids])
        until = next((j for j, pair in enumerate(first) if pair in first[:j]), len(first)) + 1 - len(prefix)
        assert kept.ids[: max(until - 1, 0)] == plain.ids[: max(until - 1, 0)]
    assert repeats > 0  # else the rule had nothing to forbid


def test_the_penalty_makes_a_caption_repeat_fewer_tokens(captioner: Captioner, seen: Tensor) -> None:
    def different(penalty: float) -> int:
        options = CaptionOptions(num_beams=1, max_new_tokens=20, min_new_tokens=20, repetition_penalty=penalty)
        return sum(len(set(one.ids)) for (one,) in captioner.generate(seen, ROWS, options))

    assert different(5.0) > different(1.0)


def test_a_caption_has_the_least_tokens_asked_for(captioner: Captioner, seen: Tensor) -> None:
    def shortest(least: int) -> int:
        options = CaptionOptions(temperature=2.0, top_p=1.0, num_captions=8, min_new_tokens=least)
        return min(len(one.ids) for found in captioner.generate(seen, ROWS, options) for one in found)

    assert shortest(0) < 7 <= shortest(7)


def test_rows_of_one_request_have_seeds_of_their_own() -> None:
    seeds = {seed_from(seed, picture) for seed in (0, 1, 2**53 - 1) for picture in (b"", b"a", b"b")}
    assert len(seeds) == 9
    assert all(0 <= seed < 2**63 for seed in seeds)
