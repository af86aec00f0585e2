"""k x k crossed outputs: against a NumPy loop over plain patching, and against what must hold for any numbers."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from test_rerun import one_forward_per_neighbour, padded, some_tokens
from test_scorer import cached
from tiny_models import tiny_model

import basins
from basins import BasinScorer, decomposition
from basins.decomposition import PARTS, split_variance
from basins.errors import BasinsError

K = 3


def by_loops(y: np.ndarray) -> dict[str, float]:
    """The definition, with sums over j and c written out."""
    k = len(y)
    mean = np.array(sum(y[j, c] for j in range(k) for c in range(k))) / k**2
    of_state = [np.array(sum(y[j, c] for c in range(k))) / k for j in range(k)]
    of_context = [np.array(sum(y[j, c] for j in range(k))) / k for c in range(k)]
    found = {"total": sum(((y[j, c] - mean) ** 2).sum() for j in range(k) for c in range(k)) / k**2}
    found["state"] = sum(((row - mean) ** 2).sum() for row in of_state) / k
    found["context"] = sum(((row - mean) ** 2).sum() for row in of_context) / k
    rest = [y[j, c] - of_state[j] - of_context[c] + mean for j in range(k) for c in range(k)]
    found["interaction"] = sum((row**2).sum() for row in rest) / k**2
    own = np.stack([y[j, j] for j in range(k)])
    found["diagonal"] = ((own - own.mean(0)) ** 2).sum() / k
    return found


@pytest.mark.parametrize("way", ["cache", "tokens"])
@pytest.mark.parametrize("padding", ["none", "right", "left"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_agrees_with_loops_over_plain_patching(name, padding, way, monkeypatch):
    monkeypatch.setattr(decomposition, "CROSSED_FLOATS", 2 * K * K * 32)  # several pieces
    model, tokens, mask = tiny_model(name), some_tokens(), padded(padding)
    scorer = BasinScorer(model, k=K, neighbors="cross_sequence", exclude_first=1, seed=5)
    cache = cached(model, tokens, mask)
    given = (cache, tokens, mask) if way == "cache" else (tokens, None, mask)
    found = scorer.decompose(*given, sample=3)
    scores = scorer.score(cache, tokens, mask)
    assert found.layers == (0, 1, 2)
    for place, layer in enumerate(found.layers):
        states = cache[f"blocks.{layer}.hook_resid_pre"].flatten(0, 1)
        for number, query in enumerate(found.queries.tolist()):
            ids = scores.neighbor_ids[place].flatten(0, 1)[query].tolist()
            y = np.zeros((K, K, states.shape[1]))
            for j in range(K):
                for c in range(K):
                    sequence, position = divmod(ids[c], mask.shape[1])
                    patched = one_forward_per_neighbour(model, tokens, mask, layer, sequence, position, states[ids[j]])
                    y[j, c] = patched.double().numpy()
            for part, value in by_loops(y).items():
                got = float(getattr(found, part)[place, number])
                assert got == pytest.approx(value, rel=1e-4, abs=1e-6), (layer, query, part)


@pytest.mark.parametrize("norm", [0.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_parts_sum_to_the_total_for_any_outputs(norm, dtype):
    outputs = torch.randn(5, 4, 4, 6, dtype=dtype, generator=torch.Generator().manual_seed(1)) + norm
    parts = split_variance(outputs)
    torch.testing.assert_close(sum(parts[part] for part in PARTS), parts["total"], rtol=1e-6, atol=0)
    for query in range(5):
        wanted = by_loops(outputs[query].double().numpy())
        for part, value in parts.items():
            assert float(value[query]) == pytest.approx(wanted[part], rel=1e-6)


def test_what_only_one_thing_causes_is_its_alone():
    states = torch.randn(4, 1, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    contexts = torch.randn(1, 4, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    only = split_variance(states.expand(4, 4, 6))
    assert float(only["state"]) == pytest.approx(float(only["total"]))
    assert float(only["context"] + only["interaction"]) < 1e-28
    both = split_variance(states + contexts)
    assert float(both["interaction"]) < 1e-20
    crossed = split_variance(states * contexts)
    assert float(crossed["interaction"]) > 0.01 * float(crossed["total"])
    assert {name: float(value) for name, value in split_variance(torch.ones(3, 3, 2)).items()} == {
        "total": 0, "state": 0, "context": 0, "interaction": 0
    }  # fmt: skip


@pytest.fixture(scope="module")
def found(pocket_mini):
    tokens = pocket_mini.to_tokens(basins.pocket.demo_text()[:12])[:, :40]
    scorer = BasinScorer(pocket_mini, k=5, neighbors="cross_sequence", exclude_first=1)
    return tokens, scorer, scorer.decompose(tokens, sample=30, layers=[1, 3])


def test_the_diagonal_is_what_lookup_looks_up(found):
    tokens, scorer, parts = found
    looked_up = scorer.score_tokens(tokens, layers=[1, 3]).lookup
    wanted = looked_up.var_out.flatten(1)[:, parts.queries]
    torch.testing.assert_close(parts.diagonal, wanted.double(), rtol=1e-4, atol=1e-6)


def test_shares_sum_to_1_and_the_table_prints(found, tmp_path):
    _, _, parts = found
    torch.testing.assert_close(parts.state + parts.context + parts.interaction, parts.total, rtol=1e-6, atol=0)
    table = parts.shares(n_resamples=200)
    assert table.groupby("layer")["share"].sum().to_numpy() == pytest.approx(1)
    assert ((table["low"] <= table["share"]) & (table["share"] <= table["high"])).all()
    frame = parts.to_frame()
    wanted = frame[frame["layer"] == 3]["context_share"].mean()
    row = table[(table["layer"] == 3) & (table["part"] == "context")].iloc[0]
    assert row["share"] == pytest.approx(wanted)
    one = parts.shares(n_resamples=200, clusters=torch.zeros(len(found[0]), dtype=torch.long))
    assert (one["sequences"] == 1).all()
    assert one["low"].isna().all()
    assert "30 queries in 2 transitions" in str(parts)
    folder = parts.save(tmp_path / "parts")
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "decomposition.parquet"), frame)
    assert json.loads((folder / "settings.json").read_text())["k"] == 5


def test_the_same_seed_gives_the_same_numbers_and_others_other_queries(found):
    tokens, scorer, parts = found
    again = scorer.decompose(tokens, sample=30, layers=[1, 3])
    assert torch.equal(again.total, parts.total)
    other = BasinScorer(scorer.model, k=5, neighbors="cross_sequence", exclude_first=1, seed=1)
    assert not torch.equal(other.decompose(tokens, sample=30, layers=1).queries, parts.queries)


def test_a_cache_of_other_states_is_refused_and_the_model_is_left_as_found(untouched):
    model, tokens, mask = tiny_model("gpt2"), some_tokens(), padded("left")
    cache = cached(model, tokens, mask)
    scorer = BasinScorer(model, k=K)
    with torch.enable_grad(), untouched(model):
        with pytest.raises(BasinsError, match="does not give the cached layer"):
            scorer.decompose(cache, tokens, sample=3)
        assert torch.is_grad_enabled()
        with pytest.raises(BasinsError, match="passed twice"):
            scorer.decompose(tokens, tokens, sample=3)
        with pytest.raises(BasinsError, match="sample=1 is too small"):
            scorer.decompose(tokens, None, mask, sample=1)
        assert torch.is_grad_enabled()
        with pytest.raises(BasinsError, match=r"shrink=0\.5 moves neighbours"):
            BasinScorer(model, k=K, shrink=0.5).decompose(tokens)
        with pytest.raises(BasinsError, match="needs the token ids of the cache"):
            BasinScorer(model, k=K, neighbors="same_token").decompose(cache, None, mask)
        with pytest.raises(BasinsError, match="fitted bank has no contexts"):
            BasinScorer(model, k=K).fit(cache, tokens, mask).decompose(tokens)
