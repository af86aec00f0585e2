"""What attribution gives: `Attribution`, in the shape of `BasinScores`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from basins.errors import BasinsError
from basins.folders import new_folder

if TYPE_CHECKING:
    import pandas as pd

TENSORS = ("values", "tokens", "completeness_gap", "target_change")


@dataclass(frozen=True)
class Attribution:
    """Importance of every token at every layer; NaN at padding and where the token was left out.

    `values[i]` belongs to the states entering block `layers[i]`, as in `BasinScores`; attention is that of the block.
    Units: attention methods count queries times heads; gradients are in units of the target (a logit, or nats) per unit
    of the stream, products and differences in units of the target; ablation is in nats. Of integrated gradients only:
    `target_change`, the target less what it is at the baseline, and `completeness_gap`, what each sequence's values sum
    to beyond that change. `settings` records everything the numbers depend on.
    """

    values: Float[Tensor, "layer batch pos"]
    method: str
    layers: tuple[int, ...]
    tokens: Int[Tensor, "batch pos"]
    token_strings: tuple[tuple[str, ...], ...] | None
    settings: dict[str, Any]
    completeness_gap: Float[Tensor, "layer batch"] | None = None
    target_change: Float[Tensor, "layer batch"] | None = None

    @property
    def relative_gap(self) -> Float[Tensor, "layer batch"] | None:
        """|completeness gap / change of the target|; large also where the target hardly changes."""
        if self.completeness_gap is None or self.target_change is None:
            return None
        return (self.completeness_gap / self.target_change).abs()

    def total(self) -> Float[Tensor, "batch pos"]:
        """Sum over layers."""
        return self.values.sum(0)

    def layer_index(self, layer: int) -> int:
        """Where a layer (0 .. n_layers-1, or negative from the end) stands along the first axis."""
        wanted = layer + self.settings["n_layers"] if layer < 0 else layer
        if wanted not in self.layers:
            raise BasinsError(f"layer={layer} has no values. Those that have: {', '.join(map(str, self.layers))}.")
        return self.layers.index(wanted)

    def real_tokens(self) -> Bool[Tensor, "batch pos"]:
        """Tokens that are not padding."""
        place = torch.arange(self.values.shape[2])
        bounds = torch.tensor(self.settings["real_positions"])
        return (place >= bounds[:, :1]) & (place < bounds[:, 1:])

    def to_frame(self) -> pd.DataFrame:
        """One row for every (layer, sequence, position) that is a real token, in the order of `BasinScores.to_frame`.

        The column of values is named by the method, so that the frames of several methods and of scores join:
        `scores.to_frame().merge(attribution.to_frame(), on=["layer", "sequence", "position", "token_id", "token"])`.
        """
        import pandas as pd

        n_layers, batch, pos = self.values.shape
        grid = torch.meshgrid(torch.tensor(self.layers), torch.arange(batch), torch.arange(pos), indexing="ij")
        columns: dict[str, Tensor] = dict(zip(("layer", "sequence", "position"), grid, strict=True))
        columns |= {"token_id": self.tokens.expand(n_layers, -1, -1), self.method: self.values}
        real = self.real_tokens().expand(n_layers, -1, -1)
        frame = pd.DataFrame({name: value[real].numpy() for name, value in columns.items()})
        if self.token_strings is not None:
            strings = self.token_strings
            places = zip(frame["sequence"].tolist(), frame["position"].tolist(), strict=True)
            frame.insert(4, "token", [strings[sequence][position] for sequence, position in places])
        return frame

    def summary(self) -> pd.DataFrame:
        """One row a layer: tokens with a value, their quartiles, extremes, and for integrated gradients the gap.

        `gap` is the median over sequences of |completeness gap / change of the target|.
        """
        import pandas as pd

        rows = []
        for i, layer in enumerate(self.layers):
            found = self.values[i][self.values[i].isfinite()]
            row: dict[str, Any] = {"layer": layer, "tokens": len(found)}
            quartiles = pd.Series(found.numpy()).quantile([0, 0.25, 0.5, 0.75, 1])
            row |= dict(zip(("min", "25%", "median", "75%", "max"), quartiles, strict=True))
            if self.relative_gap is not None:
                row["gap"] = float(self.relative_gap[i].median())
            rows.append(row)
        return pd.DataFrame(rows)

    def __str__(self) -> str:
        found = int(self.values.isfinite().any(0).sum())
        named = ("target", "position", "baseline", "mean_of", "steps", "heads", "include_self", "sample")
        said = "".join(f", {name}={self.settings[name]!r}" for name in named if self.settings.get(name) is not None)
        head = (
            f"Attribution: {self.method}, {found} of {int(self.real_tokens().sum())} tokens in {self.values.shape[1]} "
            f"sequences, {len(self.layers)} of {self.settings['n_layers']} layers{said}"
        )
        return f"{head}\n{self.summary().to_string(index=False, float_format=lambda value: f'{value:.4g}')}"

    __repr__ = __str__

    def save(self, folder: str | Path) -> Path:
        """Write `attribution.safetensors` and `attribution.json` into a new folder, all or nothing."""
        from safetensors.torch import save_file

        tensors = {name: getattr(self, name).contiguous() for name in TENSORS if getattr(self, name) is not None}
        texts = {"method": self.method, "layers": self.layers, "token_strings": self.token_strings}
        with new_folder(folder) as temporary:
            save_file(tensors, temporary / "attribution.safetensors")
            written = json.dumps(texts | {"settings": self.settings}, indent=1, ensure_ascii=False)
            (temporary / "attribution.json").write_text(written, encoding="utf-8")
        return Path(folder)

    @staticmethod
    def load(folder: str | Path) -> Attribution:
        """Read what `save` wrote."""
        from safetensors.torch import load_file

        folder = Path(folder)
        for name in ("attribution.safetensors", "attribution.json"):
            if not (folder / name).is_file():
                raise BasinsError(f"{folder} has no {name}: it was not written by Attribution.save.")
        tensors: dict[str, Any] = load_file(folder / "attribution.safetensors")
        texts = json.loads((folder / "attribution.json").read_text(encoding="utf-8"))
        strings = texts["token_strings"]
        return Attribution(
            **tensors,
            method=texts["method"],
            layers=tuple(texts["layers"]),
            token_strings=tuple(tuple(row) for row in strings) if strings is not None else None,
            settings=texts["settings"],
        )
