"""Before a scorer trusts a fast path it compares it, block by block, with the model's own forward pass.

Four paths give the same numbers where they work: the core, packed replay, one block per patch, the whole model per
patch. The check takes the fastest that agrees and says why the others were refused. Two things are compared: every
position's own state must reproduce the next layer, and a few foreign states must come out as when they are patched in
by hooks.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from basins.block_calls import BlockCall, CannotRebuild, record_calls
from basins.block_parts import has_known_parts
from basins.core import check_causal
from basins.errors import BasinsError
from basins.lens import block_device, block_dtype, hook_fingerprint, made_of, model_name
from basins.memory import is_out_of_memory
from basins.patching import patch_block, restart_layers
from basins.precision import matmul_precision
from basins.rerun import Replay

PATHS = ("core", "packed", "single_block", "full_model")
N_FOREIGN = 4
HERE = os.path.dirname(__file__)


@dataclass(frozen=True)
class CheckedPath:
    """Which path a block's re-run takes, its relative error in the check, and why faster ones were refused."""

    path: str
    error: float
    refused: dict[str, str]


def disagreement(
    got: Float[Tensor, "row d_model"], expected: Float[Tensor, "row d_model"], before: Float[Tensor, "row d_model"]
) -> float:
    """Largest error over the rows, in units of what is allowed: above 1 the two do not agree.

    Allowed is sqrt(machine epsilon) of what the block writes, plus the rounding of the stream it writes to: in a
    stream of norm 20,000 float32 itself moves by 0.002.
    """
    eps = torch.finfo(got.dtype).eps
    got, expected, before = got.double(), expected.double(), before.double()
    allowed = eps**0.5 * (expected - before).norm(dim=-1) + 8 * eps * (expected.norm(dim=-1) + before.norm(dim=-1))
    ratio = (got - expected).norm(dim=-1) / allowed.clamp_min(1e-300)
    return float("inf") if not bool(torch.isfinite(got).all()) else float(ratio.max())


def check_paths(
    model: Any,
    calls: dict[int, BlockCall],
    states: dict[int, Float[Tensor, "1 pos d_model"]],
    tokens: Int[Tensor, "1 pos"],
    attention_mask: Int[Tensor, "1 pos"],
    seed: int,
) -> dict[int, CheckedPath]:
    """Check one sequence at every layer of `calls` (recorded for that sequence alone), in one forward pass.

    Without TF32, whatever the user's switch says: its rounding would hide mistakes, or look like one.
    """
    layer = next(iter(calls))
    with matmul_precision("float32", block_device(model, layer), block_dtype(model, layer)):
        return _check_paths(model, calls, states, tokens, attention_mask, seed)


