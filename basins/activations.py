"""Residual-stream states, layer by layer: read from a cache, or computed from tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from basins.errors import BasinsError
from basins.lens import has_hooks, model_name, n_layers, resid_post, resid_pre, run
from basins.progress import progress
from basins.state_store import MEMORY_BUDGET, StateStore


@runtime_checkable
class States(Protocol):
    """States of a batch of sequences: layer L enters block L, outputs(L) leave it."""

    @property
    def shape(self) -> tuple[int, int]: ...

    def layer(self, layer: int) -> Float[Tensor, "batch pos d_model"]: ...

    def outputs(self, layer: int) -> Float[Tensor, "batch pos d_model"] | None: ...


class CacheStates:
    """The residual streams of a TransformerLens cache (ActivationCache or dict), checked against the model."""

    def __init__(self, cache: Any, model: Any) -> None:
        if not hasattr(cache, "keys") or not hasattr(cache, "__getitem__"):
            raise BasinsError(
                f"a cache is needed, got {type(cache).__name__}. Pass the second value of "
                "model.run_with_cache(tokens); texts go to score_texts() or fit(), in a list."
            )
        self.tensors: Mapping[str, Tensor] = cache
        self.keys = set(cache.keys())
        self.model, self.n_layers = model, n_layers(model)
        streams = sorted(key for key in self.keys if key.endswith(("resid_pre", "resid_post")) or _is_bridge_name(key))
        if not streams:
            some = ", ".join(sorted(map(str, self.keys))[:4]) or "nothing"
            raise BasinsError(
                f"this cache holds no residual streams (it holds {some}, ...). basins needs blocks.L.hook_resid_pre "
                "and hook_resid_post: drop names_filter, or pass names_filter=lambda name: 'resid' in name."
            )
        beyond = {int(key.split(".")[1]) for key in streams} - set(range(self.n_layers))
        if beyond:
            raise BasinsError(
                f"the cache has layer {max(beyond)} but {model_name(model)} has {self.n_layers} blocks. Was the cache "
                "made with another model?"
            )
        first = self._with_batch(self.tensors[streams[0]], streams[0])
        self._shape: tuple[int, int] = (first.shape[0], first.shape[1])

    @property
    def shape(self) -> tuple[int, int]:
        return self._shape

    def _find(self, names: list[str]) -> Tensor | None:
        for name in names:
            if name in self.keys:
                states = self._with_batch(self.tensors[name], name)
                if tuple(states.shape[:2]) != self.shape:
                    raise BasinsError(
                        f'cache["{name}"] has shape {tuple(states.shape)} but other layers have {self.shape} '
                        "sequences and positions. Was the cache made with pos_slice, or put together from two runs?"
                    )
                return states
        return None

    def _with_batch(self, states: Tensor, name: str) -> Float[Tensor, "batch pos d_model"]:
        if states.ndim == 2:  # remove_batch_dim=True
            states = states[None]
        width = getattr(self.model.cfg, "d_model", None)
        if states.ndim != 3 or (width is not None and states.shape[-1] != width):
            raise BasinsError(
                f'cache["{name}"] has d_model={states.shape[-1]} but the model has {width}. Was the cache made with '
                "another model?"
            )
        return states.detach()

    def names(self, layer: int) -> list[str]:
        """Under which names the states entering `layer` may stand."""
        before = [resid_post(layer - 1), f"blocks.{layer - 1}.hook_out"] if layer > 0 else []
        return [resid_pre(layer), f"blocks.{layer}.hook_in", *before]

    def available(self) -> list[int]:
        return [layer for layer in range(self.n_layers) if self.keys & set(self.names(layer))]

    def layer(self, layer: int) -> Float[Tensor, "batch pos d_model"]:
        states = self._find(self.names(layer))
        if states is None:
            raise BasinsError(
                f"layer={layer} is not in the cache. Its residual streams are there for layers "
                f"{', '.join(map(str, self.available()))}: pass layers=... with some of these, or cache the rest with "
                "names_filter=lambda name: 'resid' in name."
            )
        return states

    def outputs(self, layer: int) -> Float[Tensor, "batch pos d_model"] | None:
        # resid_post first: a user's hook on the next resid_pre changes what stands there.
        return self._find([resid_post(layer), f"blocks.{layer}.hook_out", *self.names(layer + 1)[:2]])


def _is_bridge_name(key: str) -> bool:
    parts = key.split(".")
    return len(parts) == 3 and parts[0] == "blocks" and parts[2] in ("hook_in", "hook_out")


def check_finite(states: Float[Tensor, "*token d_model"], real: Bool[Tensor, "*token"], layer: int) -> None:
    """Raise on NaN or infinity at real tokens: a distance to them means nothing."""
    bad = ~states.isfinite().all(-1) & real.to(states.device)
    if bad.any():
        place = bad.nonzero()[0].tolist()
        first = f"sequence {place[0]}, position {place[1]}" if len(place) == 2 else f"state {place[0]}"
        raise BasinsError(
            f"layer {layer} has NaN or infinite states at {int(bad.sum())} of {int(real.sum())} tokens, the first at "
            f"{first}. Half precision overflows in some models: run the model in bfloat16 or float32; or mark padding "
            "with attention_mask."
        )


def as_rows(value: Any, name: str) -> Tensor:
    try:
        return torch.as_tensor(value).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise BasinsError(
            f"{name} must be whole numbers, one row a sequence and all rows equally long, got {type(value).__name__} "
            f"({error}). Texts go to score_texts(); shorter rows need padding and an attention_mask."
        ) from error


def check_mask(attention_mask: Any, shape: tuple[int, int]) -> Int[Tensor, "batch pos"]:
    """The mask as 0/1 integers on the CPU; all ones when None. Real tokens must be one run in every row."""
    if attention_mask is None:
        return torch.ones(shape, dtype=torch.long)
    mask = as_rows(attention_mask, "attention_mask")
    if mask.ndim == 1:
        mask = mask[None]
    if tuple(mask.shape) != shape:
        raise BasinsError(
            f"attention_mask has shape {tuple(mask.shape)} but the cache has {shape} sequences and positions."
        )
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise BasinsError("attention_mask must hold 1 for real tokens and 0 for padding, nothing else.")
    mask = mask.long()
    empty = (mask.sum(1) == 0).nonzero()[:, 0].tolist()
    if empty:
        raise BasinsError(
            f"sequence {empty[0]} is all padding ({len(empty)} such of {shape[0]}). Drop such rows from the tokens, "
            "the mask and the cache."
        )
    holes = ((mask.diff(dim=1) != 0).sum(1) + mask[:, 0] + mask[:, -1] > 2).nonzero()[:, 0].tolist()
    if holes:
        raise BasinsError(
            f"attention_mask of sequence {holes[0]} has padding between real tokens. Possible: padding at the start "
            "or the end."
        )
    return mask


def check_tokens(tokens: Any, shape: tuple[int, int] | None) -> Any:
    """Int["batch pos"] on the CPU; None stays None. `shape`: what the cache has."""
    if tokens is None:
        return None
    ids = as_rows(tokens, "tokens")
    if ids.ndim == 1:
        ids = ids[None]
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool or ids.ndim != 2 or not ids.numel():
        raise BasinsError(
            f"tokens have shape {tuple(ids.shape)} and dtype {ids.dtype}; they must be whole numbers, one row a "
            "sequence. Texts go to score_texts()."
        )
    if shape is not None and tuple(ids.shape) != shape:
        raise BasinsError(
            f"tokens have shape {tuple(ids.shape)} but the cache has {shape} sequences and positions. Pass the token "
            "ids that the cache was made with."
        )
    return ids.long()


def embed_all_layers(
    model: Any,
    tokens: Int[Tensor, "batch pos"],
    attention_mask: Int[Tensor, "batch pos"],
    batch_size: int,
    dtype: torch.dtype,
    budget: int = MEMORY_BUDGET,
) -> StateStore:
    """States at layers 0 .. n_layers of every sequence: what `fit(texts)` keeps as its bank."""
    n = n_layers(model)
    store = StateStore(tokens.shape[0], tokens.shape[1], int(model.cfg.d_model), dtype, n + 1, budget)
    for layer in range(n + 1):
        store.create(layer)
    hooked = [layer for layer in range(n - 1) if has_hooks(model, layer + 1)]
    for layer in hooked:
        store.create_unhooked(layer)
    with progress("embedding the bank", len(tokens)) as advance:
        for start in range(0, len(tokens), batch_size):
            rows = slice(start, start + batch_size)
            length = (
                int(attention_mask[rows].sum(1).max()) if bool(attention_mask[rows][:, 0].all()) else tokens.shape[1]
            )

            def keeper(into: Tensor, rows: slice = rows, length: int = length) -> Any:
                def keep(value: Tensor, hook: Any) -> None:
                    into[rows, :length] = value.detach().to("cpu", dtype)

                return keep

            hooks = [(resid_pre(layer), keeper(store.tensors[layer])) for layer in range(n)]
            hooks += [(resid_post(n - 1), keeper(store.tensors[n]))]
            hooks += [(resid_post(layer), keeper(store.unhooked[layer])) for layer in hooked]
            run(model, tokens[rows, :length], attention_mask[rows, :length], hooks, until=resid_post(n - 1))
            advance(len(tokens[rows]))
    return store
