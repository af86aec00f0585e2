"""The robustness experiment end to end, small; findings that are planted, absent, or made by a null."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("scipy.stats")
pytest.importorskip("statsmodels.stats.multitest")

from basins.cli import app
from basins.errors import BasinsError
from basins.experiments import robustness
from basins.experiments.frames import where
from basins.experiments.primary import PRIMARY, SCORER
from basins.experiments.robustness_subject import load_measure, read_measure, subject
from basins.experiments.robustness_variations import settings_of, vary, with_eps
from basins.experiments.score_store import ScoreStore
from basins.experiments.sequences import sequences
from basins.experiments.token_columns import CONFOUNDS, KEY
from basins.experiments.under_nulls import ALL_NULLS, RANDOM, TRAINED
from basins.nulls import ISOTROPIC, null_scores
from basins.random_weights import random_weights
from basins.scorer import BasinScorer

SMALL = {
    "second_model": None, "limit": 10, "max_length": 24, "sample_rows": 10, "weight_draws": 2, "tested_tokens": 3,
    "n_draws": 39, "k": 4, "n_resamples": 100, "n_permutations": 200,
}  # fmt: skip
TABLES = ("effects", "agreement", "nulls", "null_effects", "spreads", "token_tests", "curve", "verdicts")


@pytest.fixture(scope="module")
def store():
    return ScoreStore()


@pytest.fixture(scope="module")
def found(pocket_mini, store):
    return robustness(pocket_mini, **SMALL, layer=2, store=store)


def own_scores(model, **settings):
    """The scores that the experiment takes as its default."""
    rows = sequences(model, None, SMALL["max_length"], SMALL["limit"])
    pick = rows.sample(SMALL["sample_rows"], 0)
    scorer = BasinScorer(model, **(SCORER | {"k": SMALL["k"], "seed": 0} | settings))
    return rows, pick, scorer.score_tokens(rows.tokens[pick], rows.mask[pick])


def column(scores, pick, layer, name="made") -> pd.DataFrame:
    """Relative scores of one layer as a measure."""
    frame = scores.to_frame()
    frame["sequence"] = pick.numpy()[frame["sequence"]]
    return where(frame, layer=layer)[[*KEY[1:], "relative"]].rename(columns={"relative": name}).dropna()


def test_every_variation_and_null_has_its_rows(found):
    name = next(iter(found.settings["models"]))
    wanted = settings_of(SCORER | {"k": 4, "metric": "euclidean", "normalize": False, "include_self": False,
                                   "index": "auto", "dtype": None, "precision": "float32"})  # fmt: skip
    varied = set(found.effects["variation"])
    assert {"k = 5", "k = 15", "k = 50", "cosine distance", "first 4 left out", "approximate index"} <= set(wanted)
    assert set(wanted) <= varied
    assert {"default", "eps = 1e-06", "looked up, not re-run", "half 1 of the text", "density left in"} <= varied
    assert "neighbours: cross_sequence" not in varied  # what the default has is no variation
    assert set(found.nulls["null"]) == set(ALL_NULLS)
    assert set(found.spreads["null"]) == {TRAINED, *ALL_NULLS}
    assert set(where(found.null_effects, null=RANDOM)["draw"]) == {0, 1}
    assert set(found.curve["line"]) == {"relative", *ALL_NULLS}
    assert set(found.token_tests["layer"]) == set(found.settings["varied_layers"]) == {1, 2, 3}
    assert found.settings["layer"] == 2
    assert name in found.tokens
    (row,) = found.verdicts.to_dict("records")
    default = where(found.effects, model=name, variation="default", layer=2, score=PRIMARY).iloc[0]
    assert (row["r"], row["low"], row["p_corrected"]) == (default["effect"], default["low"], default["p_corrected"])
    assert found.grade == row["grade"]
    assert row["second_model"] == "not run"


def test_agreement_and_effect_can_be_had_from_scores_by_hand(found, pocket_mini):
    """Against scores made here, ranks and least squares of NumPy."""
    from scipy.stats import rankdata, spearmanr

    _, pick, default = own_scores(pocket_mini)
    _, _, cosine = own_scores(pocket_mini, metric="cosine")
    frame = where(next(iter(found.tokens.values())), layer=2, used=True)
    at = [dict(zip(pick.tolist(), range(len(pick)), strict=True))[row] for row in frame["sequence"]], frame["position"]
    ours = [scores.relative[2].numpy()[at] for scores in (default, cosine)]
    both = np.isfinite(ours[1])
    row = where(found.agreement, variation="cosine distance", layer=2).iloc[0]
    assert row["relative"] == pytest.approx(spearmanr(ours[0][both], ours[1][both]).statistic, abs=1e-9)
    effect = where(found.effects, variation="density left in", layer=2, score=PRIMARY).iloc[0]
    given = [name for name in CONFOUNDS if name not in ("loss", "density")]
    ranks = rankdata(frame[["relative", "loss", *given]].to_numpy(), axis=0)
    ranks -= ranks.mean(0)
    left = ranks[:, :2] - ranks[:, 2:] @ np.linalg.lstsq(ranks[:, 2:], ranks[:, :2], rcond=None)[0]
    assert effect["n_tokens"] == len(frame)
    assert effect["effect"] == pytest.approx(np.corrcoef(left.T)[0, 1], abs=1e-9)


def test_another_eps_is_what_scoring_with_it_gives(pocket_mini):
    _, _, default = own_scores(pocket_mini)
    _, _, other = own_scores(pocket_mini, eps=1.0)
    changed = with_eps(default, 1.0)
    for name in ("values", "relative", "update", "density"):
        torch.testing.assert_close(getattr(changed, name), getattr(other, name), equal_nan=True)


def test_a_planted_finding_is_kept_by_settings_and_not_shown_by_random_weights(pocket_mini, store):
    _, pick, scores = own_scores(pocket_mini)
    made = column(scores, pick, 2)
    made["made"] += 0.3 * np.random.default_rng(0).normal(size=len(made)) * made["made"].std()
    found = robustness(pocket_mini, **SMALL, measure=made, store=store)
    (row,) = found.verdicts.to_dict("records")
    assert found.settings["layer"] == row["layer"] == 2
    assert found.settings["layer_chosen"]
    assert row["r"] > 0.4
    assert row["halves"]
    assert row["grade"] in ("moderate", "exploratory")
    assert not where(found.nulls, null=RANDOM)["shows"].iloc[0]
    assert "distances in float64" in set(found.effects["variation"])
    effect = where(found.effects, layer=2, score=PRIMARY).set_index("variation")["effect"]
    assert effect["distances in float64"] == pytest.approx(effect["default"], abs=1e-3)


def test_what_a_null_gives_is_an_artefact_with_its_name(pocket_mini, store):
    """A measure made half of the scores and half of what they are with displacements in all directions."""
    rows, pick, scores = own_scores(pocket_mini)
    tokens, mask = rows.tokens[pick], rows.mask[pick]
    null = null_scores(pocket_mini, tokens, mask, scores, seed=0)[ISOTROPIC]
    made, other = column(scores, pick, 2), column(null, pick, 2)
    made["made"] = made["made"].rank() + other["made"].rank()
    found = robustness(pocket_mini, **SMALL, measure=made, layer=2, store=store)
    (row,) = found.verdicts.to_dict("records")
    assert row["r"] > 0.4
    assert where(found.nulls, null=ISOTROPIC)["shows"].all()
    assert not where(found.nulls, null=RANDOM)["shows"].any()
    assert ISOTROPIC in row["nulls_that_show_it"]
    assert "a null shows it too" in row["flags"]
    assert "artefact" in found.reading
    assert row["grade"] == "exploratory"


@pytest.mark.slow
def test_a_measure_of_noise_is_no_finding(pocket_mini, store):
    _, pick, scores = own_scores(pocket_mini)
    made = column(scores, pick, 2)
    made["made"] = np.random.default_rng(1).normal(size=len(made))
    found = robustness(pocket_mini, **SMALL, measure=made, store=store)
    assert found.grade == "none"
    assert "nothing survives correction" in found.verdicts["flags"].iloc[0]
    assert "no finding to defend" in found.reading


def test_the_folder_holds_everything(found, tmp_path):
    folder = found.save(tmp_path / "run")
    for table in TABLES:
        pd.testing.assert_frame_equal(pd.read_parquet(folder / "tables" / f"{table}.parquet"), getattr(found, table))
    for figure in ("variations", "nulls", "token_tests"):
        assert (folder / "figures" / f"{figure}.png").stat().st_size > 10_000
    assert "relative score" in (folder / "figures" / "tokens.html").read_text(encoding="utf-8")
    about = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert about["measure"] == "loss"
    assert "A null shows the finding too" in (folder / "verdict.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_same_seed_gives_the_same_tables_and_the_model_is_left_alone(pocket_mini, found, untouched):
    with untouched(pocket_mini):
        again = robustness(pocket_mini, **SMALL, layer=2)
    for table in TABLES:
        pd.testing.assert_frame_equal(getattr(found, table), getattr(again, table), check_exact=True)
    assert found.reading == again.reading


def test_moved_tokens_take_their_facts_along(pocket_mini, store):
    rows = sequences(pocket_mini, None, 24, 6)
    pick = torch.tensor([1, 4])
    of = subject(pocket_mini, rows, pick, (0, 2), read_measure("loss"), SCORER | {"k": 3}, {"seed": 0}, store)
    order = torch.arange(rows.tokens.shape[1]).repeat(2, 1)
    order[0, 3], order[0, 5] = 5, 3
    moved, facts = of.moved(order), of.facts.set_index(KEY)
    assert set(moved["sequence"]) == {1, 4}
    for row in moved.to_dict("records"):
        source = {3: 5, 5: 3}.get(row["position"], row["position"]) if row["sequence"] == 1 else row["position"]
        there = facts.loc[(row["layer"], row["sequence"], source)]
        here = facts.loc[(row["layer"], row["sequence"], row["position"])]
        assert row["log_frequency"] == there["log_frequency"]
        assert row["loss"] == there["loss"] or (np.isnan(row["loss"]) and np.isnan(there["loss"]))
        assert row["position_bend"] == here["position_bend"]


def test_what_cannot_be_run_stays_as_a_row_with_its_reason(pocket_mini, store):
    rows = sequences(pocket_mini, None, 12, 6)
    statistics = {"n_resamples": 100, "n_permutations": 100, "seed": 0}
    of = subject(pocket_mini, rows, torch.arange(5), (1,), read_measure("loss"), SCORER | {"k": 3}, statistics, store)
    agreement, effects = vary(of, of.score(), (1,))
    assert set(effects["variation"]) == set(agreement["variation"])
    rows = where(effects, variation="k = 50", score=PRIMARY)
    assert rows["effect"].isna().all()
    assert "no token has 50 neighbours" in rows["reason"].iloc[0]
    assert where(agreement, variation="k = 50")["n_tokens"].tolist() == [0]
    assert where(effects, variation="k = 10", score=PRIMARY)["effect"].notna().all()


@pytest.mark.parametrize(
    ("measure", "match"),
    [
        ("surprise", "measure='surprise' is not"),
        (pd.DataFrame({"sequence": [0], "position": [1]}), "one column of values"),
        (pd.DataFrame({"sequence": [0], "position": [1], "a": [1.0], "b": [1.0]}), "one column of values"),
        (pd.DataFrame({"sequence": [0, 0], "position": [1, 1], "a": [1.0, 2.0]}), "several rows"),
        (pd.DataFrame({"sequence": [0], "position": [1], "loss": [1.0]}), "one of the experiment's own"),
        (pd.DataFrame({"sequence": [900], "position": [1], "a": [1.0]}), "has no value for any token"),
        (pd.DataFrame({"sequence": [0], "position": [1], "tag": ["NOUN"]}), "'tag' holds .*, not numbers"),
    ],
)
def test_measures_that_cannot_be_meant_are_refused(pocket_mini, measure, match):
    with pytest.raises(BasinsError, match=match):
        robustness(pocket_mini, **SMALL, measure=measure)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_file_that_holds_no_table_is_explained(tmp_path, suffix):
    path = tmp_path / f"measure{suffix}"
    path.write_bytes(b"")
    with pytest.raises(BasinsError, match=f"cannot be read as {suffix}"):
        load_measure(path)


def test_settings_that_cannot_be_meant_are_refused(pocket_mini):
    for wrong, match in (
        ({"weight_draws": 0}, "weight_draws"), ({"n_draws": 10}, "n_draws"), ({"sample_rows": 2}, "sample_rows"),
        ({"layer": 9}, "out of range"), ({"layer": 0, "layers": [1, 2]}, "Possible: 1, 2"),
    ):  # fmt: skip
        with pytest.raises(BasinsError, match=match):
            robustness(pocket_mini, **(SMALL | wrong))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_on_random_weights_nothing_is_moderate_and_the_null_is_named(pocket_mini, seed):
    model = random_weights(pocket_mini, 100 + seed)
    found = robustness(model, **(SMALL | {"limit": 30, "max_length": 64, "sample_rows": 20, "k": 8}), seed=seed)
    (row,) = found.verdicts.to_dict("records")
    assert row["grade"] in ("none", "exploratory")
    assert RANDOM in row["nulls_that_show_it"]
    assert "a null shows it too" in row["flags"]
    own = where(found.spreads, null=TRAINED)
    assert (own["rho_raw_density"] > 0.9).all()


@pytest.mark.slow
def test_the_command_takes_a_table_and_a_second_model(tmp_path, pocket_mini):
    _, pick, scores = own_scores(pocket_mini)
    column(scores, pick, 2).to_csv(tmp_path / "made.csv", index=False)
    options = ["--limit", "10", "--max-length", "24", "--sample-rows", "10", "--weight-draws", "1", "-k", "4"]
    options += ["--tested-tokens", "2", "--n-draws", "39", "--n-resamples", "100", "--n-permutations", "100"]
    command = ["experiment", "robustness", "--model", "pocket-mini", "--second-model", "pocket", *options]
    done = CliRunner().invoke(
        app, [*command, "--measure", str(tmp_path / "made.csv"), "--out", str(tmp_path / "run"), "--no-pictures"]
    )
    assert done.exit_code == 0, done.output
    verdicts = pd.read_parquet(tmp_path / "run" / "tables" / "verdicts.parquet")
    assert verdicts["second_model"].iloc[0] in ("agrees", "differs")
    assert "relative score and made" in done.output
    wrong = CliRunner().invoke(app, [*command, "--measure", "nothing.csv", "--out", str(tmp_path / "other")])
    assert wrong.exit_code == 2
    assert not (tmp_path / "other").exists()
