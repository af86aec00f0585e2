from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("scipy.stats")

from basins.errors import BasinsError
from basins.stats import correlation_grid, partial, spearman
from basins.stats.resampling import rotations
from basins.stats.sample import gather

N_SEQUENCES, LENGTH, LAYERS = 12, 15, 3
NULLS = 120
CLUSTERS = np.repeat(np.arange(N_SEQUENCES), LENGTH)
FEW = {"n_resamples": 200, "n_permutations": 199}


def columns(seed: int = 0) -> dict[str, np.ndarray]:
    """`same` follows `x` at layer 1 only; `z` drives both `x` and `y` everywhere."""
    rng = np.random.default_rng(seed)
    x, y, z, other = rng.normal(size=(4, LAYERS, len(CLUSTERS)))
    same = rng.normal(size=x.shape)
    same[1] += 2 * x[1]
    return {"x": x + z, "y": y + z, "z": z, "same": same, "other": other}


def test_every_cell_is_spearman_and_its_partial():
    t = columns()
    cells = correlation_grid(
        {"x": t["x"], "other": t["other"]}, {"y": t["y"], "same": t["same"]}, {"z": t["z"]}, clusters=CLUSTERS, **FEW
    )
    assert [(c.layer, c.x, c.y) for c in cells] == [
        (layer, x, y) for layer in range(LAYERS) for x in ("x", "other") for y in ("y", "same")
    ]
    for c in cells:
        x, y, z = t[c.x][c.layer], t[c.y][c.layer], t["z"][c.layer]
        raw = spearman(x, y, clusters=CLUSTERS, n_resamples=200)
        left = partial(x, y, {"z": z}, clusters=CLUSTERS, rank=True, n_resamples=200)
        assert c.raw.estimate == pytest.approx(raw.estimate, abs=1e-12)
        assert c.partial.estimate == pytest.approx(left.estimate, abs=1e-12)
        assert c.raw.interval == pytest.approx(raw.interval, abs=0.05)
        assert c.partial.interval == pytest.approx(left.interval, abs=0.05)
        assert c.raw.n_tokens == len(CLUSTERS)
        assert c.partial.n_clusters == N_SEQUENCES


@pytest.mark.parametrize("moves", ["rotate", "shuffle"])
def test_the_real_relation_is_found_and_the_confounded_one_is_not(moves):
    t = columns()
    cells = correlation_grid(
        {"x": t["x"]}, {"y": t["y"], "same": t["same"]}, {"z": t["z"]}, clusters=CLUSTERS, moves=moves, **FEW
    )
    p = {(c.layer, c.y): c.partial.p_corrected for c in cells}
    assert p[1, "same"] == pytest.approx(1 / 200)
    assert min(p[layer, "y"] for layer in range(LAYERS)) > 0.05
    assert all(c.partial.p_corrected >= c.partial.p for c in cells)
    assert all(c.partial.correction == f"max-T over {2 * LAYERS}" for c in cells)


def test_a_rotation_keeps_sequences_and_neighbours():
    rng = np.random.default_rng(0)
    cluster = rng.permutation(np.repeat(np.arange(5), [3, 1, 7, 4, 2]))
    sample = gather({"a": rng.normal(size=17), "b": rng.normal(size=17)}, cluster)
    for orders in rotations(sample, 50, 1):
        for order in orders:
            assert sorted(order) == list(range(17))
            assert (sample.cluster[order] == sample.cluster).all()
            for number in range(5):
                inside = np.flatnonzero(sample.cluster == number)
                place = {token: i for i, token in enumerate(inside)}
                turns = {(place[order[token]] - place[token]) % len(inside) for token in inside}
                assert len(turns) == 1


def test_tokens_without_a_value_at_some_layer_are_left_out_everywhere():
    t = columns()
    t["x"][2, 5] = math.nan
    cells = correlation_grid({"x": t["x"]}, {"y": t["y"]}, {}, clusters=CLUSTERS, **FEW)
    kept = np.arange(len(CLUSTERS)) != 5
    for c in cells:
        alone = spearman(t["x"][c.layer][kept], t["y"][c.layer][kept], clusters=CLUSTERS[kept])
        assert c.raw.n_tokens == len(CLUSTERS) - 1
        assert c.raw.estimate == pytest.approx(alone.estimate, abs=1e-12)


