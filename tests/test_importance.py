"""The importance experiment end to end, small: its tables, its words, its folder."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("scipy.stats")
pytest.importorskip("statsmodels.stats.multitest")

from basins import pocket
from basins.attribution import METHODS
from basins.cli import app
from basins.errors import BasinsError
from basins.experiments import importance
from basins.experiments.frames import where
from basins.experiments.importance_measures import costly_layers, other_text
from basins.experiments.importance_tables import correlations
from basins.experiments.importance_words import read_out, verdicts
from basins.experiments.primary import PRIMARY, SCORER, SCORES
from basins.experiments.sequences import sequences
from basins.experiments.token_columns import CONFOUNDS, KEY
from basins.experiments.under_nulls import ALL_NULLS
from basins.nulls import ISOTROPIC, null_scores
from basins.scorer import BasinScorer

SMALL = {
    "second_model": None, "limit": 5, "layers": [1, 3], "max_length": 40, "sample_rows": 4, "ablated": 12, "steps": 2,
    "k": 5, "n_resamples": 100, "n_permutations": 200,
}  # fmt: skip


@pytest.fixture(scope="module")
def found(pocket_mini):
    return importance(pocket_mini, **SMALL)


def test_every_score_meets_every_measure_at_every_layer(found):
    table = where(found.correlations, part="all")
    assert len(table) == len(SCORES) * len(METHODS) * 2
    assert set(table["score"]) == set(SCORES)
    assert set(table["layer"]) == {1, 3}
    assert table["primary"].sum() == len(METHODS) * 2
    for part in ("half 1", "half 2"):
        assert set(where(found.correlations, part=part)["score"]) == {PRIMARY}
    assert ((table["p_corrected"] >= table["p"]) | table["p"].isna()).all()
    cheap = where(table, method="attention", score=PRIMARY)
    costly = where(table, method="ablation", score=PRIMARY)
    assert (cheap["n_tokens"].to_numpy() > costly["n_tokens"].to_numpy()).all()
    assert set(found.agreement["method"]) == set(METHODS) - {"ablation"}
    assert set(found.quartiles["method"]) == set(METHODS)
    assert sorted(found.verdicts["method"]) == sorted(METHODS)


def test_its_numbers_can_be_had_from_the_table_of_tokens(found):
    from scipy.stats import spearmanr

    frame = where(next(iter(found.tokens.values())), layer=3, used=True)
    for method in ("gradient", "attention_relative"):
        row = where(found.correlations, part="all", layer=3, score=PRIMARY, method=method).iloc[0]
        wanted = spearmanr(frame["relative"], frame[method]).statistic
        assert row["rho"] == pytest.approx(wanted, abs=0.02)  # the grid takes tokens that are used at both layers
        quarters = where(found.quartiles, layer=3, method=method).iloc[0]
        assert quarters["contrast"] == pytest.approx(quarters["q4"] - quarters["q1"])


def test_under_nulls_the_same_tokens_meet_the_same_measures(found, pocket_mini):
    """The sample's own effect and one null's, from scores made here and least squares of NumPy on ranks."""
    from scipy.stats import rankdata

    assert set(found.nulls["null"]) == set(ALL_NULLS)
    assert set(found.nulls["name"]) == set(METHODS)
    rows = sequences(pocket_mini, None, SMALL["max_length"], SMALL["limit"])
    pick = rows.sample(20, 0)
    scorer = BasinScorer(pocket_mini, **(SCORER | {"k": SMALL["k"], "seed": 0}))
    default = scorer.score_tokens(rows.tokens[pick], rows.mask[pick], layers=SMALL["layers"])
    null = null_scores(pocket_mini, rows.tokens[pick], rows.mask[pick], default, seed=0)[ISOTROPIC]
    judged = where(found.nulls, name="gradient", null=ISOTROPIC).iloc[0]
    facts = where(next(iter(found.tokens.values())), layer=judged["layer"])
    facts = facts[[*KEY[1:], "fresh", "gradient", *CONFOUNDS[2:]]]
    for scores, name in ((default, "of_sample"), (null, "effect")):
        frames = scores.to_frame()
        frames["sequence"] = pick.numpy()[frames["sequence"]]
        usable = (frames["n_distinct"] >= 3) & frames["relative"].notna()
        both = frames[usable].groupby(["sequence", "position"])["layer"].transform("size") == len(SMALL["layers"])
        here = where(frames[usable][both], layer=judged["layer"]).merge(facts, on=KEY[1:])
        here = here[here["fresh"] == True]  # noqa: E712
        ranks = rankdata(here[["relative", "gradient", *CONFOUNDS]].to_numpy(), axis=0)
        ranks -= ranks.mean(0)
        left = ranks[:, :2] - ranks[:, 2:] @ np.linalg.lstsq(ranks[:, 2:], ranks[:, :2], rcond=None)[0]
        assert judged[name] == pytest.approx(np.corrcoef(left.T)[0, 1], abs=1e-6)


def test_without_nulls_the_verdicts_do_not_speak_of_them(pocket_mini):
    found = importance(pocket_mini, **SMALL, methods=["attention"], null_rows=0)
    assert found.nulls.empty
    assert "nulls" not in found.verdicts
    assert "under nulls" not in found.reading
    assert "nulls" not in found.figures()
    with pytest.raises(BasinsError, match="null_rows=2 is too small"):
        importance(pocket_mini, **SMALL, null_rows=2)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_tables_and_leaves_the_model_as_it_was(pocket_mini, found):
    before = {name: parameter.clone() for name, parameter in pocket_mini.named_parameters()}
    again = importance(pocket_mini, **SMALL)
    for table in ("correlations", "quartiles", "agreement", "nulls", "verdicts"):
        pd.testing.assert_frame_equal(getattr(found, table), getattr(again, table), check_exact=True)
    assert found.reading == again.reading
    for name, parameter in pocket_mini.named_parameters():
        assert parameter.grad is None
        assert torch.equal(parameter, before[name])


def test_the_folder_holds_everything(found, tmp_path):
    folder = found.save(tmp_path / "run", command="basins experiment importance")
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    for table in ("correlations", "quartiles", "agreement", "nulls", "verdicts"):
        read = pd.read_parquet(folder / "tables" / f"{table}.parquet")
        assert len(read) == len(getattr(found, table))
        assert f"tables/{table}.csv" in files
    for figure in ("layer_curves", "scatter", "quartiles", "joint_density", "agreement", "nulls"):
        assert {f"figures/{figure}.png", f"figures/{figure}.pdf"} <= files
    page = (folder / "figures" / "tokens.html").read_text(encoding="utf-8")
    assert "http" not in page.replace("http-equiv", "")
    assert "relative score" in page
    words = (folder / "verdict.md").read_text(encoding="utf-8")
    assert found.reading in words
    assert "strong: |r| > 0.4" in words
    manifest = json.loads((folder / "run.json").read_text())
    assert manifest["seed"] == 0
    assert manifest["grade"] == found.grade
    assert json.loads((folder / "statistics.json").read_text())["reading"] == found.reading
    with pytest.raises(BasinsError, match="exists already"):
        found.save(folder)


def made_tokens(effect: float, n_sequences: int = 30, length: int = 20, seed: int = 0) -> pd.DataFrame:
    """Columns of two layers; `gradient` depends on the relative score with this weight, both depend on density."""
    rng = np.random.default_rng(seed)
    rows = []
    for layer in (0, 1):
        density, relative, noise, raw = rng.normal(size=(4, n_sequences * length))
        relative = relative + density
        frame = pd.DataFrame({"layer": layer, "sequence": np.repeat(np.arange(n_sequences), length)})
        frame["position"] = np.tile(np.arange(length), n_sequences)
        frame["cluster"], frame["used"] = frame["sequence"], True
        frame["density"], frame["relative"], frame["raw"] = density, relative, raw + 5 * density
        frame["gradient"] = effect * (relative - density) + density + noise
        for name in ("position_bend", "log_frequency", "loss", "log_norm"):
            frame[name] = rng.normal(size=len(frame))
        rows.append(frame)
    return pd.concat(rows, ignore_index=True)


STATISTICS = {"n_resamples": 100, "n_permutations": 999, "seed": 0}
SETTINGS = {
    "question": "Do they?", "methods": ["gradient"],
    "models": {"made": {"tokens": 1200, "clusters": 30, "cluster": "text", "layers": [0, 1], "n_layers": 2}},
}  # fmt: skip


def judged(effect: float) -> tuple[pd.DataFrame, str]:
    parts = []
    for part, seed in (("all", 0), ("half 1", 1), ("half 2", 2)):
        table, _ = correlations(made_tokens(effect, seed=seed), ["gradient"], STATISTICS, ("relative", "raw"))
        parts.append(table.assign(model="made", part=part))
    table = pd.concat(parts)
    verdict = verdicts(table, ["gradient"], ["made"])
    return table, read_out(table, pd.DataFrame({"model": []}), verdict, SETTINGS)


def test_what_only_density_explains_is_no_finding():
    table, reading = judged(effect=0.0)
    plain = where(table, part="all", score="relative")
    assert (plain["rho"] > 0.2).all()
    assert (plain["p_corrected"] > 0.05).all()
    assert "No measure of importance is related" in reading


def test_a_planted_relation_is_found_after_density_is_removed():
    table, reading = judged(effect=-0.5)
    row = where(table, part="all", score="relative", layer=1).iloc[0]
    wanted = -0.5 / np.sqrt(1.25)
    assert row["partial_low"] < wanted < row["partial_high"]
    assert "Moderate: gradient" in reading
    assert "compressed less, as asked" in reading
    assert "no second model" in reading


def test_other_text_has_the_same_layout_and_other_tokens(pocket_mini):
    texts = sequences(pocket_mini, pocket.demo_text(), 48, 6)
    other = other_text(texts)
    real = texts.mask.bool()
    assert torch.equal(other[:, 0], texts.tokens[:, 0])
    assert torch.equal(other[~real], texts.tokens[~real])
    assert torch.equal(other[real].sort().values, texts.tokens[real].sort().values)
    assert float((other == texts.tokens)[real].float().mean()) < 0.2


def test_deep_models_have_costly_methods_at_eight_layers():
    assert costly_layers(tuple(range(12))) == tuple(range(12))
    assert costly_layers(tuple(range(30))) == (0, 4, 8, 12, 17, 21, 25, 29)


def test_what_cannot_be_meant_is_said_before_anything_runs(pocket_mini):
    with pytest.raises(BasinsError, match="method='magic' is not an option"):
        importance(pocket_mini, methods=["magic"])
    with pytest.raises(BasinsError, match="methods is empty"):
        importance(pocket_mini, methods=[])
    with pytest.raises(BasinsError, match="ablated=2 is too small"):
        importance(pocket_mini, ablated=2)
    with pytest.raises(BasinsError, match="Both models are"):
        importance("pocket-mini", second_model="pocket-mini")


def test_without_ablation_there_is_no_agreement(pocket_mini):
    found = importance(pocket_mini, **(SMALL | {"methods": ["gradient", "attention"], "layers": [2], "limit": 5}))
    assert not len(found.agreement)
    assert "agreement" not in found.figures()
    assert dataclasses.is_dataclass(found)


def test_the_command_prints_verdict_and_reading(tmp_path):
    options = "--model pocket-mini --limit 5 --layers 2 --max-length 32 --methods attention,ablation --ablated 8 -k 4"
    rest = "--sample-rows 4 --n-resamples 100 --n-permutations 100 --no-pictures"
    arguments = ["experiment", "importance", *options.split(), *rest.split(), "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    printed = " ".join(result.output.split())
    assert "Stated before the run: strong: |r| > 0.4" in printed
    assert "Each measure against ablation" in printed
    assert (tmp_path / "run" / "verdict.md").is_file()
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 2
    assert "exists already" in " ".join(again.output.split())
