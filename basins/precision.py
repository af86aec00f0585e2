"""In what precision the re-run multiplies matrices, and PyTorch's switches left as they were found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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

    "float32" switches TF32 off on a GPU, whatever the user's switch says; "bfloat16" is PyTorch's autocast: products
    in bfloat16 (accumulated in float32 by the device), softmax and norms in float32.
    """
    if dtype != torch.float32:
        yield
    elif precision == "bfloat16":
        with torch.autocast(device.type, torch.bfloat16):
            yield
    elif device.type != "cuda":
        yield
    else:
        with _tf32(precision == "tf32"):
            yield


def tf32_is_on() -> bool:
    """As matrix products on a GPU take it now."""
    switch = torch.backends.cuda.matmul
    try:
        return switch.fp32_precision == "tf32"
    except AttributeError:
        return bool(switch.allow_tf32)


@contextmanager
def _tf32(on: bool) -> Iterator[None]:
    """Both of PyTorch's ways to switch TF32 read as they did before: only one is touched.

    From version 2.9 on that is the newer, which leaves the older as it is; before, there is only the older.
    """
    switch = torch.backends.cuda.matmul
    try:
        before = switch.fp32_precision
    except AttributeError:
        older = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if on else "highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(older)
        return
    switch.fp32_precision = "tf32" if on else "ieee"
    try:
        yield
    finally:
        switch.fp32_precision = before