def test_columns_without_layers_serve_all_of_them():
    t = columns()
    once = t["z"][0]
    cells = correlation_grid({"x": t["x"]}, {"y": t["y"]}, {"once": once}, clusters=CLUSTERS, **FEW)
    alone = partial(t["x"][2], t["y"][2], {"once": once}, clusters=CLUSTERS, rank=True, n_resamples=100)
    assert cells[2].partial.estimate == pytest.approx(alone.estimate, abs=1e-12)


def test_constant_columns_say_so_and_leave_the_others_alone():
    t = columns()
    t["other"][1] = 3.0
    cells = correlation_grid({"x": t["x"], "other": t["other"]}, {"same": t["same"]}, {}, clusters=CLUSTERS, **FEW)
    found = {(c.layer, c.x): c for c in cells}
    assert math.isnan(found[1, "other"].raw.estimate)
    assert "constant" in found[1, "other"].raw.reason
    assert math.isnan(found[1, "other"].partial.p_corrected)
    assert found[1, "x"].partial.p_corrected == pytest.approx(1 / 200)


def test_a_column_that_the_confounds_explain_has_no_partial_correlation():
    t = columns()
    cells = correlation_grid({"x": t["z"]}, {"y": t["y"]}, {"z": t["z"]}, clusters=CLUSTERS, **FEW)
    assert all(math.isnan(c.partial.estimate) and "confounds explain" in c.partial.reason for c in cells)
    assert all(c.raw.estimate > 0.5 for c in cells)


def test_too_few_tokens_give_reasons():
    cells = correlation_grid({"x": np.zeros((2, 3))}, {"y": np.zeros((2, 3))}, {}, clusters=[0, 0, 1], **FEW)
    assert len(cells) == 2
    assert all("3 tokens" in c.raw.reason for c in cells)


def test_the_same_seed_gives_the_same_cells():
    t = columns()
    once, twice = (
        correlation_grid({"x": t["x"]}, {"y": t["y"]}, {}, clusters=CLUSTERS, seed=3, **FEW) for _ in range(2)
    )
    assert once == twice


def test_shapes_and_options_are_checked():
    with pytest.raises(BasinsError, match="No column has a layer axis"):
        correlation_grid({"x": [1.0, 2.0]}, {"y": [1.0, 2.0]}, {}, clusters=None)
    with pytest.raises(BasinsError, match=r"y has shape \[3\]; possible: \[2, 4\]"):
        correlation_grid({"x": np.zeros((2, 4))}, {"y": [1.0, 2.0, 3.0]}, {}, clusters=None)
    with pytest.raises(BasinsError, match="moves='jump' is not an option"):
        correlation_grid({"x": np.zeros((2, 4))}, {"y": np.zeros((2, 4))}, {}, clusters=None, moves="jump")
    with pytest.raises(BasinsError, match="at least one column each"):
        correlation_grid({}, {"y": np.zeros((2, 4))}, {}, clusters=None)


def _smooth(rng: np.random.Generator, n_sequences: int, length: int, memory: float) -> np.ndarray:
    """Tokens that remember the one before: an autoregression in each sequence, variance 1."""
    steps = rng.normal(size=(n_sequences, length))
    found = np.empty_like(steps)
    found[:, 0] = steps[:, 0]
    for i in range(1, length):
        found[:, i] = memory * found[:, i - 1] + math.sqrt(1 - memory**2) * steps[:, i]
    return found.ravel()


@pytest.mark.slow
def test_rotating_holds_its_rate_where_shuffling_does_not():
    """Nulls of 4 x 3 unrelated columns, 20 sequences of 30 tokens, each token 0.7 like the one before; alpha 0.05.

    Seen with NULLS = 400: the best of the 12 is called significant in 0.0525 by rotating and in 0.5475 by shuffling.
    """
    rng = np.random.default_rng(11)
    clusters = np.repeat(np.arange(20), 30)
    wrong = {"rotate": 0, "shuffle": 0}
    for number in range(NULLS):
        x = {f"x{i}": np.stack([_smooth(rng, 20, 30, 0.7) for _ in range(2)]) for i in range(2)}
        y = {f"y{i}": np.stack([_smooth(rng, 20, 30, 0.7) for _ in range(2)]) for i in range(3)}
        for moves in wrong:
            cells = correlation_grid(
                x, y, {}, clusters=clusters, moves=moves, n_resamples=100, n_permutations=199, seed=number
            )
            wrong[moves] += min(c.partial.p_corrected for c in cells) < 0.05
    assert wrong["rotate"] / NULLS < 0.1
    assert wrong["shuffle"] / NULLS > 0.3
