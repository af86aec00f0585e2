"""The memorisation experiment end to end, small: its tables, its words, its folder."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("scipy.stats")
pytest.importorskip("sklearn.metrics")
pytest.importorskip("rapidfuzz")

from basins import pocket
from basins.cli import app
from basins.errors import BasinsError
from basins.experiments import memorization
from basins.experiments.frames import where
from basins.experiments.memorization_measures import _spans
from basins.experiments.memorization_passages import Contrast, Passages, from_file, planted, rows, with_plain
from basins.experiments.memorization_tables import split
from basins.experiments.memorization_tables import tests as compare
from basins.experiments.memorization_words import verdicts
from basins.experiments.primary import SCORER
from basins.nulls import ISOTROPIC, null_scores
from basins.scorer import BasinScorer


def few(*doses: int, each: int = 8) -> Passages:
    """Planted passages of some doses only."""
    everything = planted()
    kept = [i for dose in doses for i in [j for j, own in enumerate(everything.dose or ()) if own == dose][:each]]
    return Passages(
        "planted",
        tuple(everything.text[i] for i in kept),
        tuple(everything.group[i] for i in kept),
        tuple(everything.source[i] for i in kept),
        tuple(everything.dose[i] for i in kept) if everything.dose else None,
        everything.contrasts,
        "a few planted passages",
    )


SHUFFLES = 150
SMALL = {"second_model": None, "reference": None, "layers": [1, 3], "k": 5, "n_resamples": 100, "n_permutations": 100}


@pytest.fixture(scope="module")
def found(pocket_mini):
    return memorization(pocket_mini, passages=few(0, 16, 256), **SMALL)


def test_a_contrast_under_a_null_is_that_of_the_nulls_scores(found, pocket_mini):
    """All passages are in the sample: r is SciPy's of the null's scores, and the verdict's as they are."""
    from scipy.stats import pearsonr

    judged = where(found.nulls, null=ISOTROPIC).iloc[0]
    verdict = where(found.verdicts, contrast=judged["name"]).iloc[0]
    assert judged["of_sample"] == pytest.approx(verdict["r"], abs=1e-9)
    passages = few(0, 16, 256)
    batch, _ = rows(pocket_mini, passages.text, 64)
    layers = sorted(int(layer) for layer in found.verdicts["layer"].dropna().unique())
    scorer = BasinScorer(pocket_mini, **(SCORER | {"k": 5, "seed": 0}))
    scores = scorer.score_tokens(batch.tokens, batch.attention_mask, layers=layers)
    null = null_scores(pocket_mini, batch.tokens, batch.attention_mask, scores, seed=0)[ISOTROPIC]
    layer = int(judged["layer"])
    values = null.relative[null.layer_index(layer)].double().numpy()
    there = where(next(iter(found.tokens.values())), layer=layer, used=True)
    means = np.array([np.nanmean(values[row, part["position"]]) for row, part in there.groupby("sequence")])
    chosen, positive = split(found.labels, next(c for c in passages.contrasts if c.name == judged["name"]))
    assert judged["effect"] == pytest.approx(pearsonr(means[chosen], positive).statistic, abs=1e-9)


def test_labels_agree_with_the_doses(found):
    labels = found.labels.set_index("dose")
    for kind in ("free", "forced", "run", "exact"):
        assert not labels.loc[0, kind].any()
        assert labels.loc[256, kind].all()
    assert found.doses["dose"].tolist() == [0, 16, 256]
    assert found.doses["passages"].tolist() == [8, 8, 8]
    assert found.doses["loss"].is_monotonic_decreasing


def test_every_measure_is_tested_at_every_layer_with_the_density_beside_it(found):
    tests = where(found.tests, contrast="recited against controls")
    for measure in ("relative_mean", "lookup_relative_lowest", "raw_highest", "update_mean", "density_mean"):
        assert sorted(where(tests, measure=measure)["layer"]) == [1, 3]
    assert set(found.baselines["name"]) >= {"loss", "perplexity", "min_k", "min_k_plus_plus", "zlib"}
    loss = where(found.baselines, contrast="recited against controls", name="loss").iloc[0]
    assert loss["auroc"] == 1.0
    assert (loss["n_positive"], loss["n_negative"]) == (8, 8)
    assert (found.tests["p_corrected"] >= found.tests["p"]).all()
    assert set(found.dose_response["measure"]) >= {"loss", "relative_mean", "neighbor_distance", "two_nn"}


