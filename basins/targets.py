"""What gradients are taken of: one number a sequence, made from its logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from basins.errors import BasinsError

TARGETS = ("max_logit", "next_token")


@dataclass(frozen=True)
class Target:
    """`target(logits, rows)` is one number for each of `rows`; `positions` None: the sum over all positions."""

    kind: Any
    positions: Int[Tensor, "batch"] | None
    tokens: Int[Tensor, "batch pos"]
    mask: Int[Tensor, "batch pos"]

    def __call__(self, logits: Float[Tensor, "row pos d_vocab"], rows: Int[Tensor, "row"]) -> Float[Tensor, "row"]:
        if callable(self.kind):
            return _from_callable(self.kind, logits)
        if self.kind == "next_token":
            return self._next_token(logits, rows)
        assert self.positions is not None
        at = self.positions[rows].to(logits.device)
        here = logits[torch.arange(len(rows), device=logits.device), at]
        return here.amax(-1) if self.kind == "max_logit" else here[:, self.kind]

    def _next_token(self, logits: Float[Tensor, "row pos d_vocab"], rows: Int[Tensor, "row"]) -> Float[Tensor, "row"]:
        following = self.tokens[rows, 1:].to(logits.device)[..., None]
        gained = logits[:, :-1].log_softmax(-1).gather(-1, following)[..., 0]
        counted = (self.mask[rows, 1:] * self.mask[rows, :-1]).bool()
        if self.positions is not None:
            counted &= torch.arange(counted.shape[1]) == self.positions[rows, None]
        return gained.masked_fill(~counted.to(gained.device), 0).sum(1)

    @property
    def name(self) -> str:
        return getattr(self.kind, "__name__", "callable") if callable(self.kind) else str(self.kind)


def make_target(
    target: Any, position: Any, tokens: Int[Tensor, "batch pos"], mask: Int[Tensor, "batch pos"], d_vocab: int
) -> Target:
    """Check a target and its position.

    Args:
        target: "max_logit" (largest logit at the position), "next_token" (log probability of the token that really
            follows, in nats), a token id (its logit at the position), or a callable that turns logits
            "row pos d_vocab" into one number a row.
        position: see `check_positions`. None: the last real token; for "next_token" the sum over all positions.
    """
    if callable(target):
        if position is not None:
            raise BasinsError("position has no meaning for a callable target: it sees the logits of all positions.")
        return Target(target, None, tokens, mask)
    is_id = hasattr(target, "__index__") and not isinstance(target, bool)
    if not is_id and (not isinstance(target, str) or target not in TARGETS):
        raise BasinsError(
            f"target={target!r} is not an option. Possible: {', '.join(map(repr, TARGETS))}, a token id, or a callable "
            "that turns logits into one number a row."
        )
    if is_id and not 0 <= int(target) < d_vocab:
        raise BasinsError(f"target={target} is no token id: this model has {d_vocab} tokens, 0 to {d_vocab - 1}.")
    if target == "next_token":
        if position is None:
            return Target(target, None, tokens, mask)
        positions = check_positions(position, mask)
        last = (positions == check_positions(None, mask)).nonzero()[:, 0].tolist()
        if last:
            raise BasinsError(
                f'target="next_token" at position={position!r}: in sequence {last[0]} no token follows. Pass an '
                "earlier position, for example -2, or None for the sum over all."
            )
        return Target(target, positions, tokens, mask)
    return Target(int(target) if is_id else target, check_positions(position, mask), tokens, mask)


def check_positions(position: Any, mask: Int[Tensor, "batch pos"]) -> Int[Tensor, "batch"]:
    """One column of `tokens` for each row, from a number or one number a row; None: the last real token.

    -1 is the last real token of each row, -2 the one before. Raises BasinsError where that is padding or outside.
    """
    end = mask.argmax(1) + mask.sum(1)
    given = torch.as_tensor(-1 if position is None else position)
    if given.is_floating_point() or given.dtype == torch.bool or given.ndim > 1:
        raise BasinsError(f"position={position!r} must be a whole number, or one for each sequence.")
    if given.ndim == 1 and len(given) != len(mask):
        raise BasinsError(f"position has {len(given)} numbers for {len(mask)} sequences. Pass one number, or one each.")
    given = given.long().cpu().expand(len(mask))
    columns = torch.where(given < 0, end + given, given)
    inside = (columns >= 0) & (columns < mask.shape[1])
    real = inside & mask.gather(1, columns.clamp(0, mask.shape[1] - 1)[:, None])[:, 0].bool()
    if not bool(real.all()):
        row = int((~real).nonzero()[0, 0])
        raise BasinsError(
            f"position={int(given[row])} is outside sequence {row}, whose real tokens stand at "
            f"{int(mask[row].argmax())} to {int(end[row]) - 1}. Negative ones count back "
            "from the last real token, which is -1."
        )
    return columns


def _from_callable(function: Callable[..., Any], logits: Float[Tensor, "row pos d_vocab"]) -> Tensor:
    aims = function(logits)
    if isinstance(aims, Tensor) and aims.ndim == 0 and len(logits) == 1:
        return aims[None]
    if not isinstance(aims, Tensor) or tuple(aims.shape) != (len(logits),):
        got = f"a tensor of shape {tuple(aims.shape)}" if isinstance(aims, Tensor) else type(aims).__name__
        raise BasinsError(
            f"the target returned {got} for logits of shape {tuple(logits.shape)}; it must return one number a row, "
            f"shape ({len(logits)},): sequences go through the model in micro-batches. For a sum over positions: "
            "lambda logits: logits[..., token].sum(1)."
        )
    return aims
