"""The radius at which a score stops depending on it, against a Jacobian by autograd through the model's own hooks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from test_rerun import padded, some_tokens
from test_scorer import cached
from tiny_models import tiny_model

import basins
from basins import BasinScorer
from basins.errors import BasinsError
from basins.lens import resid_post, resid_pre
from basins.local_limit import LocalLimit, check_shrinks, local_limit
from basins.settings import ScorerSettings


def jacobian(model, tokens, mask, layer, sequence, position, state):
    """d B_L(x; context) / d x at the query's own place, by autograd."""

    def output(x):
        kept = {}

        def put(value, hook):
            rows = [torch.tensor([sequence]), torch.tensor([position])]
            return value.detach().index_put(rows, x[None])

        def read(value, hook):
            kept["out"] = value[sequence, position]

        hooks = [(resid_pre(layer), put), (resid_post(layer), read)]
        model.run_with_hooks(tokens, attention_mask=mask, fwd_hooks=hooks)
        return kept["out"]

    return torch.autograd.functional.jacobian(output, state)


@pytest.mark.parametrize("padding", ["none", "right"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_smallest_radius_agrees_with_the_jacobian(name, padding):
    model, tokens, mask = tiny_model(name, torch.float64), some_tokens(), padded(padding)
    settings = ScorerSettings(k=5, neighbors="cross_sequence", exclude_first=1)
    found = local_limit(model, settings, tokens, None, mask, shrinks=(1.0, 2e-3, 1e-3), sample=4)
    cache = cached(model, tokens, mask)
    scores = BasinScorer(model, k=5, neighbors="cross_sequence", exclude_first=1).score(cache, tokens, mask)
    for place, layer in enumerate(found.layers):
        states = cache[resid_pre(layer)].flatten(0, 1).detach()
        for number, query in enumerate(found.queries.tolist()):
            sequence, position = divmod(query, mask.shape[1])
            slope = jacobian(model, tokens, mask, layer, sequence, position, states[query])
            near = states[scores.neighbor_ids[place].flatten(0, 1)[query]]
            centred = near - near.mean(0)
            s = centred.T @ centred / len(near)
            limit = math.log(torch.trace(s) / torch.trace(slope @ s @ slope.T))
            at_two, at_one = found.relative[place, 1:, number].tolist()
            assert at_one == pytest.approx(limit, abs=5e-3), (layer, query)
            # Neighbours are as far as the states are long, so the term in t is not small; without it:
            assert 2 * at_one - at_two == pytest.approx(limit, abs=2e-4), (layer, query)
            whole = float(scores.relative[place].flatten()[query])
            assert float(found.relative[place, 0, number]) == pytest.approx(whole, abs=1e-8)


def made(columns: list[np.ndarray]) -> LocalLimit:
    """Scores of one layer at falling radii."""
    relative = torch.tensor(np.stack(columns))[None]
    shrinks = (1.0, 0.3, 0.1, 0.01)
    return LocalLimit(relative, shrinks, (4,), torch.arange(relative.shape[2]), 50, {"k": 3})


def test_the_rule_looks_at_ranks_and_at_sizes():
    rng = np.random.default_rng(0)
    limit = rng.normal(size=50)
    noise = rng.normal(size=50)
    assert made([limit + noise, limit + 0.5, limit + 0.001, limit]).radius() == {4: 0.1}
    assert made([limit + 0.001] * 3 + [limit]).radius() == {4: 1.0}
    # A larger radius that happens to agree does not count while a smaller one does not.
    assert made([limit, limit + noise, limit, limit]).radius() == {4: 0.1}
    assert math.isnan(made([limit + noise] * 3 + [limit]).radius()[4])
    table = made([limit + noise, limit + 0.5, limit + 0.001, limit]).summary()
    assert table["change"].tolist() == pytest.approx([np.median(np.abs(noise)), 0.5, 0.001, 0])
    assert table["median"].iloc[3] == pytest.approx(np.median(limit))
    assert table["local"].tolist() == [False, False, True, False]
    assert len(made([limit] * 4).to_frame()) == 50


def test_radii_below_the_digits_of_bfloat16_say_nothing(pocket_mini):
    """In bfloat16 a state moved by 1% of a displacement is mostly the same state."""
    model = basins.load_model("pocket-mini", dtype=torch.bfloat16)
    batch = basins.corpus.tokenize(model, basins.pocket.demo_text()[:8], max_length=64, long_texts="split")
    settings = ScorerSettings(k=15, neighbors="cross_sequence", exclude_first=1)
    asked = {"attention_mask": batch.attention_mask, "layers": [1, 3], "sample": 32}
    half = local_limit(model, settings, batch.tokens, **asked)
    full = local_limit(pocket_mini, settings, batch.tokens, **asked)
    assert torch.isnan(half.relative[:, -1]).all()
    assert not torch.isnan(full.relative).any()
    table = half.summary()
    assert not table[table["shrink"] == 0.01]["local"].any()
    resolved = table[table["shrink"] >= 0.3].set_index(["layer", "shrink"])["median"]
    assert resolved.notna().all()
    exact = full.summary().set_index(["layer", "shrink"])["median"]
    assert (resolved - exact.loc[resolved.index]).abs().max() < 0.02
    assert table["smallest"].isin((0.1, 0.3)).all()


def test_neighbours_that_coincide_say_nothing_of_the_digits():
    """At layer 0 of a rotary model every occurrence of a token has one state."""
    model = tiny_model("llama")
    tokens = torch.randint(3, 8, (8, 12), generator=torch.Generator().manual_seed(0))
    tokens[:, ::5] = torch.randint(8, 60, (8, 3), generator=torch.Generator().manual_seed(1))
    settings = ScorerSettings(k=5, neighbors="cross_sequence", exclude_first=1)
    found = local_limit(model, settings, tokens, layers=[0], sample=48)
    apart = ~torch.isnan(found.relative[0, 0])
    assert 0 < int(apart.sum()) < 24
    assert not torch.isnan(found.relative[0, :, apart]).any()


def test_where_nothing_is_resolved_the_table_says_so(pocket_mini):
    nothing = torch.full((1, 4, 6), float("nan"), dtype=torch.float64)
    table = LocalLimit(nothing, (1.0, 0.3, 0.1, 0.01), (4,), torch.arange(6), 6, {"k": 3}).summary()
    assert set(table["shrink"]) == {1.0, 0.3, 0.1, 0.01}
    assert table[["median", "rho", "change", "smallest"]].isna().all(axis=None)
    assert not table["local"].any()


def test_bad_radii_say_what_is_possible():
    assert check_shrinks([0.1, 1, 0.1]) == (1.0, 0.1)
    for bad in ([1.0], [0.0, 1.0], [2.0, 1.0]):
        with pytest.raises(BasinsError, match="two radii or more"):
            check_shrinks(bad)