def test_the_numbers_can_be_had_from_the_labels_and_the_matrix(found):
    from scipy import stats

    matrix = next(iter(found.matrices.values()))
    chosen, positive = split(found.labels, found.settings["compared"][0])
    values = matrix["relative_mean.L3"].to_numpy()[chosen]
    row = where(found.tests, contrast="recited against controls", name="relative_mean.L3").iloc[0]
    assert row["r"] == pytest.approx(stats.pointbiserialr(positive, values).statistic)
    wanted = stats.ttest_ind(values[positive], values[~positive], equal_var=False)
    assert row["p"] == pytest.approx(wanted.pvalue)
    area = stats.mannwhitneyu(values[positive], values[~positive]).statistic / (8 * 8)
    assert row["auroc"] == pytest.approx(area)
    pooled = math.sqrt((values[positive].var(ddof=1) + values[~positive].var(ddof=1)) / 2)
    d = (values[positive].mean() - values[~positive].mean()) / pooled
    assert row["hedges_g"] == pytest.approx(d * (1 - 3 / (4 * 16 - 9)))


def test_scores_are_taken_over_the_continuation_only(found):
    frame = next(iter(found.tokens.values()))
    scores = next(iter(found.scores.values()))
    used = where(frame, layer=3, sequence=2, used=True)
    prompt = int(found.labels["prompt_length"].iloc[2])
    assert used["position"].min() >= prompt
    matrix = next(iter(found.matrices.values()))
    wanted = float(scores.relative[1, 2, used["position"].tolist()].mean())
    assert matrix["relative_mean.L3"].iloc[2] == pytest.approx(wanted, abs=1e-5)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_tables(pocket_mini, found):
    again = memorization(pocket_mini, passages=few(0, 16, 256), **SMALL)
    for table in ("labels", "doses", "dose_response", "tests", "added", "blind", "spans", "verdicts"):
        pd.testing.assert_frame_equal(getattr(found, table), getattr(again, table), check_exact=True)
    assert found.reading == again.reading


def test_the_folder_holds_everything(found, tmp_path):
    folder = found.save(tmp_path / "run")
    for table in ("labels", "doses", "dose_response", "tests", "baselines", "added", "blind", "spans", "verdicts"):
        assert len(pd.read_parquet(folder / "tables" / f"{table}.parquet")) == len(getattr(found, table))
    for figure in ("strip", "distributions", "layer_curves", "roc", "dose_response"):
        assert (folder / "figures" / f"{figure}.pdf").stat().st_size > 1000
    assert "http" not in (folder / "figures" / "tokens.html").read_text(encoding="utf-8")
    assert found.reading in (folder / "verdict.md").read_text(encoding="utf-8")
    assert json.loads((folder / "run.json").read_text())["compared"][0]["name"] == "recited against controls"
    assert "nothing could add to it" in found.reading


@pytest.mark.slow
def test_fine_tuning_teaches_the_drawn_half_only(pocket_mini, tmp_path):
    before = {name: value.clone() for name, value in pocket_mini.named_parameters()}
    texts = [passage.text for passage in pocket.passages() if passage.dose == 0][:12]
    options = SMALL | {"layers": [3], "n_permutations": 100}
    found = memorization(pocket_mini, passages=few(0, 256, each=4), finetune_texts=texts, dynamics=True, **options)
    for name, value in pocket_mini.named_parameters():
        assert torch.equal(value, before[name])
    end = where(found.recited, plan="uniform", epoch=16)
    assert (where(end, group="trained")["recited"] == 1).all()
    assert (where(end, group="control")["recited"] == 0).all()
    start = where(found.recited, epoch=0)
    assert (start["recited"] == 0).all()
    assert set(found.effect["plan"]) == {"uniform", "graded"}
    assert set(found.by_exposures["exposures"]) == {1, 4, 16, 64}
    assert sorted(found.dynamics["epoch"].unique()) == [0, 1, 2, 4, 8, 16]
    assert {"difference_in_differences", "dynamics"} <= set(found.figures())
    assert len(found.settings["finetuning"]["runs"]) == 4


