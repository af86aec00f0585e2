"""Next-token logits step by step, with the model's key-value cache or without: rows that grow together, no padding.

All rows of a batch start at position 0 and are equally long at every step. So masks are all ones, positions count from
0 in every architecture, and nothing about padding can go wrong.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from basins.lens import all_modules, input_device

# Hooks of these modules are a model's own wiring, whoever calls it.
OWN_WIRING = ("transformers.", "transformer_lens.model_bridge.")

# (rows, end) -> logits of the token after the first `end` tokens of each row. `end` grows from call to call.
Steps = Callable[[Int[Tensor, "batch pos"], int], Float[Tensor, "batch d_vocab"]]


def all_logits(model: Any, rows: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_vocab"]:
    """One forward pass without a cache."""
    rows = rows.to(input_device(model))
    return model(rows, attention_mask=torch.ones_like(rows), return_type="logits")


def recomputed(model: Any) -> Steps:
    """Every step runs the model on the whole rows."""
    return lambda rows, end: all_logits(model, rows[:, :end])[:, -1]


@contextmanager
def cached(model: Any, batch: int) -> Iterator[Steps]:
    """Every step runs the model on the new tokens only. Whether that works for a model is for the caller to check."""
    step = _bridge_step(model) if hasattr(model, "adapter") else _hooked_step(model, batch)
    seen = 0

    def steps(rows: Int[Tensor, "batch pos"], end: int) -> Float[Tensor, "batch d_vocab"]:
        nonlocal seen
        new = rows[:, seen:end].to(input_device(model))
        seen = end
        return step(new, end)[:, -1]

    handles = _pass_cache_on(model)
    try:
        yield steps
    finally:
        for handle in handles:
            handle.remove()


def _bridge_step(model: Any) -> Callable[[Int[Tensor, "batch new"], int], Float[Tensor, "batch new d_vocab"]]:
    """The transformers model's own cache, through the bridge."""
    forward = inspect.signature(model.original_model.forward).parameters
    # Of a prompt's logits only the last are wanted, and a vocabulary is wide.
    only_last = {"logits_to_keep": 1} if "logits_to_keep" in forward else {}
    past = None

    def step(new: Int[Tensor, "batch new"], end: int) -> Float[Tensor, "batch new d_vocab"]:
        nonlocal past
        with warnings.catch_warnings():
            # transformers would have the cache under its new name, and the bridge passes it under the old one.
            warnings.filterwarnings("ignore", ".*past_key_values.*deprecated", FutureWarning)
            logits, past = model(
                new,
                attention_mask=new.new_ones(len(new), end),
                past_key_values=past,
                use_cache=True,
                return_type="logits_and_cache",
                **only_last,
            )
        return logits

    return step


def _hooked_step(
    model: Any, batch: int
) -> Callable[[Int[Tensor, "batch new"], int], Float[Tensor, "batch new d_vocab"]]:
    """TransformerLens's own cache, which counts positions and extends the mask by itself."""
    import transformer_lens

    # Its name in version 3, and in 2.
    names = ("TransformerLensKeyValueCache", "HookedTransformerKeyValueCache")
    kind: Any = next(getattr(transformer_lens, name) for name in names if hasattr(transformer_lens, name))
    past = kind.init_cache(model.cfg, input_device(model), batch)

    def step(new: Int[Tensor, "batch new"], end: int) -> Float[Tensor, "batch new d_vocab"]:
        return model(new, attention_mask=torch.ones_like(new), past_kv_cache=past, return_type="logits")

    return step


def _pass_cache_on(model: Any) -> list[Any]:
    """Give the attention of a bridge its cache under the name that it reads.

    transformers 5.24 calls it `cache`; TransformerLens 4.3 reads `past_key_values` and, not finding it, attends to the
    new token alone.
    """

    def rename(module: nn.Module, args: Any, kwargs: Any) -> Any:
        if kwargs.get("cache") is None or "past_key_values" in kwargs:
            return None
        return args, {**kwargs, "past_key_values": kwargs["cache"]}

    readers = [module for module in model.modules() if hasattr(module, "_update_kv_cache")]
    return [module.register_forward_pre_hook(rename, with_kwargs=True) for module in readers]


def has_user_hooks(model: Any) -> bool:
    """Whether anything but the model's own wiring hooks its forward pass."""
    hooks = (
        hook
        for module in all_modules(model)
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    )
    return any(not _module(hook).startswith(OWN_WIRING) for hook in hooks)


def _module(hook: Any) -> str:
    """Where a hook was written; `HookPoint.add_hook` wraps it in a function of its own."""
    if getattr(hook, "__module__", None) == "transformer_lens.hook_points":
        hook = inspect.getclosurevars(hook).nonlocals.get("hook", hook)
    return str(getattr(hook, "__module__", ""))