def _check_paths(
    model: Any,
    calls: dict[int, BlockCall],
    states: dict[int, Float[Tensor, "1 pos d_model"]],
    tokens: Int[Tensor, "1 pos"],
    attention_mask: Int[Tensor, "1 pos"],
    seed: int,
) -> dict[int, CheckedPath]:
    real = attention_mask[0].bool().nonzero()[:, 0].cpu()
    rng = torch.Generator().manual_seed(seed)
    spread = torch.linspace(len(real) - 1, len(real) // 2, N_FOREIGN).long()
    positions = real[spread]
    donors = real[torch.randint(len(real), (N_FOREIGN,), generator=rng)]
    inputs = {}
    for layer in calls:
        own = states[layer].to(block_device(model, layer), block_dtype(model, layer))
        # Row 0 is the sequence as it is; in each other row a foreign state stands at one position. It is moved a
        # little, so that a row that drew its own state tests something too.
        rows = own.repeat(N_FOREIGN + 1, 1, 1)
        rows[torch.arange(1, N_FOREIGN + 1), positions] = own[0, donors] + 0.25 * own[0, donors].roll(1, 0)
        inputs[layer] = rows
    masks = attention_mask.repeat(N_FOREIGN + 1, 1)
    expected = restart_layers(model, inputs, masks, tokens.repeat(N_FOREIGN + 1, 1))
    paths = {
        layer: _check_layer(model, call, inputs[layer], expected[layer], real, positions)
        for layer, call in calls.items()
    }
    whole = {layer: inputs[layer] for layer, checked in paths.items() if checked.path == "full_model"}
    # The whole model is run on any tokens.
    for layer, got in restart_layers(model, whole, masks).items() if whole else ():
        found = [each[:, real.to(each.device)].flatten(0, 1).cpu() for each in (got, expected[layer], inputs[layer])]
        if not bool(found[1].isfinite().all()):
            continue  # it overflows, which scoring says
        if not disagreement(*found) <= 1:
            raise BasinsError(
                f"block {layer} of {model_name(model)} cannot be re-run: called alone it does not do what it does in "
                f"the model ({paths[layer].refused['single_block']}), and in the whole model what it does depends on "
                "the tokens, not on the states alone. Possible: method='lookup' on a cache."
            )
    return paths


def _check_layer(
    model: Any,
    call: BlockCall,
    inputs: Float[Tensor, "row pos d_model"],
    expected: Float[Tensor, "row pos d_model"],
    real: Int[Tensor, "real"],
    positions: Int[Tensor, "foreign"],
) -> CheckedPath:
    device = inputs.device
    expected = expected.to(device)
    foreign = torch.arange(1, len(positions) + 1, device=device)
    real, positions = real.to(device), positions.to(device)
    own = inputs[:1]
    patches = torch.cat([own[0, real], inputs[foreign, positions]])
    wanted = torch.cat([expected[0, real], expected[foreign, positions]])
    at = torch.cat([real, positions])

    def all_at_once(path: str) -> Callable[[], Tensor]:
        def attempt() -> Tensor:
            everything = torch.ones(own.shape[:2], dtype=torch.long, device=device)
            replay = Replay(model, path, call, own, everything)
            if path == "core":
                check_causal(replay.context)
            outputs = replay.outputs(patches[None], at[None])
            return torch.cat([outputs[0], replay.next_states()[0, real]])

        return attempt

    def single_block() -> Tensor:
        some = torch.cat([real[-1:], positions])
        chosen = torch.cat([own[0, real[-1:]], inputs[foreign, positions]])
        return patch_block(model, call, own, chosen, torch.zeros_like(some), some)

    last = slice(len(real) - 1, None)
    right, before = torch.cat([wanted, expected[0, real]]), torch.cat([patches, own[0, real]])
    core = {"core": (all_at_once("core"), right, before)} if has_known_parts(model, call.layer) else {}
    attempts = core | {
        "packed": (all_at_once("packed"), right, before),
        "single_block": (single_block, wanted[last], patches[last]),
    }
    refused: dict[str, str] = {}
    for path, (attempt, right, before) in attempts.items():
        try:
            error = disagreement(attempt(), right, before)
        # What a block raises when it is called in a way that it was not made for; anything else is for the user.
        except (CannotRebuild, RuntimeError, ValueError, TypeError, LookupError, AttributeError) as reason:
            if is_out_of_memory(reason):
                raise
            refused[path] = f"{type(reason).__name__}: {reason}"
            continue
        if error <= 1:
            return CheckedPath(path, error, refused)
        refused[path] = f"it differs from the model's own forward pass by {error:.3g} times what rounding allows"
    return CheckedPath("full_model", 0.0, refused)


class SlowReplay(UserWarning):
    """A re-run takes the slow path: the same numbers, one sequence for every neighbour."""


def _warn(message: str) -> None:
    """Names the line that called into this package, however deep in it this is."""
    frame, level, inside = sys._getframe(), 1, 1
    while frame is not None:
        inside = level if frame.f_code.co_filename.startswith(HERE) else inside
        frame, level = frame.f_back, level + 1
    warnings.warn(message, SlowReplay, stacklevel=inside + 1)


class SelfCheck:
    """Checks each layer of a model once for the same hooks, modules, padding and length, and remembers its path."""

    def __init__(self, model: Any, seed: int) -> None:
        self.model, self.seed = model, seed
        self.made_of: tuple = ()
        self.known: dict[tuple[tuple, bool, int], dict[int, CheckedPath]] = {}

    def paths(
        self,
        tokens: Int[Tensor, "batch pos"],
        attention_mask: Int[Tensor, "batch pos"],
        layers: tuple[int, ...],
        states_at: Callable[[int, slice], Float[Tensor, "1 pos d_model"]] | None = None,
    ) -> dict[int, CheckedPath]:
        """Paths for `layers`, checked on the longest sequence: of the left-padded ones if there are any.

        `states_at(layer, row)` gives its states where a cache holds them; else they come from the tokens.
        """
        lengths, left = attention_mask.sum(1), attention_mask[:, 0] == 0
        row = int((lengths + left * attention_mask.shape[1]).argmax())
        end = int(attention_mask[row].nonzero()[-1]) + 1
        tokens, mask = tokens[row : row + 1, :end], attention_mask[row : row + 1, :end]
        hooks, padded = hook_fingerprint(self.model), bool(left.any())
        if made_of(self.model) != self.made_of:
            self.known.clear()
        for (known_hooks, known_padding, length), paths in self.known.items():
            if known_hooks == hooks and known_padding == padded and length >= end and set(layers) <= set(paths):
                return {layer: paths[layer] for layer in layers}
        calls, states = record_calls(self.model, tokens, mask, layers, layers if states_at is None else ())
        if states_at is not None:
            states = {layer: states_at(layer, slice(row, row + 1))[:, :end] for layer in layers}
        paths = check_paths(self.model, calls, states, tokens, mask, self.seed)
        slow = [layer for layer, checked in paths.items() if checked.path not in ("core", "packed")]
        if slow:
            first = paths[slow[0]]
            _warn(
                f"{len(slow)} of {len(paths)} blocks cannot be re-run packed and are run once for every neighbour: "
                f"exact, but slow. Block {slow[0]}: {first.refused['packed']}. scores.settings['replay_refused'] has "
                "all reasons."
            )
        # Asked for again: a bridge hooks itself in its first forward pass.
        self.made_of = made_of(self.model)
        self.known[hook_fingerprint(self.model), padded, end] = paths
        return paths
