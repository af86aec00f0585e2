"""Which tokens matter to the model: importance of every token at every layer, in the shape of its scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from basins.ablation import ablation, state_means
from basins.activations import check_mask, check_tokens
from basins.attention_importance import HEADS, attention, attention_value, rollout
from basins.attributed import Attribution
from basins.corpus import check_room
from basins.errors import BasinsError, choose
from basins.gradient_importance import attribution_patching, gradient
from basins.integrated_gradients import BASELINES, integrated_gradients
from basins.lens import (
    as_found,
    block_device,
    block_dtype,
    check_layers,
    check_model,
    fingerprint,
    model_name,
    n_layers,
    weight_processing,
)
from basins.passes import Passes
from basins.results import real_positions, token_strings
from basins.settings import versions, whole
from basins.sources import plan_batch
from basins.targets import check_positions, make_target

# Method -> the options that mean something to it.
METHODS: dict[str, tuple[str, ...]] = {
    "attention": ("position", "include_self"),
    "attention_relative": ("position", "include_self"),
    "attention_value": ("position", "include_self", "heads"),
    "rollout": ("position",),
    "gradient": ("target", "position"),
    "gradient_x_input": ("target", "position"),
    "integrated_gradients": ("target", "position", "baseline", "steps"),
    "attribution_patching": ("target", "position", "corrupted"),
    "ablation": ("sample",),
}

# Layers -> a mean state of each, and whose mean it is.
StateMeans = Callable[[tuple[int, ...]], tuple[dict[int, Tensor], str]]

# Points on the path. From zero it leads past one sharp turn for each norm that follows: see basins.path_points.
STEPS = {"mean": 50, "zero": 256}

# Ablation leaves tokens that were not sampled; relative attention has no value for a key that no query sees.
MAY_BE_NAN = ("ablation", "attention_relative")


def attribute(
    model: Any,
    tokens: Int[Tensor, "batch pos"],
    attention_mask: Int[Tensor, "batch pos"] | None = None,
    *,
    method: str,
    layers: Any = None,
    exclude_first: int = 0,
    batch_size: int | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    bank_means: StateMeans | None = None,
    **options: Any,
) -> Attribution:
    """Importance of every token at every layer, by one of these methods (`METHODS` has the options of each).

    - `attention`: sum over heads and queries of the pattern's column. `attention_relative`: that, divided by what the
      same queries would give under uniform attention and the model's own mask; 1 everywhere where it is uniform.
      `attention_value`: norm of what all heads together move from the token, summed over queries; `heads="apart"` sums
      the norms of the single heads. `rollout`: attention through all blocks up to this one, skip connections as half.
      `position`: one query only instead of all; `include_self=False` leaves out what a token gives itself. Nothing is
      renormalised after leaving out.
    - `gradient`: |d target / d state|. `gradient_x_input`: its dot product with the state. One forward and one backward
      pass for all layers.
    - `integrated_gradients`: along the path from `baseline` ("mean" state or "zero"), in `steps` points (50 from
      "mean", 256 from "zero"). See `Attribution.completeness_gap`: from "zero" it can be closed in models whose norms
      have no bias only for the last few layers.
    - `attribution_patching`: gradient times (corrupted minus clean) state, for the token ids `corrupted`.
    - `ablation`: rise of the sequence's summed next-token loss when the state becomes the mean state; `sample` tokens,
      or all: one forward pass for each token and layer.

    The mean state is that of a fitted bank's usable tokens (`BasinScorer.fit`), else of the usable tokens of this call;
    `settings["mean_of"]` says which.

    Args:
        target: of the gradients, "max_logit" (default), "next_token", a token id, or a callable from logits
            "row pos d_vocab" to one number a row; see `basins.targets.make_target`.
        position: where the target is read; a number or one for each row, negative from the last real token, which is
            the default ("next_token": the sum over all positions).
        exclude_first: first real positions that get NaN; they also neither give attention nor count in a mean.
        batch_size: sequences in one pass; the numbers do not depend on it.
        seed: chooses the sample of `ablation`.
        bank_means: gives mean states from elsewhere.

    Raises BasinsError for unknown methods, targets, options and positions, where no token is left, and where no
    attention pattern is formed.
    """
    check_model(model)
    _check_options(method, options)
    whole("exclude_first", exclude_first, 0, "it counts positions left out at the start of each sequence.")
    whole("seed", seed, 0, "it chooses the sample of ablation.")
    if batch_size is not None:
        whole("batch_size", batch_size, 1, "it counts sequences; None plans it from memory.")
    wanted = check_layers(model, layers)
    ids = check_tokens(tokens, None)
    if ids is None:
        raise BasinsError("tokens is None. Pass token ids, one row a sequence.")
    check_room(model, ids)
    mask = check_mask(attention_mask, (ids.shape[0], ids.shape[1]))
    usable = mask.bool() & (mask.cumsum(1) > exclude_first)
    if not bool(usable.any()):
        raise BasinsError(
            f"exclude_first={exclude_first} leaves no token: the longest sequence has {int(mask.sum(1).max())}. Pass a "
            "smaller number or longer sequences."
        )
    size = batch_size or plan_batch(model, ids.shape[1])
    passes = Passes(model, ids, mask, usable, wanted, size, dtype)
    with as_found(model):
        found = _measure(passes, method, options, seed, bank_means)
    values = found.values.masked_fill(~usable, float("nan"))
    bad = 0 if method in MAY_BE_NAN else int((~values.isfinite() & usable).sum())
    if bad:
        raise BasinsError(
            f"{bad} values at real tokens are NaN or infinite. Half precision overflows in some models: run the model "
            "in bfloat16 or float32."
        )
    settings = {
        "method": method,
        "exclude_first": exclude_first,
        "batch_size": batch_size,
        "seed": seed,
        "dtype": str(dtype).removeprefix("torch."),
        "left_out_first": int(mask.sum() - usable.sum()),
        "padding": int((mask == 0).sum()),
        "real_positions": real_positions(mask),
        "model": model_name(model),
        "model_dtype": str(block_dtype(model, 0)).removeprefix("torch."),
        "model_fingerprint": fingerprint(model),
        "n_layers": n_layers(model),
        "d_model": int(model.cfg.d_model),
        "weight_processing": weight_processing(model),
        "device": str(block_device(model, 0)),
        "versions": versions(),
    }
    strings = token_strings(model, ids)
    return Attribution(values, method, wanted, ids, strings, settings | found.said, found.gap, found.change)


def _check_options(method: str, options: dict[str, Any]) -> None:
    choose("method", method, METHODS)
    for name in options:
        if name not in METHODS[method]:
            takers = [other for other, taken in METHODS.items() if name in taken]
            raise BasinsError(
                f"{name} means nothing to method={method!r}, which takes {', '.join(METHODS[method])}."
                + (f" It belongs to {', '.join(takers)}." if takers else "")
            )


@dataclass(frozen=True)
class _Found:
    """Values, and the options as they were understood; the rest of integrated gradients only."""

    values: Float[Tensor, "layer batch pos"]
    said: dict[str, Any]
    gap: Float[Tensor, "layer batch"] | None = None
    change: Float[Tensor, "layer batch"] | None = None


def _measure(passes: Passes, method: str, options: dict[str, Any], seed: int, bank_means: StateMeans | None) -> _Found:
    if method == "ablation":
        sample = options.get("sample")
        if sample is not None:
            whole("sample", sample, 1, "it counts tokens; None ablates all of them.")
            sample = int(sample)
        means, whose = _means(passes, bank_means)
        return _Found(ablation(passes, means, sample, seed), {"sample": sample, "mean_of": whose})
    if "target" not in METHODS[method]:
        return _from_attention(passes, method, options)
    position = options.get("position")
    d_vocab = int(passes.model.cfg.d_vocab)
    target = make_target(options.get("target", "max_logit"), position, passes.tokens, passes.mask, d_vocab)
    said: dict[str, Any] = {"target": target.name, "position": _plain(position)}
    if method == "attribution_patching":
        corrupted = check_tokens(options.get("corrupted"), (passes.tokens.shape[0], passes.tokens.shape[1]))
        if corrupted is None:
            raise BasinsError(
                'method="attribution_patching" needs corrupted=...: token ids of the same shape as tokens, whose '
                "states are patched in."
            )
        check_room(passes.model, corrupted)
        return _Found(attribution_patching(passes, target, corrupted), said)
    if method == "integrated_gradients":
        baseline = choose("baseline", options.get("baseline", "mean"), BASELINES)
        steps = STEPS[baseline] if options.get("steps") is None else options["steps"]
        whole("steps", steps, 1, "it counts points on the path from the baseline.")
        means, whose = _means(passes, bank_means) if baseline == "mean" else (None, None)
        found = integrated_gradients(passes, target, means, int(steps))
        said |= {"baseline": baseline, "steps": int(steps)}
        said |= {"mean_of": whose} if found.lowest is None else {"lowest_scale": found.lowest.tolist()}
        return _Found(found.values, said, found.gap, found.change)
    return _Found(gradient(passes, target, times_input=method == "gradient_x_input"), said)


def _means(passes: Passes, bank_means: StateMeans | None) -> tuple[dict[int, Tensor], str]:
    if bank_means is not None:
        return bank_means(passes.layers)
    return state_means(passes), "the usable tokens of this call"


def _from_attention(passes: Passes, method: str, options: dict[str, Any]) -> _Found:
    position, include_self = options.get("position"), options.get("include_self", True)
    if not isinstance(include_self, bool):
        raise BasinsError(f"include_self={include_self!r} is not an option. Possible: True, False.")
    queries = passes.usable
    if position is not None:
        at = check_positions(position, passes.mask)
        queries = torch.zeros_like(queries).scatter(1, at[:, None], True)
    said = {"position": _plain(position)}
    if method == "rollout":
        return _Found(rollout(passes, queries), said)
    said["include_self"] = include_self
    if method == "attention_value":
        heads = choose("heads", options.get("heads", "summed"), HEADS)
        return _Found(attention_value(passes, queries, include_self, heads), said | {"heads": heads})
    return _Found(attention(passes, queries, method == "attention_relative", include_self), said)


def _plain(position: Any) -> Any:
    return position if position is None else torch.as_tensor(position).tolist()
