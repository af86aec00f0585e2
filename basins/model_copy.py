"""A copy of a TransformerLens model that shares no weight with it."""

from __future__ import annotations

import copy
import types
from typing import Any

import torch
from torch import Tensor, nn

from basins.errors import BasinsError
from basins.lens import model_name


def independent_copy(model: Any) -> Any:
    """A copy of `model` without gradients, in evaluation mode, in float32 or better. Hooks are on the copy too.

    `copy.deepcopy` takes functions for constants. An adapter of TransformerLens replaces methods by functions that hold
    a module (Falcon's linear layers), and in a plain deep copy those would still run the original's weights. Here they
    are made anew and hold the copy's.
    """
    # Activations that a module kept from its last run cannot be copied with their graph.
    memo: dict[int, Any] = {
        id(value): value.detach().clone()
        for root in roots(model)
        for module in root.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    try:
        made = copy.deepcopy(model, memo)
    except RuntimeError as error:
        raise BasinsError(
            f"{model_name(model)} cannot be copied ({error}). Does a hook or an attribute of it keep activations that "
            "carry gradients? Take them off (model.reset_hooks()) or detach them."
        ) from error
    for root in roots(made):
        for module in root.modules():
            _rebind(module, memo)
        root.eval()
    if _storages(made) & _storages(model):
        raise BasinsError(f"A copy of {model_name(model)} shares weights with it, so it cannot be changed apart.")
    for parameter in parameters(made):
        parameter.grad = None
    half = [tensor for tensor in tensors(made) if tensor.dtype in (torch.float16, torch.bfloat16)]
    for tensor in half:
        tensor.data = tensor.data.float()
    if half:
        made.cfg.dtype = torch.float32
    return made


def roots(model: Any) -> list[nn.Module]:
    """A bridge keeps the wrapped transformers model outside its own module tree."""
    wrapped = getattr(model, "original_model", None)
    return [model, *([wrapped] if isinstance(wrapped, nn.Module) else [])]


def parameters(model: Any) -> list[nn.Parameter]:
    return list({id(found): found for root in roots(model) for found in root.parameters()}.values())


def tensors(model: Any) -> list[Tensor]:
    """Parameters and buffers."""
    found = {id(held): held for root in roots(model) for held in (*root.parameters(), *root.buffers())}
    return list(found.values())


def _storages(model: Any) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in tensors(model) if tensor.numel()}


def _rebind(module: nn.Module, memo: dict[int, Any]) -> None:
    """Functions among a module's attributes and hooks get the copy in place of what they hold of the original."""
    holders: list[dict[Any, Any]] = [vars(module), module._forward_hooks, module._forward_pre_hooks]
    for holder in holders:
        for name, value in list(holder.items()):
            if isinstance(value, types.FunctionType):
                holder[name] = _with_copies(value, memo)
            elif isinstance(value, types.MethodType) and isinstance(value.__func__, types.FunctionType):
                owner = memo.get(id(value.__self__), value.__self__)
                holder[name] = types.MethodType(_with_copies(value.__func__, memo), owner)


def _with_copies(function: types.FunctionType, memo: dict[int, Any]) -> types.FunctionType:
    """`function`, or one like it in whose closure copied objects stand where it holds originals."""
    if id(function) in memo:
        return memo[id(function)]
    if not _holds_original(function, memo, set()):
        return function
    cells = tuple(types.CellType() for _ in function.__closure__ or ())
    made = types.FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__, cells)
    made.__kwdefaults__ = function.__kwdefaults__
    made.__dict__.update(function.__dict__)
    memo[id(function)] = made  # before its cells are filled: a function may hold itself
    for old, new in zip(function.__closure__ or (), cells):
        for held in _contents(old):
            new.cell_contents = _copied(held, memo)
    return made


def _copied(held: Any, memo: dict[int, Any]) -> Any:
    if isinstance(held, types.FunctionType):
        return _with_copies(held, memo)
    if isinstance(held, types.MethodType):
        return types.MethodType(held.__func__, memo.get(id(held.__self__), held.__self__))
    return memo.get(id(held), held)


def _holds_original(function: types.FunctionType, memo: dict[int, Any], seen: set[int]) -> bool:
    seen.add(id(function))
    for held in (held for cell in function.__closure__ or () for held in _contents(cell)):
        if isinstance(held, types.FunctionType):
            if id(held) not in seen and _holds_original(held, memo, seen):
                return True
        elif id(getattr(held, "__self__", held)) in memo:
            return True
    return False


def _contents(cell: types.CellType) -> tuple[Any, ...]:
    try:
        return (cell.cell_contents,)
    except ValueError:  # not filled yet
        return ()
