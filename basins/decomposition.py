"""Map or context? Whether neighbours' outputs spread because of their states or because of where they stand.

For a query and its k nearest neighbours all k x k crossed outputs are computed,

    y[j, c] = B_L(x_j ; the context of neighbour c, at c's own position),

and their variance over the k * k cells (population, summed over d_model) is split as in a two-way analysis of variance
with one observation a cell (Fisher 1925):

    total       = mean over j, c of |y[j, c] - y[., .]|^2
    state       = mean over j    of |y[j, .] - y[., .]|^2      the map: means over contexts
    context     = mean over c    of |y[., c] - y[., .]|^2      means over states
    interaction = mean over j, c of |y[j, c] - y[j, .] - y[., c] + y[., .]|^2
    total       = state + context + interaction, exactly.

The diagonal y[j, j] holds the outputs that `method="lookup"` looks up; its variance is V_own. With D = ln V_own -
ln V_rerun the lookup score is R_lookup = R_rerun - D: large context shares are what makes the two methods differ.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from basins.errors import BasinsError
from basins.folders import new_folder
from basins.neighborhoods import Neighborhood, about, neighborhoods
from basins.scores import variance
from basins.settings import ScorerSettings
from basins.stats import mean

if TYPE_CHECKING:
    import pandas as pd

PARTS = ("state", "context", "interaction")
NAMES = ("total", *PARTS, "diagonal")
# Floats of the crossed outputs of one piece of the queries.
CROSSED_FLOATS = 2**24


@dataclass(frozen=True)
class Decomposition:
    """Variance of the crossed outputs of every sampled query, squared residual-stream units: see the module.

    `total` = `state` + `context` + `interaction`; `diagonal` is the variance of the k outputs in their own contexts.
    NaN where a query has too few neighbours. `queries` are flat ids `sequence * n_pos + position`.
    """

    total: Float[Tensor, "layer query"]
    state: Float[Tensor, "layer query"]
    context: Float[Tensor, "layer query"]
    interaction: Float[Tensor, "layer query"]
    diagonal: Float[Tensor, "layer query"]
    layers: tuple[int, ...]
    queries: Int[Tensor, "query"]
    n_pos: int
    settings: dict[str, Any] = field(repr=False)

    def to_frame(self) -> pd.DataFrame:
        """One row a (layer, query), with the shares of each part; a share of a total of 0 is NaN."""
        import pandas as pd

        n_layers, n_queries = self.total.shape
        columns: dict[str, Any] = {"layer": torch.tensor(self.layers).repeat_interleave(n_queries)}
        columns["sequence"] = (self.queries // self.n_pos).repeat(n_layers)
        columns["position"] = (self.queries % self.n_pos).repeat(n_layers)
        columns |= {name: getattr(self, name).flatten() for name in NAMES}
        positive = self.total.masked_fill(self.total <= 0, float("nan"))
        columns |= {f"{name}_share": (getattr(self, name) / positive).flatten() for name in PARTS}
        return pd.DataFrame({name: value.numpy() for name, value in columns.items()})

    def shares(self, *, clusters: Any = None, n_resamples: int = 1000, confidence: float = 0.95) -> pd.DataFrame:
        """One row a (layer, part): mean share over the queries, with an interval that resamples sequences.

        The three means of a layer sum to 1. `clusters`: what sequence number -> unit of resampling, where rows of one
        text belong together; None: each sequence is its own.
        """
        import pandas as pd

        frame, rows = self.to_frame(), []
        for layer in self.layers:
            here: Any = frame[frame["layer"] == layer]
            unit = here["sequence"].to_numpy()
            unit = unit if clusters is None else torch.as_tensor(clusters).numpy()[unit]
            for part in PARTS:
                options: dict[str, Any] = {"n_resamples": n_resamples, "confidence": confidence}
                options["seed"] = int(self.settings["seed"])
                found = mean(here[f"{part}_share"], clusters=unit, **options)
                row: dict[str, Any] = {"layer": layer, "part": part, "share": found.estimate}
                row |= {"low": found.interval[0], "high": found.interval[1], "queries": found.n_tokens}
                rows.append(row | {"sequences": found.n_clusters, "reason": found.reason})
        return pd.DataFrame(rows)

    def __str__(self) -> str:
        frame: Any = self.to_frame()
        wide = frame.groupby("layer")[[f"{name}_share" for name in PARTS]].mean()
        settings = self.settings
        head = (
            f"Decomposition: {len(self.queries)} queries in {len(self.layers)} transitions, k={settings['k']}, "
            f"{settings['neighbors']}: shares of the variance of k x k crossed outputs"
        )
        return f"{head}\n{wide.round(3).reset_index().to_string(index=False)}"

    __repr__ = __str__

    def save(self, folder: str | Path) -> Path:
        """Write `decomposition.parquet`, `shares.csv` and `settings.json` into a new folder, all or nothing."""
        import json

        with new_folder(folder) as temporary:
            self.to_frame().to_parquet(temporary / "decomposition.parquet", index=False)
            self.shares().to_csv(temporary / "shares.csv", index=False)
            (temporary / "settings.json").write_text(json.dumps(self.settings, indent=1), encoding="utf-8")
        return Path(folder)


def split_variance(outputs: Float[Tensor, "*query k k2 d_model"]) -> dict[str, Float[Tensor, "*query"]]:
    """The parts of the variance of y[j, c]: j along the first of the two axes. In float64, about the first cell."""
    centred = outputs.double()
    centred = centred - centred[..., :1, :1, :]
    centred = centred - centred.mean((-3, -2), keepdim=True)
    of_state, of_context = centred.mean(-2, keepdim=True), centred.mean(-3, keepdim=True)
    rest = centred - of_state - of_context

    def size(part: Tensor) -> Tensor:
        return part.square().mean((-3, -2)).sum(-1)

    return {"total": size(centred), "state": size(of_state), "context": size(of_context), "interaction": size(rest)}


def decompose_at(hood: Neighborhood, settings: ScorerSettings) -> dict[str, Float[Tensor, "query"]]:
    """The parts for every sampled query of one transition; the k x k crossed outputs exist some queries at a time."""
    k, states = settings.k, hood.states()
    found = {name: torch.full((len(hood.queries),), float("nan"), dtype=torch.float64) for name in NAMES}
    scored = hood.scored.nonzero()[:, 0]
    for some in scored.split(max(1, CROSSED_FLOATS // (k * k * states.shape[1]))):
        ids = hood.neighbors[some]
        # Cell (j, c): the state of neighbour j, in the place of neighbour c.
        crossed = states[ids.repeat_interleave(k, 1).flatten()]
        outputs = hood.place.push(crossed, ids.repeat(1, k).flatten()).view(len(some), k, k, -1)
        if settings.normalize:
            outputs = outputs / outputs.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(outputs.dtype).tiny)
        parts = split_variance(outputs)
        parts["diagonal"] = variance(outputs.diagonal(dim1=1, dim2=2).transpose(1, 2).double())
        for name, value in parts.items():
            found[name][some] = value.cpu()
    return found


def assemble(
    parts: dict[int, dict[str, Tensor]], queries: Int[Tensor, "query"], n_pos: int, settings: dict[str, Any]
) -> Decomposition:
    """The transitions' parts as one result."""
    stacked = {name: torch.stack([found[name] for found in parts.values()]) for name in NAMES}
    return Decomposition(**stacked, layers=tuple(parts), queries=queries, n_pos=n_pos, settings=settings)


