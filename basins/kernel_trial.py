"""Whether a compiled kernel may be used on a device: tried on small examples, against what it stands in for."""

from __future__ import annotations

from collections.abc import Callable

import torch


def refusal(device: torch.device, capability: tuple[int, int], agrees: Callable[[], bool]) -> str | None:
    """Why the kernel does not run on this device; None: it does. `agrees`: compiles it and compares."""
    if device.type != "cuda" or torch.version.cuda is None:
        return "no CUDA device"
    if torch.cuda.get_device_capability(device) < capability:
        return f"compute capability below {capability[0]}.{capability[1]}"
    try:
        agree = agrees()
    except Exception as error:  # whatever a compiler may raise: what the kernel stands in for needs none
        return f"{type(error).__name__}: {error}"
    return None if agree else "the kernel disagrees with its reference"
