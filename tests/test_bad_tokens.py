"""Bad tokens, masks, texts and folders: refused, with what was given, what is possible and what to do."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest
import torch
from test_scorer import cached, tokens_and_mask

from basins import BasinScorer, BasinsError


def refused(pattern):
    return pytest.raises(BasinsError, match=pattern)


@pytest.fixture
def batch(pocket_mini):
    tokens, mask = tokens_and_mask("right")
    return tokens, mask, dict(cached(pocket_mini, tokens, mask).items())


@pytest.fixture
def scorer(pocket_mini):
    return BasinScorer(pocket_mini, k=3)


@pytest.mark.parametrize(
    ("tokens", "pattern"),
    [
        (
            torch.zeros(4, 8, dtype=torch.long),
            r"tokens have shape \(4, 8\) but the cache has \(4, 9\) .*Pass the token ids",
        ),
        (torch.zeros(3, 9, dtype=torch.long), r"tokens have shape \(3, 9\) but the cache has \(4, 9\)"),
        (torch.zeros(36, dtype=torch.long), r"tokens have shape \(1, 36\) but the cache has \(4, 9\)"),
        (
            torch.zeros(4, 9, 1, dtype=torch.long),
            r"tokens have shape \(4, 9, 1\) and dtype torch.int64; .* one row a seq",
        ),
        (torch.zeros(4, 9), r"tokens have shape \(4, 9\) and dtype torch.float32; they must be whole numbers"),
        (torch.zeros(4, 9, dtype=torch.bool), r"dtype torch.bool; they must be whole numbers"),
        (torch.zeros(0, 9, dtype=torch.long), r"tokens have shape \(0, 9\)"),
        ("a text", r"Texts go to score_texts\(\)"),
        (["a text", "another"], r"Texts go to score_texts\(\)"),
        ([[1, 2, 3], [1, 2]], r"one row a sequence"),
        (object(), r"tokens"),
    ],
    ids=["pos", "batch", "flat", "dimensions", "float", "bool", "empty", "text", "texts", "ragged", "object"],
)
def test_tokens(scorer, batch, tokens, pattern):
    with refused(pattern):
        scorer.score(batch[2], tokens=tokens)
    with refused(pattern):
        scorer.fit(batch[2], tokens=tokens)
    if "cache" not in pattern:
        with refused(pattern):
            scorer.score_tokens(tokens)


@pytest.mark.parametrize(
    ("tokens", "pattern"),
    [
        (torch.full((2, 9), 4096), r"token id 4096 .*(vocabulary|d_vocab)"),
        (torch.full((2, 9), -1), r"token id -1 "),
        (torch.zeros(1, 200, dtype=torch.long), r"200 .*context of 128"),
    ],
    ids=["above", "below", "too long"],
)
def test_tokens_that_the_model_cannot_take(scorer, tokens, pattern):
    with refused(pattern):
        scorer.score_tokens(tokens)


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        (lambda mask: mask[:, :8], r"attention_mask has shape \(4, 8\) but the cache has \(4, 9\) sequences and pos"),
        (lambda mask: mask[:3], r"attention_mask has shape \(3, 9\) but the cache has \(4, 9\)"),
        (lambda mask: mask[0], r"attention_mask has shape \(1, 9\)"),
        (lambda mask: mask[None], r"attention_mask has shape \(1, 4, 9\)"),
        (lambda mask: 2 * mask, r"attention_mask must hold 1 for real tokens and 0 for padding, nothing else"),
        (lambda mask: (mask - 1) * 1e9, r"attention_mask must hold 1 for real tokens"),
        (lambda mask: mask * float("nan"), r"attention_mask must hold 1 for real tokens"),
        (
            lambda mask: mask * torch.tensor([[1], [0], [1], [0]]),
            r"sequence 1 is all padding \(2 such of 4\)\. Drop such rows from the tokens, the mask and the cache",
        ),
        (
            lambda mask: mask * (torch.arange(9) != 3),
            r"attention_mask of sequence 0 has padding between real tokens. Possible: padding at the start or the end",
        ),
    ],
    ids=["pos", "batch", "one row", "dimensions", "twos", "additive", "nan", "all padding", "holes"],
)
def test_masks(scorer, batch, change, pattern):
    tokens, mask, cache = batch
    with refused(pattern):
        scorer.score(cache, attention_mask=change(mask))
    with refused(pattern):
        scorer.fit(cache, attention_mask=change(mask))
    with refused(pattern.replace("the cache has", ".*")):
        scorer.score_tokens(tokens, change(mask))


@pytest.mark.parametrize("mask", ["1111", ["a"], [[1, 1], [1]], object()], ids=["text", "texts", "ragged", "object"])
def test_masks_that_are_none(scorer, batch, mask):
    with refused(r"attention_mask"):
        scorer.score(batch[2], attention_mask=mask)


def test_what_counts_as_a_mask(scorer, batch):
    tokens, mask, cache = batch
    expected = scorer.score(cache, tokens, mask).values
    for same in (mask.bool(), mask.float(), mask.tolist(), np.asarray(mask)):
        assert torch.equal(scorer.score(cache, tokens, same).values.nan_to_num(0), expected.nan_to_num(0))


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_left_padding_without_its_mask_is_refused(tiny, name):
    """Padding tokens would be scored as text, and real ones against a context that the model did not have."""
    tokens, mask = tokens_and_mask("left")
    cache = cached(tiny(name), tokens, mask)
    with refused(r"does not give the cached layer 1 \(off by .*padded and attention_mask was not passed to score\(\)"):
        BasinScorer(tiny(name), k=3).score(cache, tokens)
    BasinScorer(tiny(name), k=3).score(cache, tokens, mask)


def test_a_mask_that_the_cache_was_not_made_with_is_refused(pocket_mini):
    tokens, mask = tokens_and_mask("left")
    with torch.no_grad():
        _, cache = pocket_mini.run_with_cache(tokens, attention_mask=torch.ones_like(tokens))
    with refused(r"does not give the cached layer 1"):
        BasinScorer(pocket_mini, k=3).score(cache, tokens, mask)


@pytest.mark.parametrize("method", ["rerun", "lookup"])
def test_same_token_needs_tokens(pocket_mini, batch, method):
    tokens, mask, cache = batch
    scorer = BasinScorer(pocket_mini, k=2, neighbors="same_token", method=method)
    with refused(r'neighbors="same_token" needs the token ids of the scored cache. Pass tokens=\.\.\. with the cache'):
        scorer.score(cache, attention_mask=mask)
    scorer.fit(cache, attention_mask=mask)
    with refused(r"needs the token ids of the fitted bank"):
        scorer.score_tokens(tokens, mask)


def test_lookup_needs_the_next_layer(pocket_mini, batch):
    tokens, mask, cache = batch
    pre = {name: value for name, value in cache.items() if "resid_pre" in name}
    scorer = BasinScorer(pocket_mini, k=3, method="lookup")
    assert scorer.score(pre, tokens, mask, layers=[0, 1, 2]).layers == (0, 1, 2)
    with refused(
        r'method="lookup" needs the outputs of block 3, and they are not in the cache. Cache blocks.3.hook_resid_p'
    ):
        scorer.score(pre, tokens, mask)
    assert BasinScorer(pocket_mini, k=3).score(pre, tokens, mask).lookup is not None, "a re-run computes them"


@pytest.mark.parametrize(
    ("texts", "pattern"),
    [
        ([], r"[Tt]he list of texts is empty"),
        ("", r"empty"),
        (["a b c d e", "  "], r"texts\[1\] is empty \(white space only\)"),
        (["a b c d e", 7], r"texts\[1\] is not a string but a int"),
        ([" word" * 200], r"texts\[0\] has \d+ tokens, more than the model's context of 128"),
    ],
    ids=["none", "empty", "blank", "number", "long"],
)
def test_texts(scorer, texts, pattern):
    with refused(pattern):
        scorer.score_texts(texts)
    with refused(pattern):
        scorer.fit(texts)


@pytest.mark.parametrize("texts", [None, 5], ids=str)
def test_texts_that_are_none(scorer, texts):
    with refused(r"(text|cache)"):
        scorer.score_texts(texts)


def test_long_texts_are_cut_only_when_asked(scorer):
    texts = [" word" * 200]
    assert scorer.score_texts(texts, long_texts="truncate", layers=0).values.shape == (1, 1, 128)
    assert scorer.score_texts(texts, long_texts="split", layers=0).values.shape[1] > 1
    with refused(r"long_texts='cut' is not an option. Possible: 'error', 'truncate', 'split'"):
        scorer.score_texts(texts, long_texts="cut")


def test_a_model_without_a_tokenizer_reads_no_texts(scorer, pocket_mini, monkeypatch):
    monkeypatch.setattr(pocket_mini, "tokenizer", None)
    with refused(r"The model has no tokenizer"):
        scorer.score_texts(["a cat"])
    assert scorer.score_tokens(torch.arange(9)[None], layers=0).token_strings is None


def test_a_disk_that_is_really_full_leaves_nothing(scorer, tmp_path):
    """The operating system refuses files beyond 2,000 bytes, as a full disk does in the middle of one."""
    resource = pytest.importorskip("resource")
    scores = scorer.score_tokens(torch.arange(9)[None])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with refused(r"scores could not be written"):
            scores.save(tmp_path / "scores")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made(scorer, tmp_path):
    scores = scorer.score_tokens(torch.arange(9)[None])
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "scores", tmp_path / "file" / "a" / "b"):
        with refused(r"file.*(exists already|cannot be made)"):
            scores.save(folder)
    assert [path.name for path in tmp_path.rglob("*")] == ["file"]
    assert (tmp_path / "file").read_text() == "mine"


def test_a_disk_that_is_full_while_states_are_mapped(scorer, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with refused(r"(memory_budget|No space left)"):
        scorer.score_tokens(torch.arange(9)[None], memory_budget=0)