def made(effect: float, n: int = 60, columns: int = 12, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame, np.ndarray]:
    """A matrix whose first column is shifted by `effect` in the positive half; labels without exclusions."""
    rng = np.random.default_rng(seed)
    positive = np.arange(n) < n // 2
    values = rng.normal(size=(n, columns))
    values[positive, 0] += effect
    matrix = pd.DataFrame(values, columns=pd.Index([f"relative_mean.L{i}" for i in range(columns)]))
    passages = pd.DataFrame({"group": np.where(positive, "famous", "novel"), "excluded": None, "source": range(n)})
    return matrix, passages, positive


CONTRAST = (Contrast("famous against novel", ("famous",), ("novel",)),)


def test_a_planted_effect_lies_within_its_interval():
    inside = 0
    for seed in range(40):
        matrix, passages, _ = made(1.0, columns=1, seed=seed)
        row = compare(matrix, passages, CONTRAST, n_resamples=100, seed=0).iloc[0]
        wanted = 0.5 / math.sqrt(1.25)  # a shift of one standard deviation at balance
        inside += row["r_low"] < wanted < row["r_high"]
    assert inside >= 34


@pytest.mark.slow
def test_shuffled_labels_give_corrected_findings_no_more_often_than_their_rate():
    """Shuffles of 60 passages in 6 correlated columns: at 0.05 the Holm-corrected best is significant in 0.05 of them
    at most (here with a binomial bound on top), while some uncorrected p is below 0.05 far more often."""
    rng = np.random.default_rng(5)
    corrected, plain = 0, 0
    matrix, passages, _ = made(0.0, columns=6)
    matrix = matrix.add(rng.normal(size=len(matrix)), axis=0)
    for number in range(SHUFFLES):
        shuffled = passages.assign(group=rng.permutation(passages["group"].to_numpy()))
        table = compare(matrix, shuffled, CONTRAST, n_resamples=100, seed=number)
        corrected += table["p_corrected"].min() < 0.05
        plain += table["p"].min() < 0.05
    assert corrected / SHUFFLES < 0.09
    assert plain / SHUFFLES > 0.12


def test_excluded_passages_are_on_neither_side():
    matrix, passages, _ = made(1.0, n=20)
    passages.loc[[0, 15], "excluded"] = "too short"
    row = compare(matrix, passages, CONTRAST, n_resamples=100, seed=0).iloc[0]
    assert (row["n_positive"], row["n_negative"]) == (9, 9)


def judge(r: float, p: float, adds: float, adds_p: float, second: tuple[float, float, float, float] | None) -> str:
    tests, added = [], []
    for model, values in (("one", (r, p, adds, adds_p)), ("two", second)):
        if values is None:
            continue
        row = {"model": model, "contrast": "c", "name": "relative_mean.L1", "measure": "relative_mean", "layer": 1.0}
        row |= {"r": values[0], "r_low": 0.0, "r_high": 0.0, "hedges_g": 1.0, "p_corrected": values[1], "auroc": 0.7}
        loss = row | {"name": "loss", "measure": "loss", "layer": math.nan}
        tests += [one | {"n_positive": 9, "n_negative": 9} for one in (row, loss)]
        add = {"model": model, "contrast": "c", "sample": "all", "name": "compression adds", "low": 0.0, "high": 0.1}
        added.append(add | {"estimate": values[2], "p_corrected": values[3]})
    blind = pd.DataFrame({"model": ["one"], "contrast": ["c"], "unfair": [False]})
    models = ["one", "two"] if second else ["one"]
    return verdicts(pd.DataFrame(tests), pd.DataFrame(added), blind, models)["grade"].item()


@pytest.mark.parametrize(
    ("first", "second", "grade"),
    [
        ((0.5, 0.001, 0.1, 0.01), (0.5, 0.001, 0.1, 0.01), "strong"),
        ((0.5, 0.001, 0.1, 0.01), (-0.5, 0.001, 0.1, 0.01), "moderate"),
        ((0.5, 0.001, 0.1, 0.01), (0.5, 0.001, 0.1, 0.2), "moderate"),
        ((0.5, 0.001, 0.1, 0.01), None, "moderate"),
        ((0.5, 0.001, 0.1, 0.2), (0.5, 0.001, 0.1, 0.01), "exploratory"),
        ((0.5, 0.001, -0.1, 0.01), None, "exploratory"),
        ((0.5, 0.001, math.nan, math.nan), None, "exploratory"),
        ((0.1, 0.001, 0.1, 0.01), None, "exploratory"),
        ((0.5, 0.2, 0.1, 0.01), None, "none"),
    ],
)
def test_grades_follow_the_thresholds_stated(first, second, grade):
    assert judge(*first, second=second) == grade


