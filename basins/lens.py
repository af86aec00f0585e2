"""The few names that differ between TransformerLens 2, 3 and 4, and how a model is left as it was found.

TransformerLens 4 has only the bridge; 2 and 3 have `HookedTransformer`. No class is imported: what is used is `cfg`,
`hook_dict`, `blocks`, `run_with_cache` and `run_with_hooks`, which both have.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from basins.errors import BasinsError
from basins.precision import no_autocast

PATTERN = "_pattern"
NEEDED = ("cfg", "hook_dict", "run_with_cache", "run_with_hooks")


def check_model(model: Any) -> None:
    """Raise BasinsError unless `model` is a decoder that TransformerLens has wrapped."""
    missing = [name for name in NEEDED if not hasattr(model, name)]
    if missing:
        raise BasinsError(
            f"{type(model).__name__} is not a TransformerLens model (it has no {', '.join(missing)}). basins scores a "
            "TransformerBridge or a HookedTransformer. Wrap a transformers model with "
            "basins.load_model(model, tokenizer=tokenizer)."
        )
    names = [name for name, _ in getattr(model, "named_children", list)()]
    if "encoder_blocks" in names or "decoder_blocks" in names or getattr(model.cfg, "is_encoder_decoder", False):
        raise BasinsError(
            f"{model_name(model)} is an encoder-decoder: it has two residual streams and basins scores one. Possible: "
            "decoder-only language models (GPT-2, Llama, Gemma, Qwen, Mistral, ...)."
        )
    if not hasattr(model, "blocks"):
        raise BasinsError(
            f"{model_name(model)} has no list of blocks with one residual stream. Possible: decoder-only language "
            "models (GPT-2, Llama, Gemma, Qwen, Mistral, ...)."
        )


def model_name(model: Any) -> str:
    return str(getattr(model.cfg, "model_name", None) or type(model).__name__)


def n_layers(model: Any) -> int:
    return len(model.blocks)


def check_layers(model: Any, layers: int | Iterable[int] | None) -> tuple[int, ...]:
    """Transitions as sorted numbers 0 .. n_layers - 1; None: all. Negative ones count from the end."""
    return check_layers_of(n_layers(model), layers)


def check_layers_of(n: int, layers: int | Iterable[int] | None) -> tuple[int, ...]:
    """The same for a model of `n` blocks."""
    if layers is None:
        return tuple(range(n))
    wanted: list[Any] = list(layers) if isinstance(layers, Iterable) else [layers]
    if not wanted:
        raise BasinsError(f"layers is empty. Pass transitions 0 to {n - 1}, or None for all of them.")
    for layer in wanted:
        if isinstance(layer, bool) or not hasattr(layer, "__index__"):
            raise BasinsError(f"layer={layer!r} must be a whole number: this model's blocks are numbered 0 to {n - 1}.")
        if not -n <= int(layer) < n:
            raise BasinsError(
                f"layer={layer} is out of range: this model has {n} blocks, numbered 0 to {n - 1}. For the last block "
                "pass layer=-1."
            )
    return tuple(sorted({int(layer) % n for layer in wanted}))


def resid_pre(layer: int) -> str:
    return f"blocks.{layer}.hook_resid_pre"


def resid_post(layer: int) -> str:
    return f"blocks.{layer}.hook_resid_post"


def block_device(model: Any, layer: int) -> torch.device:
    """Where a block's weights live: a model may be spread over several devices."""
    parameter = next(iter(model.blocks[layer].parameters()), None)
    return parameter.device if parameter is not None else torch.device(str(model.cfg.device or "cpu"))


def block_dtype(model: Any, layer: int) -> torch.dtype:
    for parameter in model.blocks[layer].parameters():
        if parameter.is_floating_point():
            return parameter.dtype
    return getattr(model.cfg, "dtype", None) or torch.float32


def input_device(model: Any) -> torch.device:
    parameter = next(iter(model.parameters()), None)
    return parameter.device if parameter is not None else torch.device("cpu")


class Enough(Exception):
    """Raised by a hook when nothing more of a pass is needed."""


def run(
    model: Any,
    tokens: Int[Tensor, "batch pos"],
    attention_mask: Int[Tensor, "batch pos"],
    hooks: list,
    until: str | None = None,
) -> None:
    """One forward pass for its hooks; it ends at the hook point `until`, or where a hook raises `Enough`.

    Not by `stop_at_layer`: it has no name for the end of the blocks, and the logits after it can be larger than all
    else. The mask is always said, because token tensors do not carry it.
    """

    def stop(value: Tensor, hook: Any) -> None:
        raise Enough

    device = input_device(model)
    hooks = hooks if until is None else [*hooks, (until, stop)]  # last, so behind the others at the same point
    with suppress(Enough), without_patterns(model):
        model.run_with_hooks(
            tokens.to(device), fwd_hooks=hooks, return_type=None, attention_mask=attention_mask.to(device)
        )


