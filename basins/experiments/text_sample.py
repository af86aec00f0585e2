"""Some rows of a text under one model: scored with settings, weights or tokens changed, beside what is known of each
token."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int
from torch import Tensor

from basins.experiments.primary import SCORER
from basins.experiments.score_store import ScoreStore
from basins.experiments.sequences import Sequences
from basins.experiments.token_columns import KEY, column_frame, join, score_frame
from basins.scorer import BasinScorer
from basins.scores import BasinScores
from basins.state_norms import state_norms

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class TextSample:
    """`pick`: the rows that are scored; `facts`: a row a (layer, sequence, position) of the whole text, as
    `token_facts` gives them and perhaps with more columns; `analysis`: the scorer's settings."""

    model: Any
    rows: Sequences
    pick: Int[Tensor, "row"]
    layers: tuple[int, ...]
    facts: pd.DataFrame
    analysis: dict[str, Any]
    seed: int
    store: ScoreStore

    @property
    def tokens(self) -> Int[Tensor, "row pos"]:
        return self.rows.tokens[self.pick]

    @property
    def mask(self) -> Int[Tensor, "row pos"]:
        return self.rows.mask[self.pick]

    def scorer(self, model: Any = None, **settings: Any) -> BasinScorer:
        """The primary analysis with some settings changed."""
        return BasinScorer(self.model if model is None else model, **(SCORER | self.analysis | settings))

    def score(
        self,
        layers: Iterable[int] | None = None,
        *,
        rows: Int[Tensor, "row"] | None = None,
        tokens: Int[Tensor, "row pos"] | None = None,
        model: Any = None,
        **settings: Any,
    ) -> BasinScores:
        """The primary analysis with some settings changed; of other rows, tokens or weights where given."""
        rows = self.pick if rows is None else rows
        ids = self.rows.tokens[rows] if tokens is None else tokens
        wanted = tuple(layers or self.layers)
        return self.store.score(self.scorer(model, **settings), ids, self.rows.mask[rows], wanted)

    def frame(self, scores: BasinScores, *, rows: Int[Tensor, "row"] | None = None, facts: Any = None) -> Any:
        """The scores of every token joined to its facts; sequences numbered as in the whole text."""
        facts = self.facts if facts is None else facts
        return score_frame(scores, facts, self.pick if rows is None else rows)

    def norms_of(self, model: Any, tokens: Int[Tensor, "row pos"], facts: pd.DataFrame) -> Any:
        """The facts with the state norms of another model, or of other tokens in the same rows."""
        norms = state_norms(model, tokens, self.mask, self.layers).log()
        column = column_frame(norms, "log_norm", self.layers, self.pick)
        return join(facts.drop(columns="log_norm"), column)

    def moved(self, order: Int[Tensor, "row pos"]) -> Any:
        """The facts where tokens moved within their rows: a token takes loss, frequency and what else is known of it
        along."""
        place = np.full(self.rows.tokens.shape, -1)
        place[self.pick.numpy()] = order.numpy()
        facts = self.facts[self.facts["sequence"].isin(self.pick.tolist())].copy()
        there = ["position", "position_bend", "log_norm"]
        at = facts[[*KEY, *there[1:]]]
        source = at.assign(source=place[at["sequence"], at["position"]])
        carried = facts.drop(columns=there[1:]).rename(columns={"position": "source"})
        return source.merge(carried, how="left", on=["layer", "sequence", "source"]).drop(columns="source")
