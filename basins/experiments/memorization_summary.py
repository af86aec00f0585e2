"""The memorisation experiment's tables as a terminal shows them: few columns, a title that says what they mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from basins.experiments.frames import where

if TYPE_CHECKING:
    import pandas as pd

    from basins.experiments.memorization import Memorization

DOSES = ["model", "dose", "passages", "free", "forced", "run", "forced_match", "loss"]
NEIGHBORHOOD = ["state_norm", "neighbor_distance", "two_nn", "mle_dimension"]
SCORES = ["relative_mean", "lookup_relative_mean", "update_mean", "raw_mean", "density_mean"]


def summary_tables(found: Memorization) -> dict[str, pd.DataFrame]:
    """Title -> table; only what the run has."""
    shown: dict[str, Any] = {}
    if len(found.doses):
        shown["Labels and loss by dose (shares of passages; loss in nats a token)"] = found.doses[DOSES]
        kept = [name for name in SCORES if name in found.doses]
        shown["Mean scores by dose, layers 1 and up (nats)"] = found.doses[["model", "dose", *kept]]
        shown["Rank correlation of dose with each score, by layer"] = _response(found)
    else:
        shown["Labels: passages of each group that count as memorised"] = _labels(found)
    areas = ["model", "contrast", "name", "auroc", "auroc_low", "auroc_high", "tpr_5"]
    shown["Baselines without layers: area under the ROC curve"] = found.baselines[areas]
    shown["Best layer of each measure: area under the ROC curve furthest from 0.5"] = best_layers(found.tests)
    if len(found.recited):
        ends: Any = found.recited
        ends = ends[ends["epoch"].isin([0, 16, 64])]
        shown["Fine-tuned: share of passages recited"] = ends[
            ["plan", "run", "epoch", "group", "exposures", "passages", "recited", "loss"]
        ]
        effect: Any = where(found.effect, measure="relative_mean")
        shown["Fine-tuned: difference in differences of the relative score (nats)"] = effect[
            ["plan", "layer", "estimate", "low", "high", "p_corrected", "treated_change", "reference_change"]
        ]
    adds: Any = found.added[found.added["name"].isin(["baselines", "compression", "both", "compression adds"])]
    shown["What compression adds to the loss baselines: cross-validated area under the ROC curve"] = adds[
        ["model", "contrast", "sample", "name", "estimate", "low", "high", "p_corrected"]
    ]
    verdict = ["contrast", "grade", "layer", "r", "low", "high", "p_corrected", "auroc", "auroc_loss", "second_model"]
    shown["Verdicts: relative re-run score against group"] = found.verdicts[verdict]
    return shown


def _response(found: Memorization) -> Any:
    rows: Any = found.dose_response
    rows = rows[rows["measure"].isin(SCORES)]
    table = rows.pivot_table(index=["model", "layer"], columns="measure", values="rho", sort=False)
    return table[[name for name in SCORES if name in table]].reset_index()


def _labels(found: Memorization) -> Any:
    rows: Any = found.labels
    rows = rows[rows["excluded"].isna()]
    kinds = ["free", "forced", "run", "exact"]
    rows = rows.assign(**{kind: rows[kind].astype("float64") for kind in kinds})
    groups = rows.groupby(["model", "group"], sort=False)
    sums = groups[kinds].sum().astype(int)
    means = groups[["free_edit", "forced_match", "loss"]].mean()
    return sums.join(means).assign(passages=groups.size()).reset_index()


def best_layers(tests: Any) -> Any:
    """For each contrast and measure the layer whose AUROC is furthest from 0.5; chosen after looking, so no p."""
    rows = tests
    shown = rows["measure"].str.endswith("_mean") | rows["measure"].isin(NEIGHBORHOOD)
    rows = rows[rows["layer"].notna() & rows["auroc"].notna() & shown]
    far = (rows["auroc"] - 0.5).abs()
    best = rows.loc[far.groupby([rows["model"], rows["contrast"], rows["measure"]], sort=False).idxmax()]
    return best[["model", "contrast", "measure", "layer", "auroc", "auroc_low", "auroc_high", "r"]]
