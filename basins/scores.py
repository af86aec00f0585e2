"""From variances to scores, and the result that a researcher holds: `BasinScores`."""

from __future__ import annotations

import importlib
import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from basins.errors import BasinsError
from basins.folders import new_folder

if TYPE_CHECKING:
    import pandas as pd

SAVED_TENSORS = (
    "values",
    "relative",
    "update",
    "var_in",
    "var_out",
    "var_update",
    "neighbor_ids",
    "neighbor_distances",
    "n_distinct",
    "same_token_share",
    "tokens",
)
LOOKUP_TENSORS = ("values", "relative", "update", "var_in", "var_out", "var_update")
# With fewer distinct states among a query and its neighbours a score is a floor, not a finding.
LEAST_DISTINCT = 3


def variance(states: Float[Tensor, "*token k d_model"]) -> Float[Tensor, "*token"]:
    """Population variance (divide by k) over the k states, summed over d_model: V = (1/k) sum_j |x_j - mean|^2.

    About the mean: in two passes, after subtraction of the first state, or on a GPU in one (Welford). Either way k
    equal states give exactly 0 in a stream of any norm.
    """
    if states.device.type == "cuda":
        return states.var(-2, correction=0).sum(-1)
    shifted = states - states[..., :1, :]
    centred = shifted.sub_(shifted.mean(-2, keepdim=True))
    return (centred.square_() if not centred.requires_grad else centred.square()).mean(-2).sum(-1)


def raw_score(var_out: Float[Tensor, "*token"], eps: float) -> Float[Tensor, "*token"]:
    """C = -ln(V_out + eps), nats. Higher means more compression, but mostly a denser neighbourhood to begin with."""
    return -(var_out + eps).log()


def relative_score(
    var_in: Float[Tensor, "*token"], var_out: Float[Tensor, "*token"], eps: float
) -> Float[Tensor, "*token"]:
    """R = ln((V_in + eps) / (V_out + eps)), nats: above 0 the block contracts. NaN where all neighbours coincide."""
    ratio = (var_in + eps).log() - (var_out + eps).log()
    return ratio.masked_fill(var_in == 0, float("nan"))


def update_score(var_update: Float[Tensor, "*token"], eps: float) -> Float[Tensor, "*token"]:
    """U = -ln(V_upd + eps), nats: V_upd is the variance of what the block writes, y_j - x_j."""
    return -(var_update + eps).log()


