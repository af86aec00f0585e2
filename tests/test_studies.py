"""The whole study: one folder, taken up where it was left, and a grade by rules that were written down before."""

from __future__ import annotations

import json
import sys

import pandas as pd
import pytest
import torch

import basins
from basins import experiments, pocket
from basins.errors import BasinsError
from basins.experiments.null_verdicts import NOT_RUN, NOT_SHOWN, SHOWN
from basins.experiments.primary import IN_NULL, NOISY, NOTHING
from basins.experiments.under_nulls import RANDOM
from basins.random_weights import random_weights
from basins.studies.grades import overall
from basins.studies.hypotheses import ABOUT, CONFOUNDED, flags_of
from basins.studies.plan import _digest

OPTIONS = {"importance": {"methods": ["attention"], "n_resamples": 100, "n_permutations": 100, "null_rows": 0}}
QUICK = {"second_model": None, "limit": 6, "layers": [1, 2], "parts": ["importance"], "options": OPTIONS}


@pytest.fixture(scope="module")
def run(tmp_path_factory, pocket_mini):
    folder = tmp_path_factory.mktemp("study") / "one"
    return basins.study(pocket_mini, out=folder, command="basins study --limit 6", **QUICK)


def test_a_study_leaves_all_that_it_names(run):
    names = {str(path.relative_to(run.folder)) for path in run.folder.rglob("*") if path.is_file()}
    assert {"study.json", "analysis.md", "statistics.json", "tables/hypotheses.csv"} <= names
    assert {"tables/hypotheses.parquet", "figures/00_summary.png", "figures/00_summary.pdf"} <= names
    assert {"importance/run.json", "importance/verdict.md", "figures/01_importance_layer_curves.png"} <= names
    assert not [name for name in names if "/." in name or name.startswith(".")]
    text = (run.folder / "analysis.md").read_text()
    for said in ("Stated before the run", "What speaks against it", "nothing was replicated", "basins study --limit 6"):
        assert said in text
    # Every picture that the analysis shows is there.
    shown = [line.rpartition("(")[2].rstrip(")") for line in text.splitlines() if line.startswith("![")]
    assert len(shown) >= 2
    assert all((run.folder / path).is_file() for path in shown)
    statistics = json.loads((run.folder / "statistics.json").read_text())
    assert statistics["grade"] == run.grade
    assert len(statistics["hypotheses"]) == len(run.hypotheses) == 1


def test_thresholds_are_written_down_before_anything_runs(tmp_path, pocket_mini, monkeypatch):
    seen = {}

    def instead(*args, **kwargs):
        seen.update(json.loads((tmp_path / "s" / "study.json").read_text()))
        raise RuntimeError("pulled the plug")

    monkeypatch.setattr(experiments, "importance", instead)
    with pytest.raises(RuntimeError, match="plug"):
        basins.study(pocket_mini, out=tmp_path / "s", **QUICK)
    assert {"strong", "moderate", "exploratory", "weak"} <= {rule.split(":")[0] for rule in seen["grades"].split("; ")}
    assert "corrected p" in seen["thresholds"]["importance"]


def test_what_is_done_is_kept_and_what_was_interrupted_goes_on(run, pocket_mini, monkeypatch, tmp_path):
    def never(*args, **kwargs):
        raise AssertionError("it was done before")

    monkeypatch.setattr(experiments, "importance", never)
    lines: list[str] = []
    plan = json.loads((run.folder / "study.json").read_text())
    (run.folder / "study.json").write_text(json.dumps(plan | {"date": "2026-01-02T03:04:05+00:00"}))
    again = basins.study(pocket_mini, out=run.folder, tell=lines.append, **QUICK)
    assert "written before anything ran (2026-01-02 03:04:05" in (run.folder / "analysis.md").read_text()
    pd.testing.assert_frame_equal(again.hypotheses, run.hypotheses)
    assert again.grade == run.grade
    assert "done before" in lines[1]


def test_scores_of_an_interrupted_part_are_not_computed_again(tmp_path, pocket_mini, monkeypatch):

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    scored = []
    original = basins.BasinScorer.score_tokens

    def counted(self, *args, **kwargs):
        scored.append(1)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(basins.BasinScorer, "score_tokens", counted)
    with monkeypatch.context() as broken:
        broken.setattr(sys.modules["basins.experiments.importance"], "measure", interrupt)
        with pytest.raises(KeyboardInterrupt):
            basins.study(pocket_mini, out=tmp_path / "s", **QUICK)
    before = len(scored)
    assert before == 1
    basins.study(pocket_mini, out=tmp_path / "s", pictures=False, **QUICK)
    assert len(scored) == before + 2  # the two halves of the text; not the whole again


