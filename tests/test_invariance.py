"""What results may not depend on: batches, chunks, sequence order, exact index, padding, cache or sweep, time."""

from __future__ import annotations

import gc
import os
import tempfile
from dataclasses import fields

import pytest
import torch
from test_scorer import PADDINGS, RULES, VARIANCES, cached, tokens_and_mask
from tiny_models import ARCHITECTURES

from basins import BasinScorer, BasinScores, TokenBatch
from basins.state_store import StateStore

NUMBERS = ("values", "relative", "update", *VARIANCES, "neighbor_distances", "same_token_share")
TEXTS = ["Call me Ishmael. Some years ago", "It was the best of times, it was the worst", "Call me, some years"]


def distinct_states(padding="none"):
    """No token stands twice at one position, so no two states are equal and no tie hangs on a rounding."""
    tokens = 5 + (3 * torch.arange(4)[:, None] + torch.arange(12)) % 15
    mask = tokens_and_mask(padding, 4, 12)[1]
    return tokens, mask


def assert_same(actual: BasinScores, expected: BasinScores, tolerance=1e-4) -> None:
    assert actual.layers == expected.layers
    assert torch.equal(actual.neighbor_ids, expected.neighbor_ids)
    assert torch.equal(actual.n_distinct, expected.n_distinct)
    for name in NUMBERS:
        a, b = getattr(actual, name), getattr(expected, name)
        if a is not None and b is not None:
            torch.testing.assert_close(
                a, b, rtol=tolerance, atol=1e-5, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}"
            )
    if expected.lookup is not None:
        assert_same(actual.lookup, expected.lookup, tolerance)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
@pytest.mark.parametrize("method", ["rerun", "lookup"])
@pytest.mark.parametrize("padding", PADDINGS)
def test_batch_size(pocket_mini, padding, method, batch_size):
    tokens, mask = distinct_states(padding)
    cache = cached(pocket_mini, tokens, mask)
    expected = BasinScorer(pocket_mini, k=3, method=method).score(cache, tokens, mask)
    scorer = BasinScorer(pocket_mini, k=3, method=method, batch_size=batch_size)
    assert_same(scorer.score(cache, tokens, mask), expected)
    assert_same(scorer.score_tokens(tokens, mask), expected)


@pytest.mark.parametrize("method", ["rerun", "lookup"])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_duplicates_are_counted_in_any_batch_size(pocket_mini, method, batch_size):
    """Shared beginnings of texts of several lengths: forward passes of other shapes round equal states differently."""
    tokens, mask = tokens_and_mask("right")
    tokens[1], tokens[2, :4] = tokens[0], tokens[0, :4]
    expected = BasinScorer(pocket_mini, k=3, method=method).score_tokens(tokens, mask)
    assert int(expected.n_distinct[1, 0].min()) < 4
    scores = BasinScorer(pocket_mini, k=3, method=method, batch_size=batch_size).score_tokens(tokens, mask)
    assert torch.equal(scores.n_distinct, expected.n_distinct)
    assert torch.equal(scores.relative.isnan(), expected.relative.isnan())


def test_neighbours_that_coincide_come_out_at_the_floor_exactly(pocket_mini):
    """Equal states in one place give equal outputs, whatever rows of a product they were (design, section 4)."""
    tokens = pocket_mini.to_tokens("It was the best of times, it was the worst of times").expand(9, -1)
    scores = BasinScorer(pocket_mini, k=4).score_tokens(tokens)
    assert bool((scores.n_distinct == 1).all())
    assert float(scores.var_in.max()) == 0
    assert float(scores.var_out.max()) == 0
    assert float(scores.var_update.max()) == 0
    assert scores.values.unique().tolist() == pytest.approx([23.0259], abs=1e-4)


@pytest.mark.parametrize(
    ("constant", "value"),
    [
        ("basins.transition.PATCH_FLOATS", {"cpu": 1}),
        ("basins.transition.PATCH_FLOATS", {"cpu": 2000}),
        ("basins.core.FLOATS_PER_PIECE", {"cpu": 1}),
        ("basins.core.FLOATS_PER_PIECE", {"cpu": 20_000}),
        ("basins.rerun.PROJECTED_FLOATS", {"cpu": 1}),
        ("basins.rerun.PROJECTED_AT_ONCE", 5),
        ("basins.rerun.ROWS_PER_POS", 0),
        ("basins.rerun.LEAST_ROWS", 1),
        ("basins.sources.FLOATS_PER_CALL", {"cpu": 1}),
        ("basins.patching.TOKENS_PER_CALL", 1),
        ("basins.neighbors.CANDIDATE_FLOATS", 1),
        ("basins.neighbors.PAIRS_PER_CHUNK", 1),
        ("basins.indexes.SCORES_PER_CHUNK", 1),
        ("basins.indexes.MEMBERS_PER_CHUNK", 4),
        ("basins.indexes.FAISS_FROM", 1),
    ],
)
@pytest.mark.parametrize("name", ["pocket-mini", "mamba"])
def test_chunk_sizes(pocket_mini, tiny, name, constant, value, monkeypatch):
    model = pocket_mini if name == "pocket-mini" else tiny(name)
    tokens, mask = distinct_states("right")
    expected = BasinScorer(model, k=3).score_tokens(tokens, mask)
    monkeypatch.setattr(constant, value)
    if constant.endswith("ROWS_PER_POS"):
        monkeypatch.setattr("basins.rerun.LEAST_ROWS", 2)
    assert_same(BasinScorer(model, k=3).score_tokens(tokens, mask), expected)
    assert_same(BasinScorer(model, k=3).score(cached(model, tokens, mask), tokens, mask), expected)


