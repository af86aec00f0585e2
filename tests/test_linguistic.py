"""The linguistic experiment end to end, small: its tables recomputed by hand from what it wrote, its folder."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

pytest.importorskip("scipy.stats")
pytest.importorskip("statsmodels.api")

import statsmodels.api as sm
import statsmodels.formula.api as smf
from scipy import stats

from basins.cli import app
from basins.errors import BasinsError
from basins.experiments import linguistic
from basins.experiments.frames import where
from basins.experiments.linguistic_tables import FUNCTION, HYPOTHESES, NOUN, label_of
from basins.experiments.linguistic_tokens import CONFOUNDS
from basins.experiments.primary import IN_NULL, PRIMARY, SCORES
from basins.experiments.score_store import ScoreStore
from basins.experiments.under_nulls import ALL_NULLS
from basins.tagged_texts import read_tagged
from basins.words import PUNCTUATION, TaggedText

SMALL = {"second_model": None, "limit": 10, "layers": [1, 3], "max_length": 64, "k": 5, "n_resamples": 100}
ALL = " + ".join(CONFOUNDS)


@pytest.fixture(scope="module")
def store():
    return ScoreStore()


@pytest.fixture(scope="module")
def found(pocket_mini, store):
    return linguistic(pocket_mini, store=store, **SMALL)


@pytest.fixture(scope="module")
def folder(found, tmp_path_factory):
    return found.save(tmp_path_factory.mktemp("run") / "linguistic")


@pytest.fixture(scope="module")
def written(folder):
    """Tables and tokens as they were exported."""
    tables = {path.stem: pd.read_parquet(path) for path in (folder / "tables").glob("*.parquet")}
    (tokens,) = (folder / "tokens").glob("*.parquet")
    return tables, pd.read_parquet(tokens)


def one(table: pd.DataFrame, **equal) -> pd.Series:
    rows = where(table, **equal)
    assert len(rows) == 1
    return rows.iloc[0]


@pytest.mark.parametrize("score", [PRIMARY, "raw, lookup", "density"])
@pytest.mark.parametrize("hypothesis", [FUNCTION, NOUN])
def test_regressions_recomputed_from_the_exported_table(written, score, hypothesis):
    """statsmodels' formulas on the parquet: coefficient, clustered error, t, p; and the partial correlation."""
    tables, tokens = written
    here = where(tokens, layer=3, tested=True).rename(columns={score: "y"} if score != "density" else {})
    here = here.assign(label=label_of(hypothesis, here["tag"].to_numpy())).dropna(subset=["label"])
    outcome, given = ("y", ALL) if score != "density" else ("density", ALL.replace("density + ", ""))
    model = smf.ols(f"{outcome} ~ label + {given}", here)
    robust = model.fit(cov_type="cluster", cov_kwds={"groups": here["cluster"]}, use_t=True)
    row = one(tables["contrasts"], layer=3, score=score, name=hypothesis)
    assert row["difference"] == pytest.approx(robust.params["label"], rel=1e-6)
    assert row["error"] == pytest.approx(robust.bse["label"], rel=1e-6)
    assert row["p"] == pytest.approx(robust.pvalues["label"], rel=1e-5, abs=1e-12)
    plain = model.fit()
    t = plain.tvalues["label"]
    assert row["r"] == pytest.approx(t / np.sqrt(t**2 + plain.df_resid), abs=1e-8)
    assert row["low"] < row["r"] < row["high"]
    assert (row["n_one"], row["n_tokens"]) == (int(here["label"].sum()), len(here))
    values = here[outcome]
    assert row["r_plain"] == pytest.approx(stats.pearsonr(values, here["label"]).statistic, abs=1e-8)
    assert row["mean_one"] == pytest.approx(values[here["label"] == 1].mean())


