"""What scoring may not change in a model, as a dictionary that two moments can be compared by."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_load_state_dict_pre_hooks",
)
# Hooks that a model's own first forward pass installs for good, whoever calls it.
_OWN_WIRING = ("transformers.", "transformer_lens.model_bridge.")
_PLAIN = (bool, int, float, str, torch.dtype, torch.device, type(None))


def _roots(model: Any) -> dict[str, nn.Module]:
    """A bridge keeps the wrapped transformers model outside its own module tree."""
    wrapped = getattr(model, "original_model", None)
    return {"": model, **({"original_model.": wrapped} if isinstance(wrapped, nn.Module) else {})}


def _plain(value: Any) -> Any:
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_plain(item) for item in value]
    return type(value).__name__


def _tensor(tensor: Tensor) -> dict[str, Any]:
    return {
        "address": tensor.data_ptr(),
        "in-place changes": tensor._version,
        "shape": tuple(tensor.shape),
        "dtype": tensor.dtype,
        "device": tensor.device,
        "requires_grad": tensor.requires_grad,
        "grad": None if tensor.grad is None else (tensor.grad.data_ptr(), tensor.grad._version),
    }


def _module(module: nn.Module) -> dict[str, Any]:
    state: dict[str, Any] = {"training": module.training}
    for name in _HOOKS:
        hooks = getattr(module, name, {}).values()
        state[name] = [hook for hook in hooks if not str(getattr(hook, "__module__", "")).startswith(_OWN_WIRING)]
    for name in ("fwd_hooks", "bwd_hooks"):
        if isinstance(hooks := getattr(module, name, None), list):
            state[name] = [getattr(hook, "hook", hook) for hook in hooks]
    if "forward" in vars(module):
        state["forward"] = vars(module)["forward"]
    return state


def snapshot(model: Any) -> dict[str, Any]:
    """Hooks, modes, weights (address and count of in-place changes), gradients, configuration, global autograd mode."""
    state: dict[str, Any] = {
        "grad mode": torch.is_grad_enabled(),
        "default dtype": torch.get_default_dtype(),
        "cfg": _plain(vars(model.cfg)),
    }
    for root, module in _roots(model).items():
        if hasattr(config := getattr(module, "config", None), "to_dict"):
            state[f"{root}config"] = _plain({**config.to_dict(), "attention": config._attn_implementation})
        for name, part in module.named_modules():
            state[f"module {root}{name}"] = _module(part)
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            state[f"tensor {root}{name}"] = _tensor(tensor)
    if (tokenizer := getattr(model, "tokenizer", None)) is not None:
        state["tokenizer"] = _plain(
            {name: getattr(tokenizer, name, None) for name in ("padding_side", "model_max_length")}
        )
    return state


def assert_untouched(before: dict[str, Any], after: dict[str, Any]) -> None:
    """AssertionError that names the first things which differ."""
    changes = []
    for key in before.keys() | after.keys():
        old, new = before.get(key, "absent"), after.get(key, "absent")
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            parts = [name for name in old.keys() | new.keys() if old.get(name) != new.get(name)]
            changes += [f"{key}: {name} was {old.get(name)!r}, is {new.get(name)!r}" for name in parts]
        else:
            changes.append(f"{key}: was {old!r}, is {new!r}")
    assert not changes, "the model was changed:\n" + "\n".join(sorted(changes)[:10])