def test_another_study_is_never_mixed_in(run, pocket_mini, tmp_path):
    with pytest.raises(BasinsError, match="holds another study: seed was 0 and is 1"):
        basins.study(pocket_mini, out=run.folder, seed=1, **QUICK)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    with pytest.raises(BasinsError, match="not a study"):
        basins.study(pocket_mini, out=tmp_path / "full", **QUICK)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.tex"]


def test_a_file_that_was_changed_is_another_study(tmp_path, pocket_mini, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(experiments, "importance", stop)
    lines, path = pocket.demo_text(), tmp_path / "texts.txt"
    frame = pd.DataFrame({"sequence": range(2000), "position": 1, "a": 0.0})
    assert _digest(pocket_mini) != _digest(random_weights(pocket_mini, 0))
    assert _digest(torch.zeros(3000)) != _digest(torch.zeros(3000).index_fill(0, torch.tensor([1500]), 1.0))
    changed = frame.assign(a=(frame.index == 1000).astype(float))
    path.write_text("\n".join(lines[:8]))
    asked = QUICK | {"texts": str(path), "options": {"importance": {"measure": frame}}}
    for _ in range(2):  # the same again goes on
        with pytest.raises(KeyboardInterrupt):
            basins.study(pocket_mini, out=tmp_path / "s", **asked)
    with pytest.raises(BasinsError, match="another study: options was"):
        basins.study(pocket_mini, out=tmp_path / "s", **asked | {"options": {"importance": {"measure": changed}}})
    path.write_text("\n".join(lines[8:16]))
    with pytest.raises(BasinsError, match="another study: texts was"):
        basins.study(pocket_mini, out=tmp_path / "s", **asked)
    (tmp_path / "s" / "study.json").write_text("{")
    with pytest.raises(BasinsError, match="is no plan of a study"):
        basins.study(pocket_mini, out=tmp_path / "s", **asked)


def test_robustness_is_asked_of_what_importance_compared(tmp_path, pocket_mini):
    """Of a measure with a sign that is its size: on the same tokens the same number."""
    options = {"importance": FEW | {"methods": ["gradient_x_input"], "null_rows": 0}}
    options |= {"robustness": FEW | {"sample_rows": None, "weight_draws": 1, "tested_tokens": 1, "n_draws": 39}}
    asked = QUICK | {"parts": ["importance", "robustness"], "options": options, "pictures": False, "k": 5}
    asked |= {"second_model": random_weights(pocket_mini, 0)}
    found = basins.study(pocket_mini, out=tmp_path / "s", max_length=64, **asked)
    rows = found.hypotheses.set_index("part")
    assert rows.loc["robustness", "layer"] == rows.loc["importance", "layer"]
    assert rows.loc["robustness", "r"] == pytest.approx(rows.loc["importance", "r"], abs=1e-9)
    text = (tmp_path / "s" / "analysis.md").read_text()
    assert "- robustness: pocket-mini: " in text
    assert text.count("It was run without pictures") == 2


def test_wrong_names_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(BasinsError, match="parts"):
        basins.study("pocket-mini", out=tmp_path / "s", parts=["importence"])
    with pytest.raises(BasinsError, match="options names"):
        basins.study("pocket-mini", out=tmp_path / "s", parts=["importance"], options={"layers": {"k": 5}})
    assert not (tmp_path / "s").exists()


def test_tags_that_cannot_be_had_are_refused_before_anything_runs(tmp_path, pocket_mini, monkeypatch):
    def no_tagger(*args, **kwargs):
        raise BasinsError("NLTK's data package 'punkt_tab' is missing")

    def never(*args, **kwargs):
        raise AssertionError("an hour's work, thrown away")

    monkeypatch.setattr("basins.studies.parts.read_tagged", no_tagger)
    monkeypatch.setattr(experiments, "importance", never)
    settings = QUICK | {"parts": ["importance", "linguistic"], "texts": ["Some text."] * 8}
    with pytest.raises(BasinsError, match="punkt_tab"):
        basins.study(pocket_mini, out=tmp_path / "s", **settings)
    assert not (tmp_path / "s").exists()


FEW = {"n_resamples": 100, "n_permutations": 100}
SMALL = {
    "importance": FEW | {"methods": ["attention_value", "gradient"], "null_rows": 12, "weight_draws": 2},
    "memorization": FEW | {"null_passages": 12, "weight_draws": 2, "layers": [1, 3]},
    "linguistic": {"n_resamples": 100, "null_rows": 12, "weight_draws": 2},
    "layers": FEW | {"sample": 8, "null_rows": 8},
    "robustness": FEW | {"sample_rows": 12, "weight_draws": 2, "tested_tokens": 2, "n_draws": 39},
}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_a_model_that_has_learnt_nothing_gets_no_better_than_exploratory_and_the_null_is_named(
    tmp_path, pocket_mini, seed
):
    passages = [passage for dose in (256, 0) for passage in pocket.passages() if passage.dose == dose][:24]
    passages += [passage for passage in pocket.passages() if passage.dose == 0][:16]
    rows = [{"text": one.text, "group": f"dose {one.dose}", "dose": one.dose} for one in passages]
    pd.DataFrame(rows).to_json(tmp_path / "passages.jsonl", orient="records", lines=True)
    parts = SMALL | {"memorization": SMALL["memorization"] | {"passages": str(tmp_path / "passages.jsonl")}}
    model = random_weights(pocket_mini, 100 + seed)
    options = {"limit": 16, "max_length": 64, "k": 8, "options": parts, "pictures": False, "seed": seed}
    found = basins.study(model, second_model=None, out=tmp_path / "s", **options)
    assert found.grade in ("weak", "exploratory")
    assert set(found.parts) == set(SMALL)
    # Something survives by chance or by the texts themselves; whatever else does is named with the null that has it.
    assert RANDOM in found.why
    shown = found.hypotheses[found.hypotheses["null"] == SHOWN]
    assert len(shown)
    assert shown["flags"].str.contains(IN_NULL).all()
    assert RANDOM in (tmp_path / "s" / "analysis.md").read_text(encoding="utf-8").partition("##")[0]


def table(*rows: tuple[str, str]) -> pd.DataFrame:
    """Hypotheses for which nulls were run: one that is flagged is shown by them."""
    nulls = [SHOWN if IN_NULL in flags else NOT_SHOWN for _, flags in rows]
    columns = [{"name": f"h{i}", "grade": grade, "flags": flags} for i, (grade, flags) in enumerate(rows)]
    named = [RANDOM if null == SHOWN else "" for null in nulls]
    return pd.DataFrame(columns).assign(part="importance", null=nulls, nulls_that_show_it=named)


@pytest.mark.parametrize(
    ("rows", "grade"),
    [
        ([("none", NOTHING), ("none", NOTHING)], "weak"),
        ([("exploratory", ""), ("none", NOTHING)], "exploratory"),
        ([("moderate", ""), ("none", "")], "exploratory"),  # one is not several
        ([("moderate", ""), ("moderate", "")], "moderate"),
        ([("strong", ""), ("none", "")], "strong"),
        ([("strong", IN_NULL), ("moderate", ""), ("none", "")], "exploratory"),
        ([("strong", f"{NOISY}; {IN_NULL}"), ("none", "")], "weak"),
        ([("moderate", ""), ("moderate", IN_NULL)], "exploratory"),
    ],
)
def test_the_grade_follows_the_rules(rows, grade):
    found, why = overall(table(*rows))
    assert found == grade
    assert why.endswith(".")
    assert ("a null shows too" in why or "by a null too" in why) == any(IN_NULL in flags for _, flags in rows)
    assert (RANDOM in why) == any(IN_NULL in flags for _, flags in rows)


def test_without_a_null_nothing_is_better_than_exploratory():
    found = table(("strong", ""), ("moderate", ""), ("moderate", ""))
    assert overall(found.assign(null=NOT_RUN))[0] == "exploratory"
    assert overall(found.assign(null=ABOUT))[0] == "weak"


def test_what_robustness_tests_counts_once():
    found = table(("exploratory", ""), ("none", "")).assign(null=NOT_SHOWN)
    names = ["relative score and gradient", "gradient and compression"]
    both = found.assign(part=["robustness", "importance"], name=names)
    assert overall(both) == ("weak", "none of 1 hypotheses survives correction.")
    assert overall(both.assign(name=["relative score and loss", names[1]]))[0] == "exploratory"
    assert overall(both[:1])[0] == "exploratory"


def test_red_flags():
    row = {"low": -0.1, "high": 0.5, "p_corrected": 0.2, "second_model": "differs"}
    assert flags_of(row) == [NOISY, NOTHING]
    assert flags_of(row | {"low": 0.3, "p_corrected": 0.001}) == ["does not replicate"]
    assert flags_of(row | {"low": 0.3, "p_corrected": 0.001, "second_model": "not run"}) == []
    assert flags_of(row | {"low": float("nan"), "p_corrected": float("nan"), "second_model": "-"}) == [NOTHING]
    assert CONFOUNDED not in flags_of(row)