@pytest.mark.parametrize("score", [PRIMARY, "update"])
def test_anova_recomputed_from_the_exported_table(written, score):
    tables, tokens = written
    here = where(tokens, layer=1, tested=True)
    row = one(tables["tests_of_tags"], layer=1, score=score)
    table = sm.stats.anova_lm(smf.ols(f"{score} ~ C(tag)", here).fit(), typ=1)
    assert row["eta_squared"] == pytest.approx(table["sum_sq"].iloc[0] / table["sum_sq"].sum(), abs=1e-10)
    assert row["f"] == pytest.approx(table["F"].iloc[0])
    assert row["p_f"] == pytest.approx(table["PR(>F)"].iloc[0], rel=1e-6)
    ranked = stats.kruskal(*[part[score].astype(float) for _, part in here.groupby("tag")])
    assert row["h"] == pytest.approx(ranked.statistic)
    assert row["p_h"] == pytest.approx(ranked.pvalue, rel=1e-6)
    model = smf.ols(f"{score} ~ C(tag) + {ALL}", here)
    ss = sm.stats.anova_lm(model.fit(), typ=2)["sum_sq"]
    partial = ss["C(tag)"] / (ss["C(tag)"] + ss["Residual"])
    assert row["partial_eta_squared"] == pytest.approx(partial, abs=1e-9)
    assert row["partial_low"] <= row["partial_eta_squared"] <= row["partial_high"]
    robust = model.fit(cov_type="cluster", cov_kwds={"groups": here["cluster"]}, use_t=True)
    terms = [name for name in robust.params.index if name.startswith("C(tag)")]
    wald = robust.f_test(np.array([[float(name == term) for name in robust.params.index] for term in terms]))
    assert row["wald"] == pytest.approx(float(np.squeeze(wald.fvalue)), rel=1e-5)
    assert row["p_wald"] == pytest.approx(float(wald.pvalue), rel=1e-4, abs=1e-14)
    left, q = row["n_sentences"] - len(terms), len(terms)
    assert row["p"] == pytest.approx(stats.f.sf(row["wald"] * left / (left + q - 1), q, left), rel=1e-4, abs=1e-14)
    full, reduced, nothing = model.fit(), smf.ols(f"{score} ~ {ALL}", here).fit(), smf.ols(f"{score} ~ 1", here).fit()
    plain, density = (smf.ols(f"{score} ~ {given}", here).fit() for given in ("C(tag)", "C(tag) + density"))
    assert row["partial_epsilon_squared"] == pytest.approx(1 - full.mse_resid / reduced.mse_resid, abs=1e-9)
    assert row["epsilon_squared"] == pytest.approx(1 - plain.mse_resid / nothing.mse_resid, abs=1e-9)
    alone = smf.ols(f"{score} ~ density", here).fit()
    assert row["density_epsilon_squared"] == pytest.approx(1 - density.mse_resid / alone.mse_resid, abs=1e-9)


@pytest.mark.filterwarnings("ignore:The design matrix is rank-deficient")
def test_within_tokens_recomputed_with_a_level_for_every_token(written):
    tables, tokens = written
    here = where(tokens, layer=3, tested=True)
    several = here.groupby("token_id")["tag"].transform("nunique") > 1
    here = here[several]
    row = one(tables["tests_of_tags"], layer=3, score=PRIMARY)
    assert row["within_token_n"] == len(here)
    full = smf.ols(f"{PRIMARY} ~ C(tag) + C(token_id) + {ALL}", here).fit()
    reduced = smf.ols(f"{PRIMARY} ~ C(token_id) + {ALL}", here).fit()
    assert row["within_token"] == pytest.approx(1 - full.mse_resid / reduced.mse_resid, abs=1e-7)


