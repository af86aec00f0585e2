from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from made_scores import made_scores

from basins.errors import BasinsError
from basins.tables import extreme_tokens, in_context


@pytest.mark.parametrize("score", ["relative", "update", "raw"])
def test_the_first_of_each_side_is_the_extreme_of_its_layer(score):
    scores = made_scores(n_layers=3, batch=3, pos=30)
    frame = extreme_tokens(scores, 3, score)
    assert len(frame) == 3 * 2 * 3
    for i, layer in enumerate(scores.layers):
        values = getattr(scores, score)[i]
        values = values[values.isfinite()]
        ends = {"most": values.max(), "least": values.min()}
        for side, end in ends.items():
            found = frame[(frame["layer"] == layer) & (frame["side"] == side)]
            assert found[score].iloc[0] == pytest.approx(float(end))
            assert found[score].is_monotonic_decreasing if side == "most" else found[score].is_monotonic_increasing
            assert found["token"].is_unique


def test_floors_and_first_positions_are_left_out():
    scores = made_scores(n_layers=1, batch=1, pos=10)
    relative, few = scores.relative.clone(), scores.n_distinct.clone()
    relative[0, 0, 0], relative[0, 0, 4], relative[0, 0, 5] = 99.0, 98.0, 97.0
    few[0, 0, 0], few[0, 0, 4] = 5, 2
    frame = extreme_tokens(replace(scores, relative=relative, n_distinct=few), 1)
    assert frame["relative"].iloc[0] == 97.0
    assert (frame["position"] > 0).all()


def test_the_first_real_position_of_a_left_padded_sequence_is_left_out():
    scores = made_scores(n_layers=1, batch=1, pos=10, real_positions=[[3, 10]])
    relative = scores.relative.clone()
    relative[0, 0, 2], relative[0, 0, 3], relative[0, 0, 4] = 99.0, 98.0, 97.0
    frame = extreme_tokens(replace(scores, relative=relative), 1)
    assert frame["position"].iloc[0] == 4
    assert in_context(scores, 0, 4)[0] == scores.token_strings[0][3]


def test_fewer_tokens_than_asked_for_are_all_there_is():
    assert len(extreme_tokens(made_scores(n_layers=1, batch=1, pos=4), 50)) == 2 * 3


def test_without_strings_context_is_ids_and_without_ids_positions():
    assert in_context(made_scores(strings=False), 0, 2) == (" 0 1", " 2", " 3 4 5 6")
    assert in_context(made_scores(ids=False), 1, 8) == (" 0 1 2 3 4 5 6 7", " 8", "")
    assert len(extreme_tokens(made_scores(ids=False, n_layers=1), 2)) == 4


def test_bad_input_is_explained():
    with pytest.raises(BasinsError, match=r"n=0 lists no token\. Possible: 1 or more"):
        extreme_tokens(made_scores(), 0)
    with pytest.raises(BasinsError, match=r"score='density' is not an option"):
        extreme_tokens(made_scores(), score="density")
    with pytest.raises(BasinsError, match=r"layer=7 was not scored"):
        extreme_tokens(made_scores(), layers=[7])


def test_a_scored_layer_may_be_all_floors():
    scores = made_scores()
    assert len(extreme_tokens(replace(scores, n_distinct=torch.ones_like(scores.n_distinct)))) == 0
