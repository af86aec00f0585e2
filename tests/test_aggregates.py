from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from made_scores import made_scores

from basins.aggregates import norm_aggregates, score_aggregates, wide
from basins.dimension import local_mle, log_ratios
from basins.errors import BasinsError


def by_hand(values: list[float], part: str, share: float) -> float:
    if not values:
        return math.nan
    values = sorted(values, reverse=part == "highest")
    return float(np.mean(values[: len(values) if part == "mean" else max(1, int(len(values) * share))]))


def crowded(**options):
    """Scores with unscored tokens, duplicates and sequences of 13 positions, the second with almost nothing left."""
    scores = made_scores(n_layers=2, batch=3, pos=13, **options)
    n_distinct = scores.n_distinct.clone()
    n_distinct[0, 0, 4:7] = 2
    n_distinct[1, 1] = 1
    return replace(scores, n_distinct=n_distinct)


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_every_score_agrees_with_a_loop(share):
    scores = crowded()
    where = torch.zeros(3, 13, dtype=torch.bool)
    where[:, 3:12] = True
    matrix = wide(score_aggregates(scores, where, share))
    both = {"": scores, "lookup_": scores.lookup}
    shown = {f"{p}{n}": getattr(s, n) for p, s in both.items() for n in ("raw", "relative", "update")}
    for name, values in (shown | {"density": -(scores.var_in + 1e-10).log()}).items():
        for layer in range(2):
            for row in range(3):
                kept = [p for p in range(3, 12) if scores.n_distinct[layer, row, p] >= 3]
                for part in ("mean", "lowest", "highest"):
                    wanted = by_hand([float(values[layer, row, p]) for p in kept], part, share)
                    found = matrix.loc[row, f"{name}_{part}.L{layer}"]
                    assert found == pytest.approx(wanted, rel=1e-5, nan_ok=True), (name, part)
    kept = [p for p in range(3, 12) if not 4 <= p < 7]
    near = scores.neighbor_distances[0, 0, kept]
    assert matrix.loc[0, "neighbor_distance.L0"] == pytest.approx(-float(near.mean()), rel=1e-5)
    assert matrix.loc[0, "mle_dimension.L0"] == pytest.approx(-float(local_mle(near).mean()), rel=1e-5)
    ratios = log_ratios(near)
    assert matrix.loc[0, "two_nn.L0"] == pytest.approx(-(len(kept) - 1) / float(ratios.sum()), rel=1e-5)


def test_tokens_left_out_are_counted():
    frame = score_aggregates(crowded()).set_index(["measure", "sequence", "layer"])
    counts = frame.loc["relative_mean"][["n_tokens", "left_out"]]
    # Position 0 is not scored anywhere; sequence 1 ends one earlier.
    assert counts.loc[(0, 0)].tolist() == [9, 4]
    assert counts.loc[(0, 1)].tolist() == [12, 1]
    assert counts.loc[(1, 0)].tolist() == [11, 1]
    assert counts.loc[(1, 1)].tolist() == [0, 12]
    assert math.isnan(frame.loc[("relative_mean", 1, 1), "value"])
    assert (frame.groupby(["sequence", "layer"])["n_tokens"].nunique() == 1).all()


def test_looked_up_scores_alone_keep_their_name():
    scores = made_scores(lookup=True)
    alone = wide(score_aggregates(replace(scores.lookup, settings=scores.settings | {"method": "lookup"})))
    both = wide(score_aggregates(scores))
    assert not [name for name in alone if name.startswith(("raw", "relative", "update"))]
    for name in alone:
        if name.startswith("lookup"):
            assert alone[name].tolist() == both[name].tolist()


def test_expected_directions():
    """Nearer, denser and flatter neighbourhoods are higher; the rows say which layer."""
    scores = made_scores()
    nearer = replace(scores, neighbor_distances=scores.neighbor_distances / 2, var_in=scores.var_in / 4)
    one, two = wide(score_aggregates(scores)), wide(score_aggregates(nearer))
    for name in ("neighbor_distance.L1", "density_mean.L1"):
        assert (two[name] > one[name]).all()
    assert one["two_nn.L0"].tolist() == pytest.approx(two["two_nn.L0"].tolist(), rel=1e-5)
    spread = replace(scores, neighbor_distances=scores.neighbor_distances.double() ** 0.5)  # twice the dimension
    three = wide(score_aggregates(spread))
    for name in ("two_nn.L0", "mle_dimension.L2"):
        assert three[name].tolist() == pytest.approx((2 * one[name]).tolist(), rel=1e-5)


def test_cosine_distances_are_turned_into_chords():
    scores = made_scores(lookup=False)
    chord = scores.neighbor_distances
    cosine = made_scores(lookup=False, metric="cosine")
    cosine = replace(cosine, neighbor_distances=chord.square() / 2)
    one, two = wide(score_aggregates(scores)), wide(score_aggregates(cosine))
    for name in ("two_nn.L0", "mle_dimension.L0"):
        assert one[name].tolist() == pytest.approx(two[name].tolist(), rel=1e-4)


def test_bad_input_says_what_is_possible():
    scores = made_scores()
    with pytest.raises(BasinsError, match=r"where is torch.int64 of shape \[2, 10\]"):
        score_aggregates(scores, torch.ones(2, 10, dtype=torch.long))
    frame = score_aggregates(scores)
    with pytest.raises(BasinsError, match=r"raw_mean.L0 of sequence 0 stands twice"):
        wide(frame, frame)
    with pytest.raises(BasinsError, match="2 layers were named and state_norm holds 3"):
        norm_aggregates(torch.ones(3, 2, 4), [0, 1])
