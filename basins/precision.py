"""In what precision the re-run multiplies matrices, and PyTorch's switches left as they were found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch


def effective_precision(precision: str, device: torch.device, dtype: torch.dtype) -> str:
    """What a setting amounts to, in words for the result: only float32 models on a GPU have TF32."""
    if dtype != torch.float32:
        return f"{str(dtype).removeprefix('torch.')}: the model's own, precision changes float32 models only"
    if precision == "tf32" and device.type != "cuda":
        return f"float32: the {device.type} has no TF32"
    return precision


@contextmanager
def matmul_precision(precision: str, device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Matrix products of float32 tensors on `device` in this precision inside, and as before afterwards.

    "float32" means it, whatever the user's switches say: no TF32 on a GPU, no bfloat16 on a CPU; "bfloat16" is
    PyTorch's autocast: products in bfloat16 (accumulated in float32 by the device), softmax and norms in float32.
    """
    if dtype != torch.float32:
        yield
    elif precision == "bfloat16":
        with torch.autocast(device.type, torch.bfloat16):
            yield
    elif device.type not in ("cuda", "cpu"):
        yield
    else:
        with _products(device, "tf32" if precision == "tf32" and device.type == "cuda" else "ieee"):
            yield


def products_are_full(device: torch.device) -> bool:
    """Whether the user's switches leave float32 products on a device in float32."""
    switch = torch.backends.cuda.matmul if device.type == "cuda" else getattr(torch.backends.mkldnn, "matmul", None)
    try:
        found = switch.fp32_precision  # type: ignore[union-attr]
    except AttributeError:
        return torch.get_float32_matmul_precision() == "highest"
    found = getattr(torch.backends, "fp32_precision", found) if found == "none" else found
    return found in ("none", "ieee")


def tf32_is_on() -> bool:
    """As matrix products on a GPU take it now."""
    switch = torch.backends.cuda.matmul
    try:
        return switch.fp32_precision == "tf32"
    except AttributeError:
        return bool(switch.allow_tf32)


@contextmanager
def _products(device: torch.device, how: str) -> Iterator[None]:
    """Float32 products on a device as "ieee" or "tf32" has them.

    Both of PyTorch's ways to switch this read as they did before: only one is touched. From version 2.9 on that is the
    newer, which leaves the older as it is; before, there is only the older.
    """
    switch = torch.backends.cuda.matmul if device.type == "cuda" else getattr(torch.backends.mkldnn, "matmul", None)
    try:
        before = switch.fp32_precision  # type: ignore[union-attr]
    except AttributeError:
        older = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if how == "tf32" else "highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(older)
        return
    switch.fp32_precision = how  # type: ignore[union-attr]
    try:
        yield
    finally:
        # What it reads as may be what it inherits: set only where it does not say the same without that.
        switch.fp32_precision = "none"  # type: ignore[union-attr]
        if switch.fp32_precision != before:  # type: ignore[union-attr]
            switch.fp32_precision = before  # type: ignore[union-attr]


@contextmanager
def no_autocast() -> Iterator[None]:
    """Whatever autocast the caller has on, off inside."""
    gpu = torch.autocast("cuda", enabled=False) if torch.cuda.is_available() else nullcontext()
    with torch.autocast("cpu", enabled=False), gpu:
        yield
