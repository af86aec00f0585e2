"""Forward and backward passes over micro-batches of sequences, from which every importance measure is made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from basins.errors import BasinsError
from basins.lens import input_device, model_name, n_layers, resid_pre

Aim = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Passes:
    """The sequences that importance is measured on, and how many of them go through the model at a time.

    `usable` is False at padding and at the first positions that are left out. Numbers do not depend on `size`.
    """

    model: Any
    tokens: Int[Tensor, "batch pos"]
    mask: Int[Tensor, "batch pos"]
    usable: Bool[Tensor, "batch pos"]
    layers: tuple[int, ...]
    size: int
    dtype: torch.dtype

    def chunks(self) -> Iterator[Int[Tensor, "row"]]:
        yield from torch.arange(len(self.tokens)).split(self.size)

    def blank(self) -> Float[Tensor, "layer batch pos"]:
        return torch.full((len(self.layers), *self.tokens.shape), float("nan"), dtype=self.dtype)

    def logits(
        self, rows: Int[Tensor, "row"], hooks: list, stop_at_layer: int | None = None
    ) -> Float[Tensor, "row pos d_vocab"]:
        """One forward pass. Half-precision logits come in float32."""
        device = input_device(self.model)
        logits = self.model.run_with_hooks(
            # Indexing copies: a tensor made in inference mode may not enter a graph.
            self.tokens[rows].to(device),
            fwd_hooks=hooks,
            return_type="logits",
            stop_at_layer=stop_at_layer,
            attention_mask=self.mask[rows].to(device),
        )
        return logits if logits.dtype == torch.float64 else logits.float()

    def read(self, rows: Int[Tensor, "row"], names: Iterable[str], upto: int) -> dict[str, Tensor]:
        """What passes the named hook points of blocks 0 .. `upto` in one forward pass without gradients."""
        found: dict[str, Tensor] = {}
        self._look(rows, list(names), upto, found.__setitem__)
        return found

    def visit(
        self, names: Mapping[int, list[str]], take: Callable[[Int[Tensor, "row"], int, dict[str, Tensor]], None]
    ) -> None:
        """One forward pass for each micro-batch; `take(rows, layer, found)` gets what passes the named hook points.

        It is called layer by layer, during the pass, so that what was found of one layer need not outlive it.
        """
        layer_of = {name: layer for layer, wanted in names.items() for name in wanted}
        for rows in self.chunks():
            waiting: dict[int, dict[str, Tensor]] = {}

            def keep(
                name: str, value: Tensor, rows: Tensor = rows, waiting: dict[int, dict[str, Tensor]] = waiting
            ) -> None:
                layer = layer_of[name]
                found = waiting.setdefault(layer, {})
                found[name] = value
                if len(found) == len(names[layer]):
                    take(rows, layer, waiting.pop(layer))

            self._look(rows, list(layer_of), max(names), keep)

    def _look(self, rows: Int[Tensor, "row"], names: list[str], upto: int, keep: Callable[[str, Tensor], None]) -> None:
        seen = set()

        def looker(name: str) -> Callable:
            def look(value: Tensor, hook: Any) -> None:
                seen.add(name)
                keep(name, value.detach())

            return look

        self._need(name for name in names if name not in self.model.hook_dict)
        stop = upto + 1 if upto + 1 < n_layers(self.model) else None
        with torch.no_grad():
            self.logits(rows, [(name, looker(name)) for name in names], stop)
        self._need(name for name in names if name not in seen)

    def _need(self, missing: Iterable[str]) -> None:
        for name in missing:
            raise BasinsError(
                f"{model_name(self.model)} gives nothing at {name}, which this method reads. It may have no attention "
                'there, or compute it without forming a pattern. Possible: method="gradient", "gradient_x_input".'
            )

    def states(self, rows: Int[Tensor, "row"], layers: Iterable[int]) -> dict[int, Float[Tensor, "row pos d_model"]]:
        layers = list(layers)
        found = self.read(rows, [resid_pre(layer) for layer in layers], max(layers))
        return {layer: found[resid_pre(layer)] for layer in layers}

    def outcome(
        self, rows: Int[Tensor, "row"], aim: Aim, replace: Mapping[int, Tensor] | None = None
    ) -> Float[Tensor, "row"]:
        """The target of each row, with the states of some layers replaced; without gradients."""

        def replacer(states: Tensor) -> Callable:
            def put(value: Tensor, hook: Any) -> Tensor:
                return states.to(value)

            return put

        hooks = [(resid_pre(layer), replacer(states)) for layer, states in (replace or {}).items()]
        with torch.no_grad():
            return aim(self.logits(rows, hooks), rows).to("cpu", self.dtype)

    def gradients(
        self,
        rows: Int[Tensor, "row"],
        aim: Aim,
        layers: tuple[int, ...],
        start: Float[Tensor, "row pos d_model"] | None = None,
    ) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """States entering `layers` and d target / d state, from one forward and one backward pass.

        `start`, where given, takes the place of the states of the first of `layers`. No parameter's `grad` is touched.
        """
        states: dict[int, Tensor] = {}

        def keeper(layer: int) -> Callable:
            def keep(value: Tensor, hook: Any) -> Tensor:
                if layer == layers[0]:
                    # A leaf: reaches frozen models, and what lies before needs no graph.
                    value = (value if start is None else start.to(value)).detach().requires_grad_()
                states[layer] = value
                return value

            return keep

        with torch.inference_mode(False), torch.enable_grad():
            aims = aim(self.logits(rows, [(resid_pre(layer), keeper(layer)) for layer in layers]), rows)
            if not aims.requires_grad:
                raise BasinsError(
                    "the target does not depend on the logits through operations that torch can differentiate. Was "
                    "it detached, or computed with NumPy or argmax?"
                )
            found = torch.autograd.grad(aims.sum(), [states[layer] for layer in layers], allow_unused=True)
        kept = {layer: states[layer].detach().to(self.dtype) for layer in layers}
        slopes = {
            layer: torch.zeros_like(kept[layer]) if slope is None else slope.to(self.dtype)
            for layer, slope in zip(layers, found, strict=True)
        }
        return kept, slopes