@contextmanager
def without_patterns(module: nn.Module) -> Iterator[None]:
    """What attention modules keep of a pass inside is forgotten.

    Bridges of fused query, key and value (GPT-2, GPT-NeoX, BLOOM, Phi-3) hold their last attention pattern: a tensor
    for every layer, of all rows with all rows.
    """
    try:
        yield
    finally:
        for part in module.modules():
            if part.__dict__.get(PATTERN) is not None:
                setattr(part, PATTERN, None)


def weight_processing(model: Any) -> str:
    """What was done to the weights: it changes the residual basis, so it belongs to every result."""
    if not hasattr(model, "adapter"):
        return "HookedTransformer: see how it was loaded (from_pretrained folds LayerNorm and centres weights)"
    if getattr(model, "compatibility_mode", False):
        return "TransformerBridge in compatibility mode"
    return "TransformerBridge: raw weights"


def hook_fingerprint(model: Any) -> tuple:
    """Changes whenever a hook is added to or taken from any module: PyTorch never gives a hook's number twice."""
    return tuple(
        (place, tuple(module._forward_pre_hooks), tuple(module._forward_hooks))
        for place, module in enumerate(all_modules(model))
        if module._forward_pre_hooks or module._forward_hooks
    )


def made_of(model: Any) -> tuple:
    """Modules with their `forward`, their own and their class's: themselves, because a freed one's id comes again."""
    return tuple((module, module.__dict__.get("forward"), type(module).forward) for module in all_modules(model))


def all_modules(model: Any) -> list[nn.Module]:
    """A bridge keeps the wrapped transformers model outside its own module tree."""
    wrapped = getattr(model, "original_model", None)
    roots = [model, *([wrapped] if isinstance(wrapped, nn.Module) else [])]
    return [module for root in roots for module in root.modules()]


def measuring_dtype(model: Any) -> torch.dtype:
    """Of distances and variances unless said otherwise: float64 for float64 models, else float32."""
    return torch.float64 if block_dtype(model, 0) == torch.float64 else torch.float32


def has_own_hooks(model: Any) -> bool:
    """Whether the user hooked any module. TransformerLens 4 and transformers leave hooks of their own behind."""
    return any(_is_users(hook) for hook in _all_hooks(model))


def _all_hooks(model: Any) -> list[Any]:
    modules = all_modules(model)
    return [hook for m in modules for hooks in (m._forward_pre_hooks, m._forward_hooks) for hook in hooks.values()]


def _is_users(hook: Any) -> bool:
    """`add_hook` of a hook point wraps the user's function in one of TransformerLens's module hook_points."""
    module = getattr(hook, "__module__", None) or ""
    return module == "transformer_lens.hook_points" or not module.startswith(("transformer_lens.", "transformers."))


def enter_layer(model: Any, layer: int, states: Float[Tensor, "batch pos d_model"]) -> Tensor:
    """What a block's output becomes on the way into block `layer`: the user's hooks on its `resid_pre` see it."""
    point = model.hook_dict[resid_pre(layer)]
    return point(states) if has_hooks(model, layer) else states


def has_hooks(model: Any, layer: int) -> bool:
    """Whether anything hooks the stream on its way into block `layer`."""
    point = model.hook_dict[resid_pre(layer)]
    return bool(point._forward_hooks or point._forward_pre_hooks)


def fingerprint(model: Any) -> str:
    """Hash of the names, shapes and up to 256 evenly spaced values of every parameter."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters(), key=lambda item: item[0]):
        flat = parameter.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // 256)][:256].to("cpu", torch.float32)
        digest.update(f"{name}{tuple(parameter.shape)}{parameter.dtype}".encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()[:16]


@contextmanager
def as_found(model: nn.Module) -> Iterator[None]:
    """No gradients, no autocast and evaluation mode inside; afterwards, also after an exception, all is as it was."""
    modes = [(module, module.training) for module in all_modules(model)]
    patterns = [(module, module.__dict__[PATTERN]) for module, _ in modes if PATTERN in module.__dict__]
    try:
        with torch.no_grad(), no_autocast():
            if any(training for _, training in modes):
                model.eval()
            yield
    finally:
        for module, training in modes:
            module.training = training
        for module, pattern in patterns:
            setattr(module, PATTERN, pattern)
