"""`BasinScorer` from start to end: look-up against the loop, re-run against patching by hand, fitted banks, layers."""

from __future__ import annotations

import by_hand
import numpy as np
import pytest
import reference
import torch
from tiny_models import ARCHITECTURES

from basins import BasinScorer, BasinsError

RULES = ("same_layer", "cross_sequence", "same_token")
PADDINGS = ("none", "right", "left")
VARIANCES = ("var_in", "var_out", "var_update")
SCORES = {"values": "raw", "relative": "relative", "update": "update"}


def tokens_and_mask(padding="none", batch=4, pos=9):
    """Two sequences begin alike, all with the same token, and few tokens are used: duplicates as in a corpus."""
    tokens = torch.randint(5, 13, (batch, pos), generator=torch.Generator().manual_seed(0))
    tokens[:, 0] = 1
    tokens[1:2, :5] = tokens[0, :5]
    mask = torch.ones(batch, pos, dtype=torch.long)
    if padding == "right":
        mask[1, 6:], mask[2, 8:] = 0, 0
    if padding == "left":
        mask[1, :3], mask[2, :1] = 0, 0
    return tokens, mask


def cached(model, tokens, mask):
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens, attention_mask=mask, names_filter=lambda name: "resid" in name)
    return cache


def assert_scores_of_the_loop(scores, states, mask, tokens, tolerance=1e-5, **rules):
    """Every number of a look-up at every layer, neighbours included."""
    options = {"k": scores.neighbor_ids.shape[-1], "tokens": tokens.numpy(), **rules}
    for i, layer in enumerate(scores.layers):
        expected = reference.lookup_scores(states[layer].numpy(), states[layer + 1].numpy(), mask.numpy(), **options)
        np.testing.assert_array_equal(scores.neighbor_ids[i], expected["ids"])
        np.testing.assert_array_equal(scores.n_distinct[i], expected["n_distinct"])
        near = {"rtol": tolerance, "atol": tolerance, "equal_nan": True}
        np.testing.assert_allclose(scores.neighbor_distances[i], expected["distances"], **near)
        np.testing.assert_allclose(scores.same_token_share[i], expected["same_token_share"], rtol=1e-6)
        for name in VARIANCES:
            np.testing.assert_allclose(getattr(scores, name)[i], expected[name], **near | {"atol": 1e-12}, err_msg=name)
        # Equal states have outputs that are equal but for rounding: a variance of nothing, at the floor of the scores.
        at_floor = np.minimum.reduce([expected[name] for name in VARIANCES]) < 1e-9
        for name, other in SCORES.items():
            got = getattr(scores, name)[i].numpy()
            np.testing.assert_allclose(got[~at_floor], expected[other][~at_floor], **near, err_msg=name)
            np.testing.assert_allclose(got[at_floor], expected[other][at_floor], atol=0.1, equal_nan=True, err_msg=name)


@pytest.mark.parametrize("include_self", [False, True])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("padding", PADDINGS)
def test_lookup_is_the_loop_on_a_trained_model(pocket_mini, padding, rule, metric, include_self):
    tokens, mask = tokens_and_mask(padding)
    cache = cached(pocket_mini, tokens, mask)
    rules = {"neighbors": rule, "metric": metric, "include_self": include_self}
    scorer = BasinScorer(pocket_mini, k=3, method="lookup", **rules)
    scores = scorer.score(cache, tokens, mask)
    some = scores.values[0].isfinite()
    assert int(scores.n_distinct[0][some].min()) <= 3, "there are duplicates to count"
    assert_scores_of_the_loop(scores, by_hand.layers_of(pocket_mini, tokens, mask), mask, tokens, **rules)