def test_means_and_their_intervals_recomputed(written):
    tables, tokens = written
    here = where(tokens, layer=3, described=True, tag="NOUN")
    row = one(tables["means"], layer=3, score=PRIMARY, tag="NOUN")
    fit = smf.ols(f"{PRIMARY} ~ 1", here).fit(cov_type="cluster", cov_kwds={"groups": here["cluster"]}, use_t=True)
    assert (row["n_tokens"], row["n_sentences"]) == (len(here), here["cluster"].nunique())
    assert row["mean"] == pytest.approx(fit.params.iloc[0])
    assert [row["low"], row["high"]] == pytest.approx(fit.conf_int().iloc[0].tolist())


def test_correction_is_over_layers_and_hypotheses(found):
    from statsmodels.stats.multitest import multipletests

    primary = where(found.effects, primary=True)
    assert len(primary) == len(HYPOTHESES) * 2
    expected = multipletests(primary["p"], method="holm")[1]
    assert primary["p_corrected"].to_numpy() == pytest.approx(expected)
    other = where(found.effects, primary=False)
    assert len(other) == len(HYPOTHESES) * 2 * len(SCORES)
    assert other["p_corrected"].to_numpy() == pytest.approx(multipletests(other["p"], method="holm")[1])


def test_who_takes_part(found):
    (frame,) = found.tokens.values()
    tested = frame[frame["tested"]]
    assert not set(tested["tag"]) & set(PUNCTUATION)
    assert set(tested["alignment"]) == {"aligned"}
    assert (tested["piece"] == 0).all()
    assert (tested["position"] >= 1).all()
    text = read_tagged(limit=10)
    for row in tested.iloc[::97].to_dict("records"):
        source = text.texts[row["text"]]
        assert source.word(row["word_number"]) == row["word"]
        assert source.tags[row["word_number"]] == row["tag"]
        assert row["word_length"] == len(row["word"])
        assert row["word"].startswith(row["token"].strip()) or not row["token"].strip()
    counts = tested.drop_duplicates(["sequence", "position"])["tag"].value_counts()
    assert counts.min() >= 10
    about = next(iter(found.settings["models"].values()))
    assert about["tags"] == counts.to_dict()
    assert about["tags_left_out"]
    assert all(n < 10 for n in about["tags_left_out"].values())
    assert all(tag in found.reading for tag in about["tags_left_out"])
    assert "." in set(found.means["tag"]), "punctuation has its means"


def test_a_sentence_is_a_cluster_across_windows(found):
    (frame,) = found.tokens.values()
    tested = frame[frame["tested"]]
    assert tested.groupby("cluster")["text"].nunique().max() == 1
    assert tested.groupby("cluster")["sequence"].nunique().max() > 1, "windows cut sentences"
    assert (frame[frame["alignment"] != "aligned"]["cluster"] == -1).all()


def test_relative_and_raw_are_one_number_once_density_is_removed(found):
    rows = where(found.contrasts, name=FUNCTION)
    relative, raw = (where(rows, score=score)["r"].to_numpy() for score in (PRIMARY, "raw"))
    assert relative == pytest.approx(raw, abs=1e-6)


def test_the_reading_says_what_has_to_be_said(found):
    assert "automatic tags" in found.reading
    assert "density before the block, which the raw score mostly repeats" in found.reading
    assert "the same token" in found.reading
    assert "nothing can be called strong" in found.reading
    assert sorted(found.verdicts["name"]) == sorted(HYPOTHESES)
    assert set(found.verdicts["second_model"]) == {"not run"}
    assert {"model", "layer", "line", "estimate", "low", "high"} == set(found.curve)
    assert found.settings["curve"]


def test_the_folder(folder):
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    figures = {f"figures/{name}.png" for name in ("means_by_tag", "contrasts", "distribution", "variance_explained")}
    assert figures <= names
    run = json.loads((folder / "run.json").read_text())
    assert run["text"]["gold"] is False
    assert run["pieces"] == "first"
    page = (folder / "figures/tokens.html").read_text()
    assert "function (blue), content (red)" in page
    assert "http" not in page
    assert "# Linguistic" in (folder / "verdict.md").read_text()


