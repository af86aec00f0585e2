"""The layers experiment end to end, small: its tables against loops, its words, its folder, its command."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("scipy.stats")

from scipy.spatial.distance import cdist
from scipy.stats import spearmanr

from basins.cli import app
from basins.errors import BasinsError
from basins.experiments import layers
from basins.experiments.frames import where
from basins.experiments.layers_tables import dimensions, with_dimension
from basins.experiments.layers_words import BY_DENSITY, HYPOTHESES, IN_NULL, NOT_REPLICATED, verdicts
from basins.experiments.primary import GRADES, SCORES
from basins.experiments.score_store import ScoreStore
from basins.experiments.sequences import sequences
from basins.experiments.token_columns import score_frame, token_facts
from basins.scorer import BasinScorer

SMALL: dict[str, Any] = {
    "second_model": None, "limit": 3, "max_length": 40, "sample": 12, "null_rows": 5, "k": 5, "n_resamples": 100,
    "n_permutations": 200,
}  # fmt: skip


@pytest.fixture(scope="module")
def store():
    return ScoreStore()


@pytest.fixture(scope="module")
def found(pocket_mini, store):
    return layers(pocket_mini, **SMALL, store=store)


def tokens_of(found) -> Any:
    return next(iter(found.tokens.values()))


def test_every_table_has_every_layer_and_names_its_model(found):
    name = next(iter(found.scores))
    for table in ("profile", "correlations", "dimension", "shares", "local", "sinks", "differences"):
        rows = where(getattr(found, table), model=name)
        assert set(rows["layer"]) == {0, 1, 2, 3}, table
    assert set(where(found.overlap, comparison="next layer", model=name)["layer"]) == {0, 1, 2}
    assert {"random weights", name} == set(found.profile["model"]) == set(found.trends["model"])
    assert set(found.correlations["score"]) == set(SCORES)
    assert set(found.curve["line"]) == {"re-run", "lookup"}
    assert sorted(found.verdicts["name"]) == sorted([*HYPOTHESES, "raw score repeats density"])
    assert set(found.verdicts["grade"]) <= set(GRADES)
    assert set(found.verdicts["second_model"]) == {"not run"}
    assert "strong" not in set(found.verdicts["grade"])
    assert "There was no second model" in found.reading


def test_profiles_and_overlaps_can_be_had_from_the_table_of_tokens(found):
    model, scores = next(iter(found.scores.items()))
    frame = where(tokens_of(found), layer=2, used=True)
    for quantity, column in (("relative", "relative"), ("V_in", "var_in"), ("raw, lookup", "raw, lookup")):
        row = where(found.profile, model=model, layer=2, quantity=quantity).iloc[0]
        values = frame[column].to_numpy()
        assert row["mean"] == pytest.approx(values.mean(), rel=1e-6)
        assert row["median"] == pytest.approx(np.median(values))
        assert row["sd"] == pytest.approx(values.std(), rel=1e-6)
        assert row["iqr"] == pytest.approx(np.subtract(*np.quantile(values, [0.75, 0.25])))
        assert row["low"] < row["mean"] < row["high"]
    added = where(found.profile, model=model, layer=2, quantity="own contexts add").iloc[0]["mean"]
    log_own, log_rerun = np.log(scores.lookup.var_out[2].numpy()), np.log(scores.var_out[2].numpy())
    place = frame["sequence"].to_numpy(), frame["position"].to_numpy()
    assert added == pytest.approx(float((log_own - log_rerun)[place].mean()), abs=1e-5)
    row = where(found.overlap, model=model, layer=2, comparison="relative").iloc[0]
    wanted: Any = spearmanr(frame["relative"], frame["relative, lookup"])
    assert row["estimate"] == pytest.approx(wanted.statistic)
    ids = scores.neighbor_ids.numpy()
    kept = [len(set(ids[2][a, b]) & set(ids[3][a, b])) / 5 for a, b in zip(*place, strict=True)]
    row = where(found.overlap, model=model, layer=2, comparison="next layer").iloc[0]
    assert row["estimate"] == pytest.approx(np.mean(kept))
    assert row["chance"] < 0.1 < row["estimate"]


def test_shares_sum_to_1_at_every_layer_and_radii_are_compared(found):
    assert found.shares.groupby("layer")["share"].sum().to_numpy() == pytest.approx(1)
    smallest = where(found.local, shrink=0.01)
    assert (smallest["rho"] > 0.999).all()
    assert (smallest["change"] == 0).all()
    assert not smallest["local"].any()


@pytest.fixture(scope="module")
def scored(pocket_mini):
    """(states of layer 2, scores, frame): all tokens are candidates, as other packages have it, but the first of each
    row, which are equal: to us equal states are one."""
    texts = sequences(pocket_mini, None, 40, 2)
    scores = BasinScorer(pocket_mini, k=5, exclude_first=4).score_tokens(texts.tokens, texts.mask, layers=2)
    _, cache = pocket_mini.run_with_cache(texts.tokens, attention_mask=texts.mask)
    frame = score_frame(scores, token_facts(pocket_mini, texts, (2,)))
    frame["used"] = frame["position"] >= 4
    kept = texts.mask.bool()
    kept[:, :4] = False
    assert not (texts.repeated & kept).any()
    return cache["blocks.2.hook_resid_pre"][kept].detach().numpy(), scores, frame


def test_dimension_agrees_with_scikit_dimension(scored):
    skdim = pytest.importorskip("skdim", reason="needs: pip install scikit-dimension")
    states, scores, frame = scored
    table = dimensions(scores, frame, 100, 0).set_index("estimator")
    assert table.loc["two-NN", "dimension"] == pytest.approx(skdim.id.TwoNN().fit(states).dimension_, rel=1e-3)
    harmonic = skdim.id.MLE().fit(states, n_neighbors=5).dimension_
    assert table.loc["MLE", "dimension"] == pytest.approx(harmonic, rel=1e-3)


def test_dimension_agrees_with_a_loop(scored):
    states, scores, frame = scored
    gaps = np.sort(cdist(states.astype(float), states.astype(float)), 1)
    ratios = np.sort(np.log(gaps[:, 2] / gaps[:, 1]))
    kept = int(0.9 * len(ratios))
    x, y = ratios[:kept], -np.log(1 - np.arange(1, kept + 1) / len(ratios))
    table = dimensions(scores, frame, 100, 0).set_index("estimator")
    assert table.loc["two-NN", "dimension"] == pytest.approx((x @ y) / (x @ x), rel=1e-3)
    assert table.loc["two-NN", "low"] < table.loc["two-NN", "dimension"] < table.loc["two-NN", "high"]
    likely = table.loc["two-NN, likelihood", "dimension"]
    assert likely == pytest.approx((len(ratios) - 1) / ratios.sum(), rel=1e-3)
    local = with_dimension(frame.drop(columns="two_nn", errors="ignore"), scores)["two_nn"]
    assert local[frame["used"]].notna().all()


@pytest.mark.slow
def test_scores_are_computed_once_and_the_same_seed_gives_the_same_tables(pocket_mini, found, store):
    before = store.computed
    again = layers(pocket_mini, **SMALL, store=store)
    assert store.computed == before == 2
    for table in ("profile", "correlations", "dimension", "overlap", "shares", "local", "trends", "differences"):
        pd.testing.assert_frame_equal(getattr(found, table), getattr(again, table), check_exact=True)
    assert found.reading == again.reading


def test_the_folder_holds_everything(found, tmp_path):
    folder = found.save(tmp_path / "run", command="basins experiment layers")
    for figure in ("profiles", "density", "geometry", "shares", "local_limit", "sinks"):
        assert (folder / "figures" / f"{figure}.png").stat().st_size > 5000
    for table in ("verdicts", "profile", "shares", "local", "sinks", "curve"):
        assert len(pd.read_parquet(folder / "tables" / f"{table}.parquet")) == len(getattr(found, table))
    page = (folder / "figures" / "tokens.html").read_text(encoding="utf-8")
    assert "layer 1 beside layer 3" in page
    assert "http" not in page.replace("http-equiv", "")
    words = (folder / "verdict.md").read_text(encoding="utf-8")
    assert found.reading in words
    assert "random weights" in words
    assert json.loads((folder / "run.json").read_text())["curve"] == "mean relative score (nats)"


def made(null_mean: float = 0.01, second_r: float = 0.9, left: float = 0.6) -> dict[str, pd.DataFrame]:
    """Tables in which depth and contexts show much, in two models."""
    trends, differences, correlations, profile = [], [], [], []
    for model, r, mean in (("a", 0.7, 0.5), ("b", second_r, 0.4), ("random weights", 0.05, null_mean)):
        common = {"model": model, "low": r - 0.05, "high": r + 0.05, "p": 0.001, "p_corrected": 0.001}
        trends.append(common | {"quantity": "relative", "r": r})
        trends.append(common | {"quantity": "relative, density out", "r": left if model == "a" else r})
        for layer in (0, 1, 2):
            differences.append(
                common | {"layer": layer, "r": 0.8 if second_r > 0 or model != "b" else -0.8, "mean": mean}
            )
            low = {"rho": 0.05, "rho_low": 0.0, "rho_high": 0.1, "partial": 0.05, "with": "density", "layer": layer}
            correlations += [common | low | {"score": "relative"}, common | low | {"score": "raw", "rho": 0.98}]
            profile.append({"model": model, "layer": layer, "quantity": "relative", "mean": 0.1})
    tables = {"trends": trends, "differences": differences, "correlations": correlations, "profile": profile}
    return {name: pd.DataFrame(rows) for name, rows in tables.items()}


def graded(**changes: float) -> Any:
    return verdicts(made(**changes), ["a", "b"], "random weights").set_index("name")


def test_grades_follow_the_thresholds():
    judged = graded()
    assert judged.loc[HYPOTHESES[0], ["grade", "second_model", "flags"]].tolist() == ["strong", "agrees", ""]
    assert judged.loc[HYPOTHESES[2], "grade"] == "strong"
    assert judged.loc[HYPOTHESES[1], "grade"] == "exploratory"  # small
    raw = judged.loc["raw score repeats density"]
    assert raw["grade"] == "none"
    assert raw["flags"] == f"{BY_DENSITY}; {IN_NULL}"
    assert raw["r"] == 0.98


def test_what_speaks_against_a_finding_lowers_its_grade():
    assert graded(null_mean=0.3).loc[HYPOTHESES[2], ["grade", "flags"]].tolist() == ["exploratory", IN_NULL]
    assert graded(left=0.1).loc[HYPOTHESES[0], ["grade", "flags"]].tolist() == ["exploratory", BY_DENSITY]
    other = graded(second_r=-0.6).loc[HYPOTHESES[0]]
    assert other[["grade", "second_model", "flags"]].tolist() == ["exploratory", "differs", NOT_REPLICATED]
    weak = made()
    weak["trends"]["p"] = 0.03  # three hypotheses
    assert verdicts(weak, ["a", "b"], "random weights").set_index("name").loc[HYPOTHESES[0], "grade"] == "none"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_of_a_model_that_has_learnt_nothing_nothing_is_claimed(pocket_mini, seed):
    from basins.random_weights import random_weights

    settings = SMALL | {"null_rows": 16, "limit": 12}
    found = layers(random_weights(pocket_mini, 10 + seed), **settings, seed=seed)
    assert found.grade in ("none", "exploratory")
    for row in found.verdicts.to_dict("records"):
        if row["grade"] == "exploratory":
            assert row["flags"] or abs(row["r"]) <= 0.2, row


def test_what_cannot_be_meant_is_said_before_anything_runs(pocket_mini):
    with pytest.raises(BasinsError, match="sample=2 is too small"):
        layers(pocket_mini, sample=2)
    with pytest.raises(BasinsError, match="null_rows=-1 is too small"):
        layers(pocket_mini, null_rows=-1)


def test_the_command_without_the_untrained_model(tmp_path):
    options = "--model pocket-mini --limit 5 --layers 1-2 --max-length 32 --sample 8 --null-rows 0 -k 4"
    rest = "--n-resamples 100 --n-permutations 100 --no-pictures"
    arguments = ["experiment", "layers", *options.split(), *rest.split(), "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    printed = " ".join(result.output.split())
    assert "Stated before the run: strong: |r| > 0.4" in printed
    assert "Hypotheses" in printed
    table = pd.read_parquet(tmp_path / "run" / "tables" / "profile.parquet")
    assert set(table["layer"]) == {1, 2}
    assert "random weights" not in set(table["model"])
    assert torch.is_grad_enabled()
