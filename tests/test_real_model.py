"""A real pretrained model that nobody here trained: SmolLM2-135M from its .gguf, at all 30 transitions."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import basins
import basins.attribution
from basins import BasinScorer

pytestmark = pytest.mark.real_model

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def smollm2(smollm2_gguf):
    return basins.load_model(smollm2_gguf)


def readme_texts() -> list[str]:
    """The text of the README's example."""
    found = re.search(r"basins\.pocket\.demo_text\(\)\[:(\d+)\]", README)
    assert found
    return basins.pocket.demo_text()[: int(found[1])]


def test_scores_the_readme_text_at_all_transitions_by_the_core(smollm2):
    scorer = BasinScorer(smollm2, k=15, neighbors="cross_sequence", exclude_first=1)
    scores = scorer.score_texts(readme_texts(), max_length=128, long_texts="truncate")
    assert scores.layers == tuple(range(30))
    assert scores.settings["replay"] == {"core": 30}
    assert scores.values.shape == (30, 5, 128)
    assert bool(scores.values[:, :, 1:].isfinite().all())
    # What the design knows of this model: raw is density, relative is not.
    table = scores.summary().set_index("layer")
    assert (table.loc[3:28, "rho(raw, density)"] > 0.8).all()
    assert table["rho(relative, lookup)"].median() < 0.95


def test_the_cached_next_layer_is_reproduced_behind_massive_activations(smollm2):
    tokens = smollm2.to_tokens(readme_texts()[0])[:, :48]
    with torch.no_grad():
        _, cache = smollm2.run_with_cache(tokens, names_filter=lambda name: "resid" in name)
    norms = cache["blocks.15.hook_resid_pre"][0].norm(dim=-1)
    assert norms[0] > 20 * norms[1:].median()
    scores = BasinScorer(smollm2, k=5).score(cache, tokens=tokens, layers=[0, 15, -1])
    assert scores.settings["replay"] == {"core": 3}
    assert scores.token_strings[0][1].strip()


def test_the_importance_experiment_runs_on_it(smollm2):
    from basins.experiments import importance

    small = {"limit": 4, "layers": [5, 20], "max_length": 64, "sample_rows": 4, "ablated": 32, "steps": 2, "k": 5}
    found = importance(smollm2, n_resamples=100, n_permutations=100, **small)
    assert set(found.verdicts["method"]) == set(basins.attribution.METHODS)
    whole = found.correlations[found.correlations["part"] == "all"]
    assert whole["rho"].notna().all()
    assert "no second model" in found.reading


def test_natural_memorisation_has_all_three_labels(smollm2):
    """A few famous passages, their controls and plain text; the matched controls are odd prose, and harder."""
    from dataclasses import replace

    from basins.experiments import memorization
    from basins.experiments.memorization_passages import natural

    everything = natural()
    famous = [i for i, group in enumerate(everything.group) if group == "famous"][20:30]
    sources = {everything.source[i] for i in famous}
    novel = [i for i, group in enumerate(everything.group) if group == "novel" and everything.source[i] in sources]
    plain = [i for i, group in enumerate(everything.group) if group == "wikitext"][:8]
    kept = [*famous, *novel, *plain]
    some = replace(
        everything,
        text=tuple(everything.text[i] for i in kept),
        group=tuple(everything.group[i] for i in kept),
        source=tuple(everything.source[i] for i in kept),
    )
    found = memorization(smollm2, passages=some, layers=[15], n_resamples=100, n_permutations=100)
    labels = found.labels[found.labels["excluded"].isna()]
    by_group = labels.groupby("group")[["free", "forced", "run"]].sum()
    assert (by_group.loc["novel"] == 0).all()
    losses = labels.groupby("group")["loss"].mean()
    assert losses["famous"] < losses["novel"]
    assert labels["forced_match"].between(0, 1).all()