def test_the_same_seed_gives_the_same_tables(pocket_mini, found, store):
    before = store.computed
    again = linguistic(pocket_mini, store=store, **SMALL)
    assert store.computed == before, "scores are computed once"
    for name in ("means", "tests_of_tags", "contrasts", "effects", "verdicts", "alignment"):
        pd.testing.assert_frame_equal(getattr(again, name), getattr(found, name))


def test_nulls_are_run_for_every_hypothesis(found):
    assert set(found.nulls["null"]) == set(ALL_NULLS)
    assert set(found.nulls["name"]) == set(found.verdicts.dropna(subset=["r"])["name"])
    for row in found.verdicts.to_dict("records"):
        mine = where(found.nulls, name=row["name"])
        assert row["nulls_that_show_it"] == "; ".join(mine.loc[mine["shows"], "null"])
        assert (IN_NULL in row["flags"]) == bool(row["nulls_that_show_it"])
    assert "nulls" in found.figures()


def test_the_whole_text_as_the_sample_gives_the_whole_texts_effects(pocket_mini, store):
    found = linguistic(pocket_mini, store=store, **SMALL, null_rows=40, weight_draws=1)
    assert len(next(iter(found.scores.values())).tokens) <= 40
    own = found.nulls.drop_duplicates("name").set_index("name")["of_sample"]
    for row in found.verdicts.to_dict("records"):
        assert own[row["name"]] == pytest.approx(row["r"], abs=1e-9)


def test_gold_tags_of_a_file_and_every_piece(pocket_mini, tmp_path):
    rows = []
    for number, text in enumerate(read_tagged().texts[:6]):
        rows.append(f"# newdoc id = {number}")
        for i, tag in enumerate(text.tags, 1):
            rows.append("\t".join([str(i), text.word(i - 1), "_", tag.replace(".", "PUNCT"), *["_"] * 6]))
        rows.append("")
    path = tmp_path / "book.conllu"
    path.write_text("\n".join(rows), encoding="utf-8")
    options = SMALL | {"layers": [2], "limit": 6}
    found = linguistic(pocket_mini, texts=path, pieces="every", **options)
    assert found.settings["text"]["gold"]
    assert "automatic" not in found.reading
    assert "every piece of a word" in found.reading
    (frame,) = found.tokens.values()
    assert (frame[frame["tested"]]["piece"] > 0).any()
    assert found.alignment["chosen"].item() > found.alignment["represented_words"].item()


def test_too_little_text_is_explained(pocket_mini):
    short = TaggedText("Go on now", ((0, 2), (3, 5), (6, 9)), ("VERB", "PRT", "ADV"), (0, 0, 0))
    with pytest.raises(BasinsError, match="sequences are too few for an experiment"):
        linguistic(pocket_mini, texts=[short], **SMALL)
    with pytest.raises(BasinsError, match="pieces='all' is not an option"):
        linguistic(pocket_mini, pieces="all", **SMALL)


def test_no_tag_with_enough_tokens(pocket_mini):
    """Thirty kinds of words with few tokens each: a null result, in words."""
    texts = [
        TaggedText(text.text, text.spans, tuple(f"T{i % 400}" for i in range(len(text))), text.sentences)
        for text in read_tagged(limit=5).texts
    ]
    with pytest.raises(BasinsError, match="No tag has 10 tokens"):
        linguistic(pocket_mini, texts=texts, **SMALL)


@pytest.mark.slow
def test_the_command(tmp_path):
    arguments = [
        "experiment",
        "linguistic",
        "--model",
        "pocket-mini",
        "--limit",
        "8",
        "--layers",
        "1,3",
        "--max-length",
    ]
    arguments += ["64", "-k", "5", "--n-resamples", "100", "--no-pictures", "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "Stated before the run" in result.output
    assert (tmp_path / "run" / "tables" / "contrasts.parquet").is_file()
    assert "linguistic" in CliRunner().invoke(app, ["experiment", "--help"]).output
