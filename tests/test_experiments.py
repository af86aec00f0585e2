"""What experiments share: rows and clusters, joined columns, grades."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

pytest.importorskip("scipy.stats")

from basins import BasinScorer
from basins.errors import BasinsError
from basins.experiments.frames import where
from basins.experiments.importance_words import verdicts
from basins.experiments.primary import PRIMARY, SCORER
from basins.experiments.sequences import sequences
from basins.experiments.token_columns import CONFOUNDS, KEY, align, column_frame, join, score_frame, token_facts

BOOK = [
    f"The {animal} walked down the street and saw the old house of number {i}."
    for i, animal in enumerate(["dog", "cat", "horse", "cow", "wolf", "fox", "bear", "hen"])
]


@pytest.fixture(scope="module")
def rows(pocket_mini):
    return sequences(pocket_mini, BOOK, 128, None)


def test_rows_of_one_text_belong_together_where_texts_are_many(pocket_mini):
    texts = [" ".join([sentence] * 3) for sentence in BOOK * 3]
    found = sequences(pocket_mini, texts, 20, None)
    assert found.unit == "text"
    assert len(found.batch) > len(texts)
    assert found.cluster.tolist() == list(found.batch.text_ids)
    few = sequences(pocket_mini, texts[:3], 20, None)
    assert few.unit == "window"
    assert few.cluster.tolist() == list(range(len(few.batch)))


def test_too_few_rows_are_refused(pocket_mini):
    with pytest.raises(BasinsError, match="2 sequences are too few"):
        sequences(pocket_mini, BOOK[:2], 128, None)


def test_repeated_prefixes_are_those_that_an_earlier_row_starts_with(rows):
    ids = rows.tokens.tolist()
    for row in range(len(ids)):
        for position in range(int(rows.mask[row].sum())):
            prefix = ids[row][: position + 1]
            wanted = any(ids[earlier][: position + 1] == prefix for earlier in range(row))
            assert bool(rows.repeated[row, position]) == wanted, (row, position)
    assert bool(rows.repeated[1:, 0].all())


def test_halves_are_disjoint_and_share_no_text(pocket_mini):
    texts = [" ".join([sentence] * 3) for sentence in BOOK * 3]
    found = sequences(pocket_mini, texts, 20, None)
    first, second = found.halves(0)
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(len(found.batch)))
    assert not set(found.cluster[first].tolist()) & set(found.cluster[second].tolist())
    assert found.halves(0)[0].equal(first)
    assert not found.halves(1)[0].equal(first)


def test_a_sample_spreads_over_the_texts(pocket_mini):
    texts = [" ".join([sentence] * 3) for sentence in BOOK * 3]
    found = sequences(pocket_mini, texts, 20, None)
    sample = found.sample(24, 0)
    assert len(sample) == len(set(found.cluster[sample].tolist())) == 24
    assert found.sample(10_000, 0).tolist() == list(range(len(found.batch)))


def test_columns_are_joined_on_layer_sequence_and_position(pocket_mini, rows):
    scores = BasinScorer(pocket_mini, **(SCORER | {"k": 4})).score_texts(rows.batch, layers=[1, 3])
    frame = score_frame(scores, token_facts(pocket_mini, rows, scores.layers))
    assert len(frame) == 2 * int(rows.mask.sum())
    some = torch.tensor([5, 2])
    values = torch.arange(2.0 * 2 * rows.tokens.shape[1]).view(2, 2, -1)
    joined = join(frame, column_frame(values, "mine", (3, 1), some))
    for layer, sequence, position in ((3, 5, 0), (3, 2, 4), (1, 2, 7)):
        got = where(joined, layer=layer, sequence=sequence, position=position)["mine"].item()
        assert got == float(values[(3, 1).index(layer), some.tolist().index(sequence), position])
    assert where(joined, sequence=0)["mine"].isna().all()
    one = where(frame, layer=3, sequence=4, position=6).iloc[0]
    assert one["relative"] == pytest.approx(float(scores.relative[1, 4, 6]))
    _, cache = pocket_mini.run_with_cache(rows.tokens, attention_mask=rows.mask)
    norm = cache["blocks.3.hook_resid_pre"][4, 6].norm()
    assert one["log_norm"] == pytest.approx(float(norm.log()), abs=1e-4)
    count = int(((rows.tokens == rows.tokens[4, 6]) & rows.mask.bool()).sum())
    assert one["log_frequency"] == pytest.approx(np.log(count))
    assert not frame["used"][frame["position"] == 0].any()
    assert not frame["used"][rows.repeated.numpy()[frame["sequence"], frame["position"]]].any()


def made_frame(n: int = 40, layers: int = 3) -> pd.DataFrame:
    grid = [(layer, i // 10, i % 10) for layer in range(layers) for i in range(n)]
    frame = pd.DataFrame(grid, columns=pd.Index(KEY)).assign(used=True)
    frame["cluster"] = frame["sequence"]
    rng = np.random.default_rng(0)
    return frame.assign(a=rng.normal(size=len(frame)), b=rng.normal(size=len(frame)))


def test_aligned_tokens_have_a_value_everywhere():
    frame = made_frame()
    frame.loc[(frame["layer"] == 1) & (frame["position"] == 3), "a"] = np.nan
    frame.loc[(frame["layer"] == 2) & (frame["sequence"] == 2), "used"] = False
    found = align(frame, ["a", "b", "position"])
    assert found.layers == (0, 1, 2)
    assert found.columns["a"].shape == (3, 27)
    assert set(found.columns["position"][0]) == set(range(10)) - {3}
    assert 2 not in found.cluster
    kept = where(frame, layer=1, sequence=3, position=7)["b"].item()
    place = int(np.flatnonzero((found.cluster == 3) & (found.columns["position"][0] == 7))[0])
    assert found.columns["b"][1, place] == kept


def test_a_layer_with_few_values_does_not_cost_the_others_their_tokens():
    frame = made_frame()
    frame.loc[(frame["layer"] == 0) & (frame["position"] > 2), "b"] = np.nan
    found = align(frame, ["a", "b"])
    assert found.layers == (1, 2)
    assert found.left_out == (0,)
    assert found.columns["a"].shape == (2, 40)


def made_correlations(**given: tuple[float, float, float, float]) -> pd.DataFrame:
    """model -> (partial, corrected p, p in half 1, p in half 2) at layers 0 (nothing) and 1 (this)."""
    rows = []
    for model, (r, p, half_1, half_2) in given.items():
        for layer in (0, 1):
            for part, value, own in (
                ("all", r, p),
                ("half 1", r, half_1),
                ("half 2", abs(r) * np.sign(half_2), abs(half_2)),
            ):
                row = {"model": model, "part": part, "layer": layer, "score": PRIMARY, "method": "gradient"}
                row |= {
                    "partial": value if layer else 0.01,
                    "p_corrected": p if layer else 0.9,
                    "p": own if layer else 0.9,
                }
                rows.append(row | {"partial_low": value - 0.1, "partial_high": value + 0.1})
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("first", "second", "grade"),
    [
        ((-0.5, 0.001, 0.01, -0.01), (-0.5, 0.001, 0.01, -0.01), "strong"),
        ((-0.5, 0.001, 0.01, -0.01), (-0.3, 0.001, 0.01, -0.01), "moderate"),
        ((-0.5, 0.001, 0.01, -0.01), (0.5, 0.001, 0.01, 0.01), "moderate"),
        ((-0.5, 0.001, 0.01, -0.01), None, "moderate"),
        ((-0.5, 0.02, 0.01, -0.01), (-0.5, 0.001, 0.01, -0.01), "moderate"),
        ((-0.3, 0.001, 0.01, -0.01), (-0.5, 0.001, 0.01, -0.01), "moderate"),
        ((0.3, 0.04, 0.01, 0.2), None, "exploratory"),
        ((0.3, 0.04, 0.01, -0.01), None, "exploratory"),
        ((0.15, 0.001, 0.01, 0.01), None, "exploratory"),
        ((0.6, 0.06, 0.01, 0.01), (0.6, 0.001, 0.01, 0.01), "none"),
        ((float("nan"), float("nan"), 0.5, 0.5), None, "none"),
    ],
)
def test_grades_follow_the_thresholds_stated(first, second, grade):
    given = {"one": first} | ({"two": second} if second else {})
    judged = verdicts(made_correlations(**given), ["gradient"], list(given))
    assert judged["grade"].tolist() == [grade]
    if grade != "none":
        assert judged["layer"].tolist() == [1]


def test_confounds_are_columns_of_the_frame(pocket_mini, rows):
    scores = BasinScorer(pocket_mini, **(SCORER | {"k": 4})).score_texts(rows.batch, layers=[2])
    assert set(CONFOUNDS) <= set(score_frame(scores, token_facts(pocket_mini, rows, scores.layers)).columns)