def decompose(
    model: Any,
    settings: ScorerSettings,
    source: Any,
    tokens: Int[Tensor, "batch pos"] | None = None,
    attention_mask: Int[Tensor, "batch pos"] | None = None,
    layers: int | Iterable[int] | None = None,
    *,
    sample: int = 64,
    dtype: torch.dtype | None = None,
    fitted: bool = False,
) -> Decomposition:
    """`scorer.decompose(cache, tokens=None, attention_mask=None, layers=None, sample=64)`: see the module.

    `source` is a cache, as in `BasinScorer.score`, or token ids, which are swept layer by layer. `sample` queries, the
    same at every layer, are drawn by the scorer's seed. Costs k times as many block rows a query as its score.
    Raises BasinsError for a `fitted` bank, which has no contexts, and for a scorer with `shrink`.
    """
    if fitted:
        raise BasinsError("a fitted bank has no contexts to put neighbours in. Decompose with a scorer without fit().")
    if settings.shrink != 1:
        raise BasinsError(
            f"shrink={settings.shrink} moves neighbours towards the query, and the diagonal of the crossed outputs "
            "would no longer be the looked-up ones. Decompose with a scorer of shrink=1.0."
        )
    parts: dict[int, dict[str, Tensor]] = {}
    hoods = neighborhoods(model, settings, source, tokens, attention_mask, layers, sample=sample, dtype=dtype)
    queries, n_pos = torch.empty(0, dtype=torch.long), 0
    with closing(hoods):
        for hood in hoods:
            parts[hood.layer] = decompose_at(hood, settings)
            queries, n_pos = hood.queries, hood.place.states.shape[1]
    return assemble(parts, queries, n_pos, about(model, settings, len(queries)))
