"""The parts of a study, in the order in which they run: how each is called, and which of its figures are shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from basins import experiments
from basins.errors import BasinsError, choose
from basins.experiments.importance_measures import COSTLY, size_of
from basins.experiments.importance_words import THRESHOLDS as FOR_IMPORTANCE
from basins.experiments.layers_words import THRESHOLDS as FOR_LAYERS
from basins.experiments.linguistic_words import THRESHOLDS as FOR_LINGUISTIC
from basins.experiments.loaded import NamedModel
from basins.experiments.memorization_words import THRESHOLDS as FOR_MEMORIZATION
from basins.experiments.robustness_words import THRESHOLDS as FOR_ROBUSTNESS
from basins.experiments.score_store import ScoreStore
from basins.tagged_texts import read_tagged


@dataclass(frozen=True)
class Shared:
    """What all parts have in common. `store`: scores that several parts need are computed once."""

    first: NamedModel
    second: NamedModel | None
    texts: list[str] | str | None
    limit: int | None
    max_length: int
    layers: Any
    k: int
    seed: int
    store: ScoreStore = field(repr=False)


@dataclass(frozen=True)
class Part:
    """`title` heads its section and its panel; `figures`: those of its own that the study shows, in order.

    `any_text`: whether it runs on the study's texts, or on some of its own.
    """

    name: str
    title: str
    thresholds: str = field(repr=False)
    figures: tuple[str, ...]
    any_text: bool = True

    def check(self, shared: Shared, options: Mapping[str, Any]) -> None:
        """Before anything runs: what this part could only refuse after the others have run for hours."""
        if self.name == "linguistic":
            texts = options.get("texts", shared.texts)
            read_tagged("pocket-demo" if texts is None else texts, options.get("limit", shared.limit))

    def run(self, shared: Shared, options: Mapping[str, Any], findings: list[PartResult]) -> Any:
        """The experiment's result. `findings`: what earlier parts found, for the part that tests how robust it is."""
        settings: dict[str, Any] = {"second_model": shared.second, "layers": shared.layers, "k": shared.k}
        settings |= {"seed": shared.seed, "store": shared.store}
        if self.any_text:
            settings |= {"texts": shared.texts, "limit": shared.limit, "max_length": shared.max_length}
        if self.name == "robustness":
            settings |= best_finding(findings)
        return getattr(experiments, self.name)(shared.first, **settings | dict(options))


PARTS = (
    Part(
        "importance",
        "Do tokens that matter sit where blocks compress less?",
        FOR_IMPORTANCE,
        ("layer_curves", "agreement"),
    ),
    Part(
        "memorization",
        "Do memorised sequences compress differently?",
        FOR_MEMORIZATION,
        ("layer_curves", "dose_response", "roc"),
        any_text=False,
    ),
    Part(
        "linguistic",
        "Do blocks compress parts of speech differently?",
        FOR_LINGUISTIC,
        ("means_by_tag", "contrasts", "variance_explained"),
    ),
    Part(
        "layers",
        "What do blocks do to neighbourhoods from layer to layer?",
        FOR_LAYERS,
        ("profiles", "density", "geometry", "shares"),
    ),
    Part(
        "robustness",
        "Does the clearest finding survive the method's choices, and do nulls show it too?",
        FOR_ROBUSTNESS,
        ("variations", "nulls"),
    ),
)
NAMES = tuple(part.name for part in PARTS)


def choose_parts(names: list[str] | None) -> tuple[Part, ...]:
    """The parts of these names, in their own order; None: all."""
    if names is None:
        return PARTS
    if not names:
        raise BasinsError(f"parts is empty. Possible: {', '.join(NAMES)}.")
    for name in names:
        choose("parts", name, NAMES)
    return tuple(part for part in PARTS if part.name in names)


@dataclass(frozen=True)
class PartResult:
    """A part as it lies in its folder: written before this run or in it."""

    part: Part
    folder: Path
    manifest: dict[str, Any]
    resumed: bool

    @property
    def drawn(self) -> bool:
        return any((self.folder / "figures").glob("*.png"))

    def table(self, name: str) -> Any:
        """One of its tables; an empty frame where it has none of that name."""
        import pandas as pd

        path = self.folder / "tables" / f"{name}.parquet"
        return pd.read_parquet(path) if path.is_file() else pd.DataFrame()

    def tokens(self, model: str) -> Any:
        """All columns of its tokens for one model."""
        import pandas as pd

        path = self.folder / "tokens" / f"{model.replace('/', '_')}.parquet"
        return pd.read_parquet(path) if path.is_file() else pd.DataFrame()


def best_finding(findings: list[PartResult]) -> dict[str, Any]:
    """What robustness is asked of: the importance measure with the best verdict, at its layer; {} is its own default.

    As importance compares it: of a signed measure its size. Measures that only a sample of tokens has are passed over:
    a variation would leave too few of them.
    """
    for part in findings:
        if part.part.name != "importance":
            continue
        judged = part.table("verdicts")
        judged = judged[~judged["method"].isin(COSTLY) & judged["partial"].notna()]
        if len(judged):
            row = judged.iloc[0]
            frame = part.tokens(next(iter(part.manifest["models"])))
            method = row["method"]
            columns = frame[["layer", "sequence", "position"]].assign(**{method: size_of(method, frame[method])})
            return {"measure": columns.dropna(), "layer": int(row["layer"])}
    return {}