@pytest.mark.parametrize("rule", RULES)
def test_order_of_unrelated_sequences(pocket_mini, rule):
    """Of states that differ from one another: a tie goes to the lower id, which is another state in another order."""
    tokens, mask = distinct_states("right")
    order = torch.tensor([3, 1, 0, 2])
    scorer = BasinScorer(pocket_mini, k=2, neighbors=rule)
    plain, moved = scorer.score_tokens(tokens, mask), scorer.score_tokens(tokens[order], mask[order])
    assert int(plain.n_distinct[plain.values.isfinite()].min()) == 3
    back = torch.where(moved.neighbor_ids < 0, -1, order[moved.neighbor_ids // 12] * 12 + moved.neighbor_ids % 12)
    assert torch.equal(back, plain.neighbor_ids[:, order])
    for name in NUMBERS:
        torch.testing.assert_close(
            getattr(moved, name), getattr(plain, name)[:, order], rtol=1e-4, atol=1e-5, equal_nan=True
        )


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("index", ["exact", "faiss"])
def test_exact_indexes(pocket_mini, index, rule):
    tokens, mask = tokens_and_mask("left")
    scores = BasinScorer(pocket_mini, k=3, neighbors=rule, index=index).score_tokens(tokens, mask)
    assert_same(scores, BasinScorer(pocket_mini, k=3, neighbors=rule).score_tokens(tokens, mask), 1e-5)
    reports = scores.settings["neighbor_search"]
    assert [reports[str(layer)]["index"] for layer in range(4)] == 4 * [index]
    assert all(report["exact"] for report in reports.values())


def test_an_approximate_index_says_so_in_the_result(pocket_mini):
    tokens, mask = tokens_and_mask()
    scores = BasinScorer(pocket_mini, k=3, index="faiss-ivf").score_tokens(tokens, mask)
    for report in scores.settings["neighbor_search"].values():
        assert report["index"] == "faiss-ivf"
        assert report["exact"] is False
        assert 0 < report["recall_on_sample"] <= 1


@pytest.mark.parametrize("method", ["rerun", "lookup"])
def test_cache_texts_and_tokens(pocket_mini, method):
    scorer = BasinScorer(pocket_mini, k=3, method=method)
    from_texts = scorer.score_texts(TEXTS)
    tokens = pocket_mini.to_tokens(TEXTS)
    lengths = [len(pocket_mini.to_tokens(text)[0]) for text in TEXTS]
    mask = (torch.arange(tokens.shape[1]) < torch.tensor(lengths)[:, None]).long()
    assert torch.equal(from_texts.tokens * mask, tokens * mask)
    from_tokens = scorer.score_tokens(tokens, mask)
    assert_same(from_tokens, from_texts, 1e-6)
    from_cache = scorer.score(cached(pocket_mini, tokens, mask), tokens, mask)
    assert_same(from_cache, from_texts)
    batch = TokenBatch(tokens, mask, torch.zeros(*tokens.shape, 2), (0, 1, 2), {"by": "hand"})
    assert_same(scorer.score_texts(batch), from_texts, 1e-6)
    assert from_texts.settings["tokenization"]["prepend_bos"] is True
    assert from_texts.settings["tokenization"]["text_ids"] == [0, 1, 2]
    assert from_cache.settings["tokenization"] == from_tokens.settings["tokenization"] == "made by the caller"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_cache_and_sweep_on_every_architecture(name, tiny):
    tokens, mask = distinct_states("right")
    tokens = 5 + torch.randperm(48, generator=torch.Generator().manual_seed(0)).view(4, 12)
    scorer = BasinScorer(tiny(name), k=3)
    assert_same(scorer.score_tokens(tokens, mask), scorer.score(cached(tiny(name), tokens, mask), tokens, mask), 1e-3)


def test_cache_forms(pocket_mini):
    """A dictionary, one without batch dimension, one with only what enters the blocks, one with autograd on."""
    tokens, mask = tokens_and_mask(batch=1, pos=14)
    scorer = BasinScorer(pocket_mini, k=3)
    cache = cached(pocket_mini, tokens, mask)
    expected = scorer.score(cache)
    _, flat = pocket_mini.run_with_cache(tokens, remove_batch_dim=True)
    assert_same(scorer.score(flat), expected, 1e-6)
    assert_same(scorer.score(dict(cache.items())), expected, 1e-6)
    assert_same(
        scorer.score({f"blocks.{i}.hook_resid_pre": cache[f"blocks.{i}.hook_resid_pre"] for i in range(4)}), expected
    )
    posts = {f"blocks.{i}.hook_resid_post": cache[f"blocks.{i}.hook_resid_post"] for i in range(4)}
    assert torch.equal(scorer.score(posts, layers=[1, 2, 3]).neighbor_ids, expected.neighbor_ids[1:])
    assert_same(scorer.score(cache, tokens[0], mask[0]), expected, 1e-6)
    assert_same(scorer.score(cache, tokens.tolist(), mask.bool()), expected, 1e-6)


@pytest.mark.parametrize("padding", ["left", "right"])
def test_padding_is_nothing(pocket_mini, padding):
    """The same sequences without padding, one after the other against the same bank."""
    tokens, mask = tokens_and_mask(padding)
    bank = torch.arange(20, 60).view(2, 20)
    scorer = BasinScorer(pocket_mini, k=3).fit(cached(pocket_mini, bank, None), bank)
    padded = scorer.score_tokens(tokens, mask)
    for b in range(4):
        real = mask[b].bool()
        alone = scorer.score_tokens(tokens[b : b + 1, real])
        assert torch.equal(alone.neighbor_ids[:, 0], padded.neighbor_ids[:, b][:, real])
        for name in NUMBERS:
            expected = getattr(alone, name)[:, 0]
            torch.testing.assert_close(
                getattr(padded, name)[:, b][:, real], expected, rtol=1e-4, atol=1e-5, equal_nan=True
            )


def test_what_stands_in_the_padding_is_nothing(pocket_mini):
    tokens, mask = tokens_and_mask("right")
    scorer = BasinScorer(pocket_mini, k=3)
    other = torch.where(mask.bool(), tokens, 77)
    assert_same(scorer.score_tokens(other, mask), scorer.score_tokens(tokens, mask), 1e-6)
    cache = {name: value.clone() for name, value in cached(pocket_mini, tokens, mask).items()}
    expected = scorer.score(cache, tokens, mask)
    for value in cache.values():
        value[mask == 0] = 1e4
    assert_same(scorer.score(cache, tokens, mask), expected, 1e-6)


@pytest.mark.parametrize("method", ["lookup", "rerun"])
def test_padding_that_is_not_a_number_is_nothing(pocket_mini, method):
    tokens, mask = tokens_and_mask("right")
    scorer = BasinScorer(pocket_mini, k=3, method=method)
    cache = {name: value.clone() for name, value in cached(pocket_mini, tokens, mask).items()}
    expected = scorer.score(cache, tokens, mask)
    for value in cache.values():
        value[mask == 0] = float("nan")
    assert_same(scorer.score(cache, tokens, mask), expected, 1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_a_bank_from_a_cache_from_texts_and_from_a_token_batch(pocket_mini, rule):
    from basins.corpus import tokenize

    batch = tokenize(pocket_mini, TEXTS)
    bank = cached(pocket_mini, batch.tokens, batch.attention_mask), batch.tokens, batch.attention_mask
    found = [
        BasinScorer(pocket_mini, k=2, neighbors=rule).fit(*args).score_texts(TEXTS[:1])
        for args in (bank, [TEXTS], [batch])
    ]
    assert_same(found[1], found[0])
    assert_same(found[2], found[0])
    itself = found[0].neighbor_ids[1:, 0, :, 0] == torch.arange(found[0].values.shape[2])
    assert bool(itself[found[0].values[1:, 0].isfinite()].all()), "a bank leaves nothing out"


@pytest.mark.parametrize("index", ["auto", "faiss-ivf"])
def test_same_seed_same_bytes(pocket_mini, tmp_path, index):
    tokens, mask = tokens_and_mask()
    for name in ("first", "again"):
        BasinScorer(pocket_mini, k=3, index=index, seed=5).score_tokens(tokens, mask).save(tmp_path / name)
    for file in ("scores.safetensors", "scores.json"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


@pytest.mark.parametrize("method", ["rerun", "lookup"])
def test_mapped_files_change_nothing_and_go_away(pocket_mini, method, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    tokens, mask = tokens_and_mask("right")
    scorer, seen = BasinScorer(pocket_mini, k=3, method=method), []
    create = StateStore.create

    def counted(store, layer):
        states = create(store, layer)
        seen.append(sum(path.is_file() for path in tmp_path.rglob("*")))
        return states

    monkeypatch.setattr(StateStore, "create", counted)
    in_memory = scorer.score_tokens(tokens, mask)
    assert seen == [0, 0, 0, 0, 0]
    seen.clear()
    on_disk = scorer.score_tokens(tokens, mask, memory_budget=0)
    assert seen == [1, 2, 2, 2, 2], "two layers of states, whatever the depth"
    for field in fields(BasinScores):
        if isinstance(value := getattr(in_memory, field.name), torch.Tensor):
            assert value.numpy().tobytes() == getattr(on_disk, field.name).numpy().tobytes(), field.name
    gc.collect()
    assert os.listdir(tmp_path) == []
