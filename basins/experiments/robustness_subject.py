"""What stays the same while the method varies: model, text, and the finding under study."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

from basins.errors import BasinsError, choose
from basins.experiments.score_store import ScoreStore
from basins.experiments.sequences import Sequences
from basins.experiments.text_sample import TextSample
from basins.experiments.token_columns import CONFOUNDS, KEY, align, token_facts
from basins.stats import correlation_grid

if TYPE_CHECKING:
    import pandas as pd

MEASURES = ("loss", "log_frequency", "position")
COMPARED = ("relative", "update", "raw")
EFFECTS = (
    *("layer", "score", "effect", "low", "high", "p", "p_corrected"),
    *("rho", "n_tokens", "n_clusters", "reason"),
)


@dataclass(frozen=True)
class Measure:
    """The column that the scores are compared with: a fact about tokens, or `column` with its key."""

    name: str
    column: pd.DataFrame | None = None

    @property
    def confounds(self) -> list[str]:
        """What is removed: all confounds but the measure itself."""
        return [name for name in CONFOUNDS if name != self.name]

    def join(self, facts: pd.DataFrame) -> Any:
        """The facts with the measure beside them."""
        if self.column is None:
            return facts
        keys = [key for key in KEY if key in self.column]
        return facts.merge(self.column, how="left", on=keys, validate="many_to_one")


def read_measure(measure: str | pd.DataFrame) -> Measure:
    """One of `MEASURES`, or a frame with `sequence`, `position`, perhaps `layer`, and one more column: the values."""
    if isinstance(measure, str):
        return Measure(choose("measure", measure, MEASURES))
    columns = list(getattr(measure, "columns", []))
    values = [name for name in columns if name not in KEY]
    if len(values) != 1 or not {"sequence", "position"} <= set(columns):
        raise BasinsError(
            f"measure has the columns {columns}. Possible: one of {', '.join(map(repr, MEASURES))}, or a frame with "
            "sequence, position, perhaps layer (else the values hold at every layer), and one column of values. "
            "Sequences are numbered as basins.experiments.sequences.sequences cuts the texts."
        )
    name = str(values[0])
    if name in (*CONFOUNDS, *COMPARED):
        raise BasinsError(f"measure's column is called {name!r}, as one of the experiment's own. Rename it.")
    keys = [key for key in KEY if key in columns]
    if measure.duplicated(keys).any():
        raise BasinsError(f"measure has several rows for one ({', '.join(keys)}). Pass one value a token.")
    from pandas.api.types import is_numeric_dtype

    wrong = [column for column in (*keys, values[0]) if not is_numeric_dtype(measure[column])]
    if wrong:
        raise BasinsError(
            f"measure's column {wrong[0]!r} holds {measure[wrong[0]].dtype}, not numbers. Write kinds of tokens as "
            "numbers (1 where a token is of the kind, 0 elsewhere)."
        )
    column: Any = measure[[*keys, values[0]]]
    return Measure(name, column.set_axis([*keys, name], axis=1))


def load_measure(path: str | Path) -> pd.DataFrame:
    """A frame for `read_measure` from a .csv or .parquet file."""
    import pandas as pd

    path = Path(path)
    readers: dict[str, Any] = {".csv": pd.read_csv, ".parquet": pd.read_parquet}
    if path.suffix not in readers or not path.is_file():
        raise BasinsError(
            f"measure {str(path)!r} is neither one of {', '.join(map(repr, MEASURES))} nor an existing .csv or "
            ".parquet file."
        )
    try:
        return readers[path.suffix](path)
    # pyarrow's errors and pandas' own are ValueErrors.
    except (OSError, ValueError) as error:
        raise BasinsError(
            f"measure {str(path)!r} cannot be read as {path.suffix} ({error}). Is the file whole?"
        ) from error


@dataclass(frozen=True, kw_only=True)
class Subject(TextSample):
    """One model on one text, and the finding under study; `facts` hold the measure."""

    measure: Measure
    statistics: dict[str, Any]

    def effects(
        self, frame: pd.DataFrame, layers: Iterable[int] | None = None, given: list[str] | None = None
    ) -> pd.DataFrame:
        """Rank correlation of each score with the measure, confounds (or `given`) removed: a row a layer and score.

        `p` by rotating sequences, `p_corrected` by max-T over all rows of the table.
        """
        import pandas as pd

        here: Any = frame if layers is None else frame[frame["layer"].isin(list(layers))]
        confounds = self.measure.confounds if given is None else given
        aligned = align(here, [*COMPARED, self.measure.name, *self.measure.confounds])
        if not aligned.layers or aligned.cluster.size == 0:
            raise BasinsError(f"no token has a score and a value of {self.measure.name!r}: nothing can be compared.")
        cells = correlation_grid(
            aligned[[self.measure.name]],
            aligned[COMPARED],
            aligned[confounds],
            clusters=aligned.cluster,
            **self.statistics,
        )
        rows = []
        for cell in cells:
            raw, found = cell.raw, cell.partial
            row = [aligned.layers[cell.layer], cell.y, found.estimate, *found.interval, found.p, found.p_corrected]
            row += [raw.estimate, found.n_tokens, found.n_clusters, found.reason]
            rows.append(dict(zip(EFFECTS, row, strict=True)))
        return pd.DataFrame(rows, columns=pd.Index(EFFECTS))


def subject(
    model: Any,
    rows: Sequences,
    pick: Int[Tensor, "row"],
    layers: tuple[int, ...],
    measure: Measure,
    analysis: dict[str, Any],
    statistics: dict[str, Any],
    store: ScoreStore,
) -> Subject:
    facts = measure.join(token_facts(model, rows, layers))
    if facts[measure.name].notna().sum() == 0:
        raise BasinsError(
            f"measure {measure.name!r} has no value for any token of the text: {len(rows.batch)} sequences of at most "
            f"{rows.tokens.shape[1]} tokens. Were sequences and positions numbered on another text?"
        )
    return Subject(
        model=model,
        rows=rows,
        pick=pick,
        layers=layers,
        facts=facts,
        measure=measure,
        analysis=analysis,
        statistics=statistics,
        seed=statistics["seed"],
        store=store,
    )


def other_rows(of: Subject) -> Int[Tensor, "row"]:
    """As many rows again, of texts that have none among those scored."""
    used = of.rows.cluster[of.pick].unique()
    return (~torch.isin(of.rows.cluster, used)).nonzero()[:, 0][: len(of.pick)]
