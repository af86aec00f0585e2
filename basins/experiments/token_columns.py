"""One model's tokens with everything that is compared: scores, importance, confounds, joined on (layer, sequence,
position)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from basins.experiments.primary import SCORES
from basins.experiments.sequences import Sequences
from basins.losses import token_losses
from basins.scores import LEAST_DISTINCT, BasinScores
from basins.state_norms import state_norms

if TYPE_CHECKING:
    import pandas as pd

KEY = ["layer", "sequence", "position"]
CONFOUNDS = ("density", "position", "position_bend", "log_frequency", "loss", "log_norm")
# A layer at which fewer than this share of the tokens can be compared is left out, and named.
LEAST_SHARE = 0.5


def column_frame(
    values: Float[Tensor, "layer batch pos"],
    name: str,
    layers: tuple[int, ...],
    rows: Int[Tensor, "row"] | None = None,
) -> pd.DataFrame:
    """One column as a frame with its key. `rows`: which sequences the second axis holds; None: all of them."""
    import pandas as pd

    numbers = torch.arange(values.shape[1]) if rows is None else rows
    grid = torch.meshgrid(torch.tensor(layers), numbers, torch.arange(values.shape[2]), indexing="ij")
    frame = pd.DataFrame({key: axis.reshape(-1).numpy() for key, axis in zip(KEY, grid, strict=True)})
    return frame.assign(**{name: values.reshape(-1).double().numpy()}).dropna()


def join(frame: pd.DataFrame, column: pd.DataFrame) -> pd.DataFrame:
    """`frame` with one more column; a token that the column lacks gets NaN."""
    return frame.merge(column, how="left", on=KEY, validate="one_to_one")


def token_facts(model: Any, texts: Sequences, layers: tuple[int, ...]) -> pd.DataFrame:
    """What is known of every real token without its score, a row a (layer, sequence, position).

    Confounds: the distance from the row's middle (a trend along the row that bends); ln of how often the token occurs
    in all texts; its own loss (nats); ln of its state's norm. `fresh` is False where a token is no observation of its
    own: a prefix that stood before, or no loss.
    """
    losses = token_losses(model, texts.tokens, texts.mask)
    facts = column_frame(state_norms(model, texts.tokens, texts.mask, layers).log(), "log_norm", layers)
    facts = join(facts, column_frame(losses.expand(len(layers), -1, -1), "loss", layers))
    counts = texts.tokens[texts.mask.bool()].bincount(minlength=int(texts.tokens.max()) + 1)
    place = facts["sequence"], facts["position"]
    facts["log_frequency"] = counts.double().log()[texts.tokens].numpy()[place]
    facts["position_bend"] = np.abs(facts["position"] - (texts.mask.sum(1).numpy()[facts["sequence"]] - 1) / 2)
    facts["fresh"] = ~texts.repeated.numpy()[place] & facts["loss"].notna()
    facts["cluster"] = texts.cluster.numpy()[facts["sequence"]]
    return facts


def score_frame(scores: BasinScores, facts: pd.DataFrame, rows: Int[Tensor, "row"] | None = None) -> Any:
    """The scores of every real token, with the density before the block, joined to the facts.

    `rows`: the rows that were scored, where not all were. `used` is False where a token is not fresh or its score means
    nothing: fewer than 3 distinct states among itself and its neighbours.
    """
    frame = scores.to_frame().rename(columns={column: name for name, column in SCORES.items()})
    if rows is not None:
        frame["sequence"] = rows.numpy()[frame["sequence"]]
    frame = join(frame, facts)
    frame["used"] = frame["fresh"].eq(True) & (frame["n_distinct"] >= LEAST_DISTINCT) & frame["relative"].notna()
    return frame


@dataclass(frozen=True)
class Aligned:
    """Columns of the tokens that have a value in each of them at each of `layers`: "layer token"."""

    layers: tuple[int, ...]
    columns: Mapping[str, Float[ndarray, "layer token"]]
    cluster: Int[ndarray, "token"]
    left_out: tuple[int, ...]

    def __getitem__(self, names: tuple[str, ...] | list[str]) -> dict[str, ndarray]:
        return {name: self.columns[name] for name in names}


def align(frame: pd.DataFrame, names: list[str]) -> Aligned:
    """The tokens that are used and have a value in all of `names` at every layer kept.

    A layer where fewer than half of the tokens are left (duplicate states at layer 0 of a rotary model; a method that
    was measured at some layers only) is left out, so that it does not cost the others their tokens.
    """
    tokens: Any = frame[list(dict.fromkeys([*KEY, "cluster", "used", *names]))]
    good = tokens["used"] & tokens[names].notna().all(axis=1)
    share = good.groupby(tokens["layer"]).sum()
    most = share.max()
    layers = tuple(int(layer) for layer, count in share.items() if count >= LEAST_SHARE * most and count > 0)
    kept = tokens[good & tokens["layer"].isin(layers)]
    full = kept.groupby(["sequence", "position"])["layer"].transform("size") == len(layers)
    kept = kept[full].sort_values(KEY)
    n = len(kept) // max(1, len(layers))
    columns = {name: kept[name].to_numpy(np.float64).reshape(len(layers), n) for name in names}
    left_out = tuple(int(layer) for layer in share.index if layer not in layers)
    return Aligned(layers, columns, kept["cluster"].to_numpy()[:n], left_out)
