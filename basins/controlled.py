"""Controlled fine-tuning: who is trained on is drawn at random, and a difference in differences says what it changed.

Half of the quotes is trained on, the other half of the same kind is the control; the draw is made anew for every seed,
and a crossover exchanges the halves. A passage's own difficulty cancels in its change (after less before), and what
training does to any text of the kind cancels between the halves. Text of another kind is a group of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from basins import stats
from basins.errors import BasinsError, choose
from basins.settings import whole

if TYPE_CHECKING:
    import pandas as pd

GROUPS = ("trained", "control", "unrelated")
KEYS = ("passage", "run", "group", "epoch", "value")


@dataclass(frozen=True)
class Assignment:
    """How often each quote is trained on in one run. `exposures`: one number a quote; 0 makes it a control."""

    exposures: tuple[int, ...]
    seed: int
    crossover: bool

    @property
    def run(self) -> str:
        return f"seed {self.seed}{', crossover' if self.crossover else ''}"

    @property
    def trained(self) -> list[int]:
        return [quote for quote, times in enumerate(self.exposures) if times]

    @property
    def control(self) -> list[int]:
        return [quote for quote, times in enumerate(self.exposures) if not times]

    def with_unrelated(self, n: int) -> tuple[int, ...]:
        """Exposures of the quotes and of `n` unrelated passages after them, which are never trained on."""
        return (*self.exposures, *[0] * n)

    def to_frame(self, n_unrelated: int = 0) -> pd.DataFrame:
        """One row a passage, quotes first: `passage` (its number), `group`, `exposures`, `run`."""
        import pandas as pd

        groups = ["trained" if times else "control" for times in self.exposures] + ["unrelated"] * n_unrelated
        exposures = self.with_unrelated(n_unrelated)
        return pd.DataFrame({"passage": range(len(groups)), "group": groups, "exposures": exposures, "run": self.run})


def randomize(
    n_quotes: int, seed: int, crossover: bool = False, exposures: Sequence[int] = (1, 4, 16, 64)
) -> Assignment:
    """Draw which half of the quotes is trained on and deal the exposures evenly over it, both from `seed`.

    `crossover=True` exchanges the halves of the same seed: every quote is trained on once in the two runs. Of an odd
    number the smaller half is trained on (in the crossover the larger one). `exposures=(64,)` trains all alike.

    >>> randomize(100, seed=0).to_frame().exposures.value_counts().to_dict()
    {0: 50, 1: 13, 4: 13, 16: 12, 64: 12}
    """
    whole("n_quotes", n_quotes, 4, "half of them is trained on.")
    whole("seed", seed, 0, "it draws the halves.")
    doses = list(exposures)
    for dose in doses:
        whole("exposures", dose, 1, "every quote of the trained half is shown; the controls have 0.")
    half = n_quotes // 2
    if not 1 <= len(doses) <= half:
        raise BasinsError(f"exposures has {len(doses)} levels for {half} trained quotes. Possible: 1 to {half} levels.")
    order = np.random.default_rng(seed).permutation(n_quotes)
    chosen = order[half:] if crossover else order[:half]
    found = np.zeros(n_quotes, dtype=np.int64)
    found[chosen] = [doses[place % len(doses)] for place in range(len(chosen))]
    return Assignment(tuple(found.tolist()), int(seed), bool(crossover))


def changes(frame: Any, *, before: int = 0, after: int | None = None, by: Sequence[str] = ("layer",)) -> pd.DataFrame:
    """One row a passage, run and layer: `before`, `after` and `change` = after - before, with the other columns.

    `frame` holds one `value` for each `passage`, `run`, `group`, `epoch` and level of `by`. `before` and `after` are
    epochs; None: the last. A passage measured twice or at one of the two epochs only raises BasinsError.
    """
    missing = [column for column in (*KEYS, *by) if column not in frame.columns]
    if missing:
        raise BasinsError(f"the frame has no column {missing[0]!r}. It needs {', '.join((*KEYS, *by))}.")
    epochs = sorted(frame["epoch"].unique())
    after = epochs[-1] if after is None and epochs else after
    for name, epoch in (("before", before), ("after", after)):
        if epoch not in epochs or before == after:
            raise BasinsError(f"{name}={epoch}: needed are two epochs. The frame has {', '.join(map(str, epochs))}.")
    keys = ["passage", "run", *by]
    repeated = frame[frame.duplicated([*keys, "epoch"])]
    if len(repeated):
        place = ", ".join(f"{key} {repeated.iloc[0][key]}" for key in [*keys, "epoch"])
        raise BasinsError(f"{len(repeated)} rows repeat a measurement, the first at {place}. Average or drop them.")
    first, last = (frame[frame["epoch"] == epoch].set_index(keys) for epoch in (before, after))
    if set(first.index) != set(last.index):
        place = dict(zip(keys, min(set(first.index) ^ set(last.index), key=str)))
        raise BasinsError(f"{place} is measured at one of the epochs {before} and {after} only.")
    found = first.drop(columns=["epoch", "value"])
    found["before"], found["after"] = first["value"], last["value"].reindex(first.index)
    found["change"] = found["after"] - found["before"]
    return found.reset_index()


def difference_in_differences(
    frame: pd.DataFrame,
    *,
    treated: str = "trained",
    reference: str = "control",
    before: int = 0,
    after: int | None = None,
    by: Sequence[str] = ("layer",),
    correction: str = "holm",
    **options: Any,
) -> pd.DataFrame:
    """(treated after - before) - (reference after - before), one row for each level of `by`.

    `frame` as in `changes`; ("measure", "layer") as `by` estimates and corrects over both. The groups are compared
    within each run, so that what a run does to all texts alike cancels, and averaged over runs. The error is that of
    passages: Welch's t over them where each was measured in one run, otherwise passages are resampled with all their
    runs (`stats.welch`). So the interval is about other passages, not about other seeds of the training. Columns beside
    those of `Statistic.to_dict`: `treated_change` and `reference_change`, plain means of each group.
    """
    both = _two_groups(frame, treated, reference, before, after, by)
    return _estimates(both, treated, list(by), correction, options)


def dose_response(
    frame: pd.DataFrame,
    *,
    before: int = 0,
    after: int | None = None,
    by: Sequence[str] = ("layer",),
    correction: str = "holm",
    **options: Any,
) -> pd.DataFrame:
    """The difference in differences of the quotes of each number of `exposures` from all controls of their runs.

    One row for each level of `by` and number of exposures, corrected over all of them together.
    """
    import pandas as pd

    if "exposures" not in frame.columns:
        raise BasinsError("the frame has no column 'exposures'. Join Assignment.to_frame() to it.")
    both = _two_groups(frame, "trained", "control", before, after, by)
    is_trained = both["group"] == "trained"
    parts = []
    for times in sorted(both.loc[is_trained, "exposures"].unique()):
        part = both[(is_trained & (both["exposures"] == times)) | ~is_trained]
        runs = part.loc[part["group"] == "trained", "run"].unique()
        parts.append(part[part["run"].isin(runs)].assign(dose=times))
    every = pd.concat(parts, ignore_index=True).drop(columns="exposures").rename(columns={"dose": "exposures"})
    return _estimates(every, "trained", [*by, "exposures"], correction, options)


def dose_trend(
    frame: pd.DataFrame,
    *,
    before: int = 0,
    after: int | None = None,
    by: Sequence[str] = ("layer",),
    correction: str = "holm",
    **options: Any,
) -> pd.DataFrame:
    """Spearman correlation of change and exposures over the trained quotes, changes less the mean of their run."""
    both = _two_groups(frame, "trained", "control", before, after, by)
    trained = both[both["group"] == "trained"].copy()
    trained["change"] -= trained.groupby([*by, "run"])["change"].transform("mean")

    def test(part: Any) -> stats.Statistic:
        return stats.spearman(part["change"], part["exposures"], clusters=_clusters(part), **options)

    return _table(trained, list(by), test, correction)


def _two_groups(frame: Any, treated: str, reference: str, before: int, after: int | None, by: Sequence[str]) -> Any:
    """The changes of two groups, each present in every run."""
    choose("treated", treated, GROUPS)
    choose("reference", reference, [group for group in GROUPS if group != treated])
    found: Any = changes(frame, before=before, after=after, by=by)
    found = found[found["group"].isin([treated, reference])]
    for run in found["run"].unique():
        groups = set(found.loc[found["run"] == run, "group"])
        if len(groups) < 2:
            raise BasinsError(f"run {run!r} has no passages of the groups {treated!r} and {reference!r} to compare.")
    if not len(found):
        raise BasinsError(f"the frame has no passages of the groups {treated!r} and {reference!r}.")
    return found


def _estimates(both: Any, treated: str, by: list[str], correction: str, options: dict[str, Any]) -> Any:
    def test(part: Any) -> stats.Statistic:
        # The middle of a run's two means is taken from both, which leaves their difference and removes the run.
        means = part.groupby(["run", "group"])["change"].mean().groupby("run").mean()
        centered = part["change"] - part["run"].map(means)
        return stats.welch(centered, part["group"] == treated, clusters=_clusters(part), **options)

    table = _table(both, by, test, correction)
    for side, rows in (("treated", both["group"] == treated), ("reference", both["group"] != treated)):
        plain = both[rows].groupby(by)["change"].mean().rename(f"{side}_change").reset_index()
        table = table.merge(plain, on=by, how="left")
    return table


def _clusters(part: Any) -> Any:
    """The passage of each row; None where no passage comes twice, since then the rows are independent."""
    return part["passage"] if part["passage"].duplicated().any() else None


def _table(frame: Any, by: list[str], test: Any, correction: str) -> Any:
    """One row of `test` for each level of `by`, corrected over all."""
    import pandas as pd

    levels, found = [], []
    for level, part in frame.groupby(by, sort=True):
        levels.append(dict(zip(by, level if isinstance(level, tuple) else (level,))))
        found.append(test(part))
    corrected = stats.correct(found, correction)
    return pd.DataFrame([level | result.to_dict() for level, result in zip(levels, corrected)])
