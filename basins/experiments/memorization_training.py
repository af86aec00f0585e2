"""Controlled fine-tuning: half of the quotes, drawn at random, is trained on; what changes, by layer and by dose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from basins.aggregates import score_aggregates
from basins.controlled import Assignment, difference_in_differences, dose_response, randomize
from basins.experiments.memorization_passages import rows
from basins.finetuning import finetune
from basins.labels import label
from basins.losses import token_losses
from basins.progress import progress
from basins.quotes import quotes, unrelated
from basins.scorer import BasinScorer

if TYPE_CHECKING:
    import pandas as pd

WINDOW = 48  # tokens of text of a quote
UNIFORM, GRADED = (16,), (1, 4, 16, 64)
DYNAMICS = (0, 1, 2, 4, 8, 16)
MEASURES = ("relative_mean", "update_mean", "raw_mean", "lookup_relative_mean", "density_mean")


@dataclass(frozen=True)
class Training:
    """`recited`: a row for each run, epoch, group and number of exposures. `effect`: difference in differences, a row
    for each (exposures plan, measure, layer). `by_exposures`: the same for each number of exposures. `dynamics`: a row
    for each epoch, group and layer of the first run; empty where it was not asked for."""

    recited: pd.DataFrame
    effect: pd.DataFrame
    by_exposures: pd.DataFrame
    dynamics: pd.DataFrame
    settings: dict[str, Any]


def train(
    model: Any,
    analysis: dict[str, Any],
    *,
    texts: list[str] | None,
    n_seeds: int,
    learning_rate: float,
    dynamics: bool,
    layers: tuple[int, ...],
    seed: int,
) -> Training:
    """Fine-tune copies of `model`: for each seed, both halves in turn, once 16 times each and once 1, 4, 16, 64 times.

    `texts`: passages of one kind to draw from; None: the bundled quotes, with unrelated text beside them, which is
    never trained on. The model itself is not touched.
    """
    import pandas as pd

    drawn = [quote.text for quote in quotes()] if texts is None else texts
    other = [quote.text for quote in unrelated()] if texts is None else []
    batch, prompt = rows(model, [*drawn, *other], WINDOW)
    plans = [
        ("uniform" if exposures is UNIFORM else "graded", randomize(len(drawn), seed + number, crossover, exposures))
        for number in range(n_seeds)
        for exposures in (UNIFORM, GRADED)
        for crossover in (False, True)
    ]
    frames: list[tuple[str, pd.DataFrame]] = []
    with progress("fine-tuning", len(plans)) as advance:
        for number, (plan, assignment) in enumerate(plans):
            epochs = DYNAMICS if dynamics and number == 0 else (0, max(assignment.exposures))
            options = {"learning_rate": learning_rate, "checkpoints": epochs, "seed": assignment.seed}
            exposures = assignment.with_unrelated(len(other))
            for checkpoint in finetune(model, batch.tokens, batch.attention_mask, exposures=exposures, **options):
                found = _measure(checkpoint.model, batch, prompt, analysis, layers)
                found = found.merge(_about(assignment, plan, len(other)), on="passage", validate="many_to_one")
                frames.append((plan, found.assign(epoch=checkpoint.epoch)))
            advance(1)
    every = pd.concat([frame for _, frame in frames], ignore_index=True)
    return Training(
        _recited(every),
        _effects(every, difference_in_differences),
        _effects(every[every["plan"] == "graded"], dose_response),
        _dynamics(every, plans[0][1].run) if dynamics else pd.DataFrame(),
        {
            "passages": len(drawn),
            "unrelated": len(other),
            "runs": [f"{plan}, {assignment.run}" for plan, assignment in plans],
            "exposures": {"uniform": UNIFORM, "graded": GRADED},
            "learning_rate": learning_rate,
            "window": WINDOW,
        },
    )


def _about(assignment: Assignment, plan: str, n_unrelated: int) -> pd.DataFrame:
    frame = assignment.to_frame(n_unrelated)
    return frame.assign(plan=plan, run=f"{plan}, {assignment.run}")


def _measure(model: Any, batch: Any, prompt: int, analysis: dict[str, Any], layers: tuple[int, ...]) -> Any:
    """A row a (passage, measure, layer), with loss and match of the passage."""
    labels = label(model, batch.tokens, batch.attention_mask, prompt_length=prompt)
    where = labels.continuation
    scores = BasinScorer(model, **analysis).score_tokens(batch.tokens, batch.attention_mask, layers=layers)
    found: Any = score_aggregates(scores, where)
    found = found.loc[found["measure"].isin(MEASURES)].rename(columns={"sequence": "passage"})
    losses = token_losses(model, batch.tokens, batch.attention_mask).masked_fill(~where, float("nan")).nanmean(1)
    table: Any = labels.to_frame().rename(columns={"sequence": "passage"})[["passage", "free_edit", "free"]]
    table["loss"] = losses.numpy()
    return found[["passage", "measure", "layer", "value"]].merge(table, on="passage", validate="many_to_one")


def _recited(every: Any) -> Any:
    """Share of passages recited freely, with match and loss."""
    once = every.drop_duplicates(["passage", "run", "epoch"])
    once = once[once["free"].notna()].assign(free=lambda frame: frame["free"].astype("float64"))
    groups = once.groupby(["plan", "run", "epoch", "group", "exposures"], sort=False)
    found = groups.agg(recited=("free", "mean"), match=("free_edit", "mean"), loss=("loss", "mean"))
    return found.assign(passages=groups.size()).reset_index()


def _effects(every: Any, analysis: Any) -> Any:
    """An analysis of `basins.controlled` for each plan, over measures and layers, before against after."""
    import pandas as pd

    found = []
    for plan, frame in every.groupby("plan", sort=False):
        ends = frame.groupby("run")["epoch"].transform("max")
        kept = frame[(frame["epoch"] == 0) | (frame["epoch"] == ends)]
        found.append(analysis(kept.dropna(subset=["value"]), by=("measure", "layer")).assign(plan=plan))
    return pd.concat(found, ignore_index=True)


def _dynamics(every: Any, run: str) -> Any:
    """Means by epoch, group and layer of the run that was looked at on the way."""
    one = every[(every["run"] == f"uniform, {run}") & (every["measure"] == "relative_mean")]
    one = one.assign(free=one["free"].astype("float64"))
    groups = one.groupby(["epoch", "group", "layer"], sort=False)
    return groups.agg(
        relative=("value", "mean"), loss=("loss", "mean"), match=("free_edit", "mean"), recited=("free", "mean")
    ).reset_index()