@dataclass(frozen=True)
class BasinScores:
    """Scores of every token at every transition; NaN where one is not scored (padding, left out, too few neighbours).

    `values` is the raw score C = -ln V_out. It is almost the density of the neighbourhood before the block, -ln V_in;
    what the block does shows in `relative` = ln(V_in / V_out) and in `update` = -ln V_upd. All three in nats,
    variances in squared residual-stream units. `lookup` holds the same scores for the neighbours' cached outputs, each
    in its own context, or None where those are not known. `neighbor_ids` are flat ids `sequence * n_pos + position`
    into the bank, nearest first, -1 where none. `settings` records everything the numbers depend on.
    """

    values: Float[Tensor, "layer batch pos"]
    relative: Float[Tensor, "layer batch pos"]
    update: Float[Tensor, "layer batch pos"]
    var_in: Float[Tensor, "layer batch pos"]
    var_out: Float[Tensor, "layer batch pos"]
    var_update: Float[Tensor, "layer batch pos"]
    neighbor_ids: Int[Tensor, "layer batch pos k"]
    neighbor_distances: Float[Tensor, "layer batch pos k"]
    n_distinct: Int[Tensor, "layer batch pos"]
    same_token_share: Float[Tensor, "layer batch pos"] | None
    layers: tuple[int, ...]
    tokens: Int[Tensor, "batch pos"] | None
    token_strings: tuple[tuple[str, ...], ...] | None
    settings: dict[str, Any]
    lookup: BasinScores | None = field(default=None, repr=False)

    @staticmethod
    def from_variances(
        var_in: Float[Tensor, "layer batch pos"],
        var_out: Float[Tensor, "layer batch pos"],
        var_update: Float[Tensor, "layer batch pos"],
        eps: float,
        **rest: Any,
    ) -> BasinScores:
        return BasinScores(
            values=raw_score(var_out, eps),
            relative=relative_score(var_in, var_out, eps),
            update=update_score(var_update, eps),
            var_in=var_in,
            var_out=var_out,
            var_update=var_update,
            **rest,
        )

    @property
    def raw(self) -> Float[Tensor, "layer batch pos"]:
        return self.values

    @property
    def density(self) -> Float[Tensor, "layer batch pos"]:
        """-ln(V_in + eps): how dense the neighbourhood was before the block. The confound of every raw score."""
        return raw_score(self.var_in, self.settings["eps"])

    def layer_index(self, layer: int) -> int:
        """Where a transition (0 .. n_layers-1, or negative from the end) stands along the first axis."""
        n = self.settings.get("n_layers", max(self.layers) + 1)
        wanted = layer + n if layer < 0 else layer
        if wanted not in self.layers:
            raise BasinsError(f"layer={layer} was not scored. Scored: {', '.join(map(str, self.layers))}.")
        return self.layers.index(wanted)

    def to_frame(self) -> pd.DataFrame:
        """One row for every (layer, sequence, position) that is a real token; unscored ones have NaN scores."""
        import pandas as pd

        n_layers, batch, pos = self.values.shape
        grid = torch.meshgrid(torch.tensor(self.layers), torch.arange(batch), torch.arange(pos), indexing="ij")
        columns: dict[str, Any] = dict(zip(("layer", "sequence", "position"), grid, strict=True))
        if self.tokens is not None:
            columns["token_id"] = self.tokens.expand(n_layers, -1, -1)
        columns |= {"raw": self.values, "relative": self.relative, "update": self.update, "density": self.density}
        columns |= {"var_in": self.var_in, "var_out": self.var_out, "var_update": self.var_update}
        if self.lookup is not None:
            columns |= {"lookup_raw": self.lookup.values, "lookup_relative": self.lookup.relative}
            columns |= {"lookup_update": self.lookup.update}
        columns |= {"neighbor_distance": self.neighbor_distances.mean(-1), "n_distinct": self.n_distinct}
        if self.same_token_share is not None:
            columns["same_token_share"] = self.same_token_share
        real = self.real_tokens().expand(n_layers, -1, -1).reshape(-1)
        frame = pd.DataFrame({name: value.reshape(-1)[real].numpy() for name, value in columns.items()})
        if self.token_strings is not None:
            strings = [string for row in self.token_strings for string in row]
            flat = (frame["sequence"] * pos + frame["position"]).to_numpy()
            frame.insert(4, "token", [strings[i] for i in flat])
        return frame

    def real_tokens(self) -> Tensor:
        """Bool["batch pos"]: tokens that are not padding."""
        lengths = self.settings.get("real_positions")
        if lengths is None:
            return torch.ones(self.values.shape[1:], dtype=torch.bool)
        place = torch.arange(self.values.shape[2])
        bounds = torch.tensor(lengths)
        return (place >= bounds[:, :1]) & (place < bounds[:, 1:])

    def summary(self) -> pd.DataFrame:
        """One row a layer: medians over tokens with at least 3 distinct states, and rank correlations with density.

        `rho(raw, density)` near 1 says that the raw score repeats what was true before the block.
        """
        import pandas as pd

        rows = []
        for i, layer in enumerate(self.layers):
            keep = (self.n_distinct[i] >= LEAST_DISTINCT) & self.relative[i].isfinite()
            shown = {"raw": self.values, "relative": self.relative, "update": self.update, "density": self.density}
            if self.lookup is not None:
                shown["lookup_relative"] = self.lookup.relative
            part = pd.DataFrame({name: value[i][keep].numpy() for name, value in shown.items()})
            scored = int(self.values[i].isfinite().sum())
            row = {"layer": layer, "tokens": scored, "duplicates": scored - int(keep.sum())} | part.median().to_dict()
            rho = part.corr("spearman")
            row |= {f"rho({name}, density)": rho.loc[name, "density"] for name in ("raw", "relative", "update")}
            if self.lookup is not None:
                row["rho(relative, lookup)"] = rho.loc["relative", "lookup_relative"]
            rows.append(row)
        return pd.DataFrame(rows)

    def plot_layers(self, **options: Any) -> Any:
        """Medians and quartiles of the three scores across layers, as a matplotlib figure."""
        # Results know their pictures by name only: drawing stays downstream of computing.
        return importlib.import_module("basins.plots").plot_layers(self, **options)

    def plot_scatter(self, layer: int) -> Any:
        """One layer, a dot a token: raw against density, and relative by re-running against by looking up."""
        return importlib.import_module("basins.plots").plot_scatter(self, layer)

    def show(self, sequence: int = 0, **options: Any) -> Any:
        """Tokens of one sequence coloured by score, for a notebook (circuitsvis)."""
        return importlib.import_module("basins.tokens_view").show(self, sequence=sequence, **options)

    def __str__(self) -> str:
        n_layers, batch, _ = self.values.shape
        scored = int(self.values[0].isfinite().sum()) if n_layers else 0
        head = (
            f"BasinScores: {scored} of {int(self.real_tokens().sum())} tokens in {batch} sequences, transitions "
            f"{_ranges(self.layers)}, k={self.settings['k']}, {self.settings['method']}, {self.settings['neighbors']}"
        )
        return f"{head}\n{self.summary().round(3).to_string(index=False)}"

    __repr__ = __str__

    def save(self, folder: str | Path) -> Path:
        """Write `scores.safetensors` and `scores.json` into a new folder, all or nothing; raises if it exists."""
        from safetensors.torch import save_file

        tensors = {name: getattr(self, name) for name in SAVED_TENSORS if getattr(self, name) is not None}
        if self.lookup is not None:
            tensors |= {f"lookup.{name}": getattr(self.lookup, name) for name in LOOKUP_TENSORS}
        texts = {"layers": self.layers, "token_strings": self.token_strings, "settings": self.settings}
        with new_folder(folder) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary / "scores.safetensors")
            (temporary / "scores.json").write_text(json.dumps(texts, indent=1, ensure_ascii=False), encoding="utf-8")
        return Path(folder)

    @staticmethod
    def load(folder: str | Path) -> BasinScores:
        """Read what `save` wrote."""
        from safetensors.torch import load_file

        folder = Path(folder)
        for name in ("scores.safetensors", "scores.json"):
            if not (folder / name).is_file():
                raise BasinsError(f"{folder} has no {name}: it was not written by BasinScores.save.")
        tensors = load_file(folder / "scores.safetensors")
        texts = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
        strings = texts["token_strings"]
        own: dict[str, Any] = {name: tensors.get(name) for name in SAVED_TENSORS}
        scores = BasinScores(
            **own,
            layers=tuple(texts["layers"]),
            token_strings=tuple(tuple(row) for row in strings) if strings is not None else None,
            settings=texts["settings"],
        )
        if f"lookup.{LOOKUP_TENSORS[0]}" not in tensors:
            return scores
        found = {name: tensors[f"lookup.{name}"] for name in LOOKUP_TENSORS}
        return replace(scores, lookup=replace(scores, settings=scores.settings | {"method": "lookup"}, **found))


def _ranges(layers: tuple[int, ...]) -> str:
    if len(layers) > 2 and layers == tuple(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]} to {layers[-1]}"
    return ", ".join(map(str, layers))


def floor_value(eps: float) -> float:
    """The score of V = 0, 23.0259 at the default eps: a floor, not a finding."""
    return -math.log(eps)