def test_spans_are_runs_of_at_least_eight():
    hits = torch.zeros(2, 20, dtype=torch.bool)
    hits[0, 3:11] = True
    hits[0, 12:19] = True
    hits[1, 12:20] = True
    spans = _spans(hits)
    assert spans[0].nonzero()[:, 0].tolist() == list(range(3, 11))
    assert spans[1].nonzero()[:, 0].tolist() == list(range(12, 20))


def test_rows_are_cut_to_the_window_of_text(pocket_mini):
    texts = [passage.text for passage in pocket.passages()[:3]]
    batch, prompt = rows(pocket_mini, texts, 30)
    extra = 1 if batch.tokenization["bos_token"] else 0
    assert batch.tokens.shape[1] == 30 + extra
    assert prompt == 10


def test_passages_come_from_files(tmp_path):
    path = tmp_path / "mine.csv"
    pd.DataFrame(
        {"text": ["one two", "three", "four"], "group": ["seen", "new", "seen"], "source": ["a", "b", "a"]}
    ).to_csv(path)
    found = from_file(path)
    assert found.contrasts == (Contrast("seen against new", ("seen",), ("new",)),)
    assert found.source == ("a", "b", "a")
    with pytest.raises(BasinsError, match="has no column 'group'"):
        pd.DataFrame({"text": ["a"]}).to_json(tmp_path / "bad.jsonl", orient="records", lines=True)
        from_file(tmp_path / "bad.jsonl")
    with pytest.raises(BasinsError, match="one group, 'seen'"):
        pd.DataFrame({"text": ["a"], "group": ["seen"]}).to_csv(tmp_path / "one.csv")
        from_file(tmp_path / "one.csv")
    with pytest.raises(BasinsError, match="not a passage file"):
        from_file(tmp_path / "x.txt")
    with pytest.raises(BasinsError, match="does not exist"):
        from_file(tmp_path / "none.csv")


def test_plain_text_is_one_more_group(tmp_path):
    path = tmp_path / "treebank.conllu"
    words = ["word"] * 24 + ["end."]
    rows = "".join(f"{i}\t{word}\t{word}\tX" + "\t_" * 6 + "\n" for i, word in enumerate(words, 1))
    sentence = f"# text = {' '.join(words)}\n{rows}\n"
    documents = "".join(f"# newdoc id = d{d}\n{sentence * 4}" for d in range(3))
    path.write_text(documents, encoding="utf-8")
    found = with_plain(few(0, 256, each=2), path)
    assert found.group[-3:] == ("treebank",) * 3
    assert all(60 <= len(text.split()) <= 100 for text in found.text[-3:])
    assert found.contrasts[-1] == Contrast("planted against treebank", ("planted",), ("treebank",))
    with pytest.raises(BasinsError, match="0 pieces of 60 to 100 words"):
        short = tmp_path / "short.txt"
        short.write_text("too short\nas well\n", encoding="utf-8")
        with_plain(few(0), short)


def test_bad_settings_are_explained(pocket_mini):
    with pytest.raises(BasinsError, match="window=8 is too small"):
        memorization(pocket_mini, window=8)
    with pytest.raises(BasinsError, match="n_seeds=0 is too small"):
        memorization(pocket_mini, n_seeds=0)


def test_the_command_prints_tables_and_reading(tmp_path):
    passages = tmp_path / "few.jsonl"
    chosen = few(256, 0, each=4)
    groups = {"text": chosen.text, "group": chosen.group, "dose": chosen.dose}
    pd.DataFrame(groups).to_json(passages, orient="records", lines=True)
    options = f"--model pocket-mini --passages {passages} --layers 2 -k 4 --n-resamples 100 --n-permutations 100"
    arguments = ["experiment", "memorization", *options.split(), "--no-pictures", "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    printed = " ".join(result.output.split())
    assert "Stated before the run: strong: point-biserial" in printed
    assert "Labels and loss by dose" in printed
    assert "Planted against control (4 against 4)" in printed
    assert (tmp_path / "run" / "tables" / "tests.csv").is_file()
