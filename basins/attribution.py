"""Which tokens matter to the model: importance of every token at every layer, in the shape of its scores."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from basins.ablation import ablation, state_means
from basins.activations import check_mask, check_tokens
from basins.attention_importance import attention, attention_value, rollout
from basins.corpus import check_room
from basins.errors import BasinsError, choose
from basins.gradient_importance import attribution_patching, gradient
from basins.integrated_gradients import BASELINES, integrated_gradients
from basins.lens import as_found, block_dtype, check_layers, check_model, fingerprint, model_name, weight_processing
from basins.passes import Passes
from basins.results import token_strings
from basins.settings import versions, whole
from basins.sources import plan_batch
from basins.targets import check_positions, make_target

# Method -> the options that mean something to it.
METHODS: dict[str, tuple[str, ...]] = {
    "attention": ("position", "include_self"),
    "attention_relative": ("position", "include_self"),
    "attention_value": ("position", "include_self"),
    "rollout": ("position",),
    "gradient": ("target", "position"),
    "gradient_x_input": ("target", "position"),
    "integrated_gradients": ("target", "position", "baseline", "steps"),
    "attribution_patching": ("target", "position", "corrupted"),
    "ablation": ("sample",),
}

# Ablation leaves tokens that were not sampled; relative attention has no value for a key that no query sees.
MAY_BE_NAN = ("ablation", "attention_relative")


@dataclass(frozen=True)
class Attribution:
    """Importance of every token at every layer; NaN at padding and where the token was left out.

    `values[i]` belongs to the states entering block `layers[i]`, as in `BasinScores`; attention is that of the block.
    Units: attention methods count queries times heads; gradients are in units of the target (a logit, or nats) per unit
    of the stream, products and differences in units of the target; ablation is in nats. `completeness_gap`, of
    integrated gradients only, is what each sequence's values sum to beyond the change of the target.
    """

    values: Float[Tensor, "layer batch pos"]
    method: str
    layers: tuple[int, ...]
    tokens: Int[Tensor, "batch pos"]
    token_strings: tuple[tuple[str, ...], ...] | None
    settings: dict[str, Any] = field(repr=False)
    completeness_gap: Float[Tensor, "layer batch"] | None = None

    def total(self) -> Float[Tensor, "batch pos"]:
        """Sum over layers."""
        return self.values.sum(0)

    def __repr__(self) -> str:
        layer, batch, pos = self.values.shape
        found = int(self.values.isfinite().any(0).sum())
        return f"Attribution({self.method}: {layer} layers, {batch} sequences of {pos} positions, {found} tokens)"


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
    **options: Any,
) -> Attribution:
    """Importance of every token at every layer, by one of these methods (`METHODS` has the options of each).

    - `attention`: sum over heads and queries of the pattern's column. `attention_relative`: that, divided by what the
      same queries would give under uniform attention and the model's own mask; 1 everywhere where it is uniform.
      `attention_value`: each weight times the norm of what its head writes. `rollout`: attention through all blocks up
      to this one, skip connections as half. `position`: one query only instead of all; `include_self=False` leaves out
      what a token gives itself. Nothing is renormalised after leaving out.
    - `gradient`: |d target / d state|. `gradient_x_input`: its dot product with the state. One forward and one backward
      pass for all layers.
    - `integrated_gradients`: along the path from `baseline` ("mean" of the usable states or "zero"), in `steps` points
      (50); see `completeness_gap`, which stays large from "zero" in models whose norms have no bias.
    - `attribution_patching`: gradient times (corrupted minus clean) state, for the token ids `corrupted`.
    - `ablation`: rise of the sequence's summed next-token loss when the state becomes the mean of the usable ones;
      `sample` tokens, or all: one forward pass for each token and layer.

    Args:
        target: of the gradients, "max_logit" (default), "next_token", a token id, or a callable from logits
            "row pos d_vocab" to one number a row; see `basins.targets.make_target`.
        position: where the target is read; a number or one for each row, negative from the last real token, which is
            the default ("next_token": the sum over all positions).
        exclude_first: first real positions that get NaN; they also neither give attention nor count in a mean.
        batch_size: sequences in one pass; the numbers do not depend on it.

    Raises BasinsError for unknown methods, targets, options and positions, and where no attention pattern is formed.
    """
    check_model(model)
    _check_options(method, options)
    wanted = check_layers(model, layers)
    ids = check_tokens(tokens, None)
    if ids is None:
        raise BasinsError("tokens is None. Pass token ids, one row a sequence.")
    check_room(model, ids)
    mask = check_mask(attention_mask, (ids.shape[0], ids.shape[1]))
    usable = mask.bool() & (mask.cumsum(1) > exclude_first)
    size = batch_size or plan_batch(model, ids.shape[1])
    passes = Passes(model, ids, mask, usable, wanted, size, dtype)
    with as_found(model):
        values, gap, said = _measure(passes, method, options, seed)
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
        "padding": int((mask == 0).sum()),
        "model": model_name(model),
        "model_dtype": str(block_dtype(model, 0)).removeprefix("torch."),
        "model_fingerprint": fingerprint(model),
        "weight_processing": weight_processing(model),
        "versions": versions(),
    }
    values = values.masked_fill(~usable, float("nan"))
    return Attribution(values, method, wanted, ids, token_strings(model, ids), settings | said, gap)


def _check_options(method: str, options: dict[str, Any]) -> None:
    choose("method", method, METHODS)
    for name in options:
        if name not in METHODS[method]:
            takers = [other for other, taken in METHODS.items() if name in taken]
            raise BasinsError(
                f"{name} means nothing to method={method!r}, which takes {', '.join(METHODS[method])}."
                + (f" It belongs to {', '.join(takers)}." if takers else "")
            )


def _measure(
    passes: Passes, method: str, options: dict[str, Any], seed: int
) -> tuple[Tensor, Tensor | None, dict[str, Any]]:
    """Values, completeness gap, and the options as they were understood."""
    if method == "ablation":
        sample = options.get("sample")
        if sample is not None:
            whole("sample", sample, 1, "it counts tokens; None ablates all of them.")
        return ablation(passes, state_means(passes), sample, seed), None, {"sample": sample}
    position = options.get("position")
    if "target" not in METHODS[method]:
        return _from_attention(passes, method, position, options.get("include_self", True))
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
        return attribution_patching(passes, target, corrupted), None, said
    if method == "integrated_gradients":
        baseline, steps = choose("baseline", options.get("baseline", "mean"), BASELINES), options.get("steps", 50)
        whole("steps", steps, 1, "it counts points on the path from the baseline.")
        means = state_means(passes)
        if baseline == "zero":
            means = {layer: torch.zeros_like(mean) for layer, mean in means.items()}
        values, gap = integrated_gradients(passes, target, means, int(steps), baseline)
        return values, gap, said | {"baseline": baseline, "steps": int(steps)}
    return gradient(passes, target, times_input=method == "gradient_x_input"), None, said


def _from_attention(
    passes: Passes, method: str, position: Any, include_self: Any
) -> tuple[Tensor, None, dict[str, Any]]:
    if not isinstance(include_self, bool):
        raise BasinsError(f"include_self={include_self!r} is not an option. Possible: True, False.")
    queries = passes.usable
    if position is not None:
        at = check_positions(position, passes.mask)
        queries = torch.zeros_like(queries).scatter(1, at[:, None], True)
    said = {"position": _plain(position)}
    if method == "rollout":
        return rollout(passes, queries), None, said
    said["include_self"] = include_self
    if method == "attention_value":
        return attention_value(passes, queries, include_self), None, said
    return attention(passes, queries, method == "attention_relative", include_self), None, said


def _plain(position: Any) -> Any:
    return position if position is None else torch.as_tensor(position).tolist()
