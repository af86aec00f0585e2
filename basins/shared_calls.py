"""Block calls of one batch after another, recorded anew only where the padding is new.

What a block is called with depends on the padding and the length, not on the tokens, so batches that are padded alike
share one recording. That is not taken on trust: it is recorded twice, for other tokens and another number of sequences.
A model in which the two differ by more than the number of sequences is recorded batch by batch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from basins.block_calls import BlockCall, record_calls

# Sequences of the two recordings. Neither divides the other, so no argument fits both by accident.
FEW, MORE = 2, 3


class CallRecorder:
    """Records how a model calls its blocks of `layers`."""

    def __init__(self, model: Any, layers: Iterable[int]) -> None:
        self.model, self.layers = model, tuple(layers)
        self.known: dict[tuple[int, bytes], dict[int, SharedCall] | None] = {}

    def record(
        self, tokens: Int[Tensor, "batch pos"], attention_mask: Int[Tensor, "batch pos"], keep_states: tuple[int, ...]
    ) -> tuple[dict[int, BlockCall], dict[int, Float[Tensor, "batch pos d_model"]]]:
        """As `record_calls`."""
        shared = self._shared(tokens, attention_mask)
        if shared is None:
            return record_calls(self.model, tokens, attention_mask, self.layers, keep_states)
        states = record_calls(self.model, tokens, attention_mask, (), keep_states)[1] if keep_states else {}
        return {layer: call.of(len(tokens)) for layer, call in shared.items()}, states

    def _shared(
        self, tokens: Int[Tensor, "batch pos"], attention_mask: Int[Tensor, "batch pos"]
    ) -> dict[int, SharedCall] | None:
        """None where the sequences are padded differently or are few, or where two recordings do not agree."""
        if not self.layers or len(tokens) < MORE or not bool((attention_mask == attention_mask[:1]).all()):
            return None
        padding = attention_mask.shape[1], attention_mask[0].cpu().numpy().tobytes()
        if padding not in self.known:
            first, second = (
                record_calls(self.model, tokens[rows], attention_mask[rows], self.layers)[0]
                for rows in (slice(None, FEW), slice(-MORE, None))
            )
            calls = {layer: SharedCall.of_two(first[layer], second[layer]) for layer in self.layers}
            self.known[padding] = {layer: call for layer, call in calls.items() if call is not None}
            if len(self.known[padding] or {}) < len(calls):
                self.known[padding] = None
        return self.known[padding]


class SharedCall:
    """A block's call for any number of sequences that are padded alike."""

    def __init__(self, call: BlockCall, leaves: list[tuple[Any, bool]]) -> None:
        """`leaves`: each argument leaf, and whether it is one sequence's share of a leaf that has all sequences'."""
        self.call, self.leaves = call, leaves

    @staticmethod
    def of_two(few: BlockCall, more: BlockCall) -> SharedCall | None:
        """What two calls for different tokens and numbers of sequences have in common; None if that is not all."""
        if few.arg_names != more.arg_names or few.pos != more.pos:
            return None
        pairs = _leaves(few), _leaves(more)
        if [name for name, _ in pairs[0]] != [name for name, _ in pairs[1]]:
            return None
        common = [_common(a, b, few.batch, more.batch) for (_, a), (_, b) in zip(*pairs, strict=True)]
        if any(leaf is None for leaf in common):
            return None
        return SharedCall(few, [leaf for leaf in common if leaf is not None])

    def of(self, batch: int) -> BlockCall:
        leaves = iter(self.leaves)

        def fitted(name: str, leaf: Any) -> Any:
            value, one_of_many = next(leaves)
            if not one_of_many:
                return value
            return (
                value.expand(batch, *value.shape[1:])
                if len(value) == 1
                else value.repeat(batch, *[1] * (value.ndim - 1))
            )

        args, kwargs = self.call.with_states(None, fitted)
        return replace(self.call, args=args, kwargs=kwargs, batch=batch)


def _leaves(call: BlockCall) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []

    def keep(name: str, leaf: Any) -> Any:
        found.append((name, leaf))
        return leaf

    call.with_states(None, keep)
    return found


def _common(few: Any, more: Any, n_few: int, n_more: int) -> tuple[Any, bool] | None:
    """The leaf that both calls have, or the share of one sequence in it; None where they differ otherwise."""
    if not isinstance(few, Tensor) or not isinstance(more, Tensor):
        plain = few is more or (
            type(few) is type(more) and isinstance(few, str | int | float | torch.dtype) and few == more
        )
        return (few, False) if plain else None
    if few.dtype != more.dtype or few.ndim != more.ndim:
        return None
    if torch.equal(few, more):
        return few, False
    # ALiBi of BLOOM has a row for every head of every sequence.
    share, rest = divmod(len(few), n_few) if few.ndim else (0, 1)
    if rest or not share or len(more) != share * n_more or few.shape[1:] != more.shape[1:]:
        return None
    same = bool(
        (few.unflatten(0, (n_few, share)) == few[:share]).all()
        & (more.unflatten(0, (n_more, share)) == few[:share]).all()
    )
    return (few[:share].clone(), True) if same else None