@pytest.mark.parametrize("index", ["exact", "faiss"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "options", [{"normalize": True}, {"exclude_first": 1}, {"exclude_first": 3, "include_self": True}]
)
@pytest.mark.parametrize("padding", PADDINGS)
def test_lookup_is_the_loop_under_other_settings(pocket_mini, padding, options, dtype, index):
    tokens, mask = tokens_and_mask(padding)
    scorer = BasinScorer(pocket_mini, k=4, method="lookup", dtype=dtype, index=index, **options)
    scores = scorer.score(cached(pocket_mini, tokens, mask), tokens, mask)
    assert scores.values.dtype == scores.neighbor_distances.dtype == getattr(torch, dtype)
    tolerance = 1e-5 if dtype == "float32" else 1e-9
    states = by_hand.layers_of(pocket_mini, tokens, mask)
    assert_scores_of_the_loop(scores, states, mask, tokens, tolerance, **options)
    assert scores.settings["left_out_first"] == 4 * options.get("exclude_first", 0)
    assert scores.settings["padding"] == int((mask == 0).sum())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_lookup_is_the_loop_on_every_architecture(name, tiny):
    model = tiny(name)
    tokens, mask = tokens_and_mask("right")
    scores = BasinScorer(model, k=3, method="lookup").score(cached(model, tokens, mask), tokens, mask)
    assert scores.settings["replay"] == {}
    assert_scores_of_the_loop(scores, by_hand.layers_of(model, tokens, mask), mask, tokens)


@pytest.mark.parametrize("name", ["pocket-mini", "llama", "mamba", "gpt_neo"])
@pytest.mark.parametrize("padding", PADDINGS)
def test_rerun_is_patching_by_hand(name, padding, tiny, pocket_mini):
    model = pocket_mini if name == "pocket-mini" else tiny(name)
    tokens, mask = tokens_and_mask(padding)
    scores = BasinScorer(model, k=3).score(cached(model, tokens, mask), tokens, mask)
    lookup = BasinScorer(model, k=3, method="lookup").score(cached(model, tokens, mask), tokens, mask)
    assert scores.settings["method"] == "rerun"
    for name in ("neighbor_ids", "n_distinct"):
        assert torch.equal(getattr(scores, name), getattr(lookup, name))
    for name in (*VARIANCES, *SCORES):
        torch.testing.assert_close(getattr(scores.lookup, name), getattr(lookup, name), equal_nan=True)
    for layer in scores.layers:
        for b, p in ((0, 8), (1, 4), (2, 2), (3, 7)):
            expected = by_hand.variances(scores, model, layer, b, p, tokens, mask)
            got = [float(getattr(scores, name)[layer, b, p]) for name in VARIANCES]
            assert got == pytest.approx(expected, rel=1e-4, abs=1e-9)


def test_float64_models_are_scored_in_float64(tiny):
    model = tiny("gpt2", torch.float64)
    tokens, mask = tokens_and_mask("left")
    scores = BasinScorer(model, k=3).score_tokens(tokens, mask)
    assert scores.values.dtype == scores.neighbor_distances.dtype == torch.float64
    assert scores.settings["dtype"] == scores.settings["model_dtype"] == "float64"
    for layer, b, p in ((0, 0, 8), (1, 2, 4), (2, 3, 3)):
        expected = by_hand.variances(scores, model, layer, b, p, tokens, mask)
        assert [float(getattr(scores, name)[layer, b, p]) for name in VARIANCES] == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("shrink", [0.5, 1e-2])
def test_shrunk_neighbours_stand_between_query_and_neighbour(pocket_mini, shrink):
    tokens, mask = tokens_and_mask()
    scores = BasinScorer(pocket_mini, k=3, shrink=shrink, dtype="float64").score(cached(pocket_mini, tokens, mask))
    full = BasinScorer(pocket_mini, k=3, dtype="float64").score(cached(pocket_mini, tokens, mask))
    assert torch.equal(scores.neighbor_ids, full.neighbor_ids)
    torch.testing.assert_close(scores.var_in, shrink**2 * full.var_in, rtol=1e-3, atol=1e-7)
    for layer, b, p in ((0, 0, 7), (2, 3, 5), (3, 2, 2)):
        expected = by_hand.variances(scores, pocket_mini, layer, b, p, tokens, mask)
        got = [float(getattr(scores, name)[layer, b, p]) for name in VARIANCES]
        assert got == pytest.approx(expected, rel=5e-3)


def test_normalize_changes_the_measure_and_not_what_is_pushed(pocket_mini):
    tokens, mask = tokens_and_mask()
    scores = BasinScorer(pocket_mini, k=3, normalize=True).score(cached(pocket_mini, tokens, mask))
    states = by_hand.layers_of(pocket_mini, tokens, mask)
    before = states[1].flatten(0, 1)[scores.neighbor_ids[1, 2, 5]]
    after = torch.stack([by_hand.output(pocket_mini, tokens, mask, 1, 2, 5, x, []) for x in before])
    before, after = (x.double() / x.double().norm(dim=-1, keepdim=True) for x in (before, after))
    expected = [reference.variance(x.numpy()) for x in (before, after, after - before)]
    assert [float(getattr(scores, name)[1, 2, 5]) for name in VARIANCES] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("layers", [None, 0, 2, -1, [0], [3, 1], [-1, 0], range(1, 3), (-4, -4, 0), np.int64(2)])
def test_layers_are_a_selection(pocket_mini, layers):
    tokens, mask = tokens_and_mask()
    scorer, cache = BasinScorer(pocket_mini, k=3), cached(pocket_mini, tokens, mask)
    every = scorer.score(cache)
    chosen = range(4) if layers is None else [layers] if hasattr(layers, "__index__") else layers
    expected = sorted({int(layer) % 4 for layer in chosen})
    for scores in (scorer.score(cache, layers=layers), scorer.score_tokens(tokens, layers=layers)):
        assert scores.layers == tuple(expected)
        torch.testing.assert_close(scores.values, every.values[expected], rtol=1e-4, atol=1e-5)
        assert torch.equal(scores.neighbor_ids, every.neighbor_ids[expected])


def test_tokens_with_too_few_neighbours_are_nan_and_counted(pocket_mini):
    tokens, mask = tokens_and_mask("right")
    tokens[2, 3] = 99  # once, so it has no other occurrence
    scores = BasinScorer(pocket_mini, k=3, neighbors="same_token").score_tokens(tokens, mask)
    real = mask.bool()
    occurrences = torch.tensor([[int((tokens[real] == token).sum()) for token in row] for row in tokens])
    scored = (occurrences > 3) & real
    assert torch.equal(scores.values.isfinite(), scored.expand(4, -1, -1))
    assert not bool(scored[2, 3])
    assert scores.settings["unscored"] == int((real & ~scored).sum()) > 0
    assert bool((scores.same_token_share[:, scored] == 1).all())


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("as_texts", [False, True])
def test_a_fitted_bank_gives_the_neighbours(pocket_mini, rule, as_texts):
    texts = ["Call me Ishmael. Some years ago, never mind how long", "Call me a cab, some years ago"]
    bank = pocket_mini.to_tokens(texts)
    bank_mask = torch.ones_like(bank)
    bank_mask[1, len(pocket_mini.to_tokens(texts[1])[0]) :] = 0
    tokens = pocket_mini.to_tokens("Call me, some years ago.")
    scorer = BasinScorer(pocket_mini, k=2, neighbors=rule, exclude_first=1)
    assert (
        scorer.fit(
            texts if as_texts else cached(pocket_mini, bank, bank_mask), *([] if as_texts else [bank, bank_mask])
        )
        is scorer
    )
    scores = scorer.score(cached(pocket_mini, tokens, None), tokens)
    states, bank_states = by_hand.layers_of(pocket_mini, tokens), by_hand.layers_of(pocket_mini, bank, bank_mask)
    for layer in range(4):
        candidates = reference.sorted_candidates(
            states[layer][0].numpy(),
            reference.tokens_of(torch.ones_like(tokens), tokens, 1),
            bank_states[layer].flatten(0, 1).numpy(),
            reference.tokens_of(bank_mask, bank, 1),
            neighbors=rule,
            same=False,
        )
        ids, distances = reference.nearest(candidates, 2)
        np.testing.assert_array_equal(scores.neighbor_ids[layer, 0], ids)
        np.testing.assert_allclose(scores.neighbor_distances[layer, 0], distances, rtol=1e-4, atol=1e-4)
        p = int((scores.neighbor_ids[layer, 0, :, 0] >= 0).nonzero()[-1])
        expected = by_hand.variances(scores, pocket_mini, layer, 0, p, tokens, bank=bank_states[layer])
        assert [float(getattr(scores, name)[layer, 0, p]) for name in VARIANCES] == pytest.approx(
            expected, rel=1e-3, abs=1e-6
        )
        outputs = bank_states[layer + 1].flatten(0, 1)[scores.neighbor_ids[layer, 0, p]]
        assert float(scores.lookup.var_out[layer, 0, p]) == pytest.approx(reference.variance(outputs.numpy()), rel=1e-3)
    assert scores.settings["bank"]["states"] == int(bank_mask.sum()) - 2


def test_a_bank_without_outputs_has_no_lookup(pocket_mini):
    """Layer L+1 of the bank is not known: re-run goes on without, and look-up says what is missing."""
    tokens, mask = tokens_and_mask()
    only = {"blocks.2.hook_resid_pre": cached(pocket_mini, tokens, mask)["blocks.2.hook_resid_pre"]}
    cache = cached(pocket_mini, tokens[:2], mask[:2])
    assert BasinScorer(pocket_mini, k=3).fit(only).score(cache, layers=2).lookup is None
    with pytest.raises(
        BasinsError, match=r'method="lookup" needs the outputs of block 2, and they are not in the bank'
    ):
        BasinScorer(pocket_mini, k=3, method="lookup").fit(only).score(cache, layers=2)


def test_bfloat16_models(pocket_mini):
    """Distances and variances stay in float32; the block's own rounding is what is left."""
    import basins

    rough = basins.load_model("pocket-mini", dtype="bfloat16")
    tokens, mask = tokens_and_mask("left")
    scores = BasinScorer(rough, k=3).score(cached(rough, tokens, mask), tokens, mask)
    exact = BasinScorer(pocket_mini, k=3).score(cached(pocket_mini, tokens, mask), tokens, mask)
    assert scores.values.dtype == scores.neighbor_distances.dtype == torch.float32
    assert scores.settings["model_dtype"] == "bfloat16"
    scored = (exact.n_distinct >= 3) & (scores.neighbor_ids == exact.neighbor_ids).all(-1)
    assert float(scored.float().mean()) > 0.3
    assert float((scores.values - exact.values)[scored].abs().max()) < 0.1
    assert float((scores.relative - exact.relative)[scored].abs().max()) < 0.1
