"""Plain patching: put one neighbour into one position of one sequence and run the model. Exact, slow, assumes nothing.

Two forms: through the whole model's hooks (the reference that everything is checked against), and through the one block
with the arguments the model gave it (`depth` times cheaper, checked against the first).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from basins.block_calls import BlockCall, dummy_tokens
from basins.lens import resid_post, resid_pre, run, without_patterns

TOKENS_PER_CALL = 8192


def restart_layers(
    model: Any,
    inputs: dict[int, Float[Tensor, "row pos d_model"]],
    attention_mask: Int[Tensor, "row pos"],
    tokens: Int[Tensor, "row pos"] | None = None,
) -> dict[int, Float[Tensor, "row pos d_model"]]:
    """Every layer's output when it starts from the states given, in one forward pass through `run_with_hooks`.

    The states replace the residual stream at `hook_resid_pre`, so earlier layers do not matter, and the tokens only
    where blocks read them (per-layer embeddings of Gemma 4); None: any.
    """
    outputs: dict[int, Tensor] = {}

    def start(layer: int) -> Callable:
        return lambda value, hook: inputs[layer].to(value)

    def keep(layer: int) -> Callable:
        def hook_fn(value: Tensor, hook: Any) -> None:
            outputs[layer] = value.detach()

        return hook_fn

    hooks = [(resid_pre(layer), start(layer)) for layer in inputs] + [
        (resid_post(layer), keep(layer)) for layer in inputs
    ]
    tokens = dummy_tokens(model, *attention_mask.shape) if tokens is None else tokens
    run(model, tokens, attention_mask, hooks, until=resid_post(max(inputs)))
    return outputs


def call_block(
    model: Any, layer: int, args: tuple, kwargs: dict, states: Float[Tensor, "row pos d_model"]
) -> Float[Tensor, "row pos d_model"]:
    """Run one block. The states are put in behind the user's hooks on `resid_pre`: they already went through them."""
    handle = model.hook_dict[resid_pre(layer)].register_forward_hook(lambda point, inputs, output: states)
    try:
        with without_patterns(model.blocks[layer]):
            output = model.blocks[layer](*args, **kwargs)
    finally:
        handle.remove()
    return output[0] if isinstance(output, tuple) else output


def patch_block(
    model: Any,
    call: BlockCall,
    states: Float[Tensor, "batch pos d_model"],
    patches: Float[Tensor, "patch d_model"],
    rows: Int[Tensor, "patch"],
    positions: Int[Tensor, "patch"],
) -> Float[Tensor, "patch d_model"]:
    """Outputs of one block at the patched position: one copy of the sequence for every patch.

    Patch i stands at position `positions[i]` of sequence `rows[i]`; `states` are in the block's dtype and on its
    device.
    """
    outputs = torch.empty_like(patches)
    step = max(1, TOKENS_PER_CALL // call.pos)
    for start in range(0, len(patches), step):
        part = slice(start, start + step)
        copies = states[rows[part]].clone()
        here = torch.arange(len(copies), device=copies.device), positions[part]
        copies[here] = patches[part]
        args, kwargs = call.for_rows(copies, rows[part])
        outputs[part] = call_block(model, call.layer, args, kwargs, copies)[here]
    return outputs


def patch_model(
    model: Any,
    layer: int,
    states: Float[Tensor, "batch pos d_model"],
    attention_mask: Int[Tensor, "batch pos"],
    patches: Float[Tensor, "patch d_model"],
    rows: Int[Tensor, "patch"],
    positions: Int[Tensor, "patch"],
) -> Float[Tensor, "patch d_model"]:
    """The same through the whole model: the reference."""
    outputs = torch.empty_like(patches)
    step = max(1, TOKENS_PER_CALL // states.shape[1])
    for start in range(0, len(patches), step):
        part = slice(start, start + step)
        copies = states[rows[part]].clone()
        here = torch.arange(len(copies), device=copies.device), positions[part]
        copies[here] = patches[part]
        result = restart_layers(model, {layer: copies}, attention_mask[rows[part].to(attention_mask.device)])[layer]
        outputs[part] = result[here].to(outputs)
    return outputs
