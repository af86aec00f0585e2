"""How much memory temporaries may take, and what happens when it runs out after all.

Batches and tiles have sizes that were tuned: for a CPU's cache, for a GPU's speed. Within a budget they are as tuned
where they fit in it, else smaller. Results do not depend on them beyond rounding.
"""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from basins.errors import BasinsError

# Of a GPU's free memory: the rest is for results, which are kept for all layers, and for what its libraries allocate.
FREE_SHARE = 0.5
# On a CPU half of what is free, and no more than this: beyond it the tuned sizes gain nothing.
CPU_MOST = 4 * 2**30
# Of the budget, what one kind of temporary may take. Alive together are at most four of these: the patched rows, a
# piece of them inside the block, the sequences around them, and a gathered copy.
SHARE = 1 / 8
# What is projected ahead is kept beside those for a whole layer.
AHEAD_SHARE = 1 / 2

OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory")

Result = TypeVar("Result")


@dataclass(frozen=True)
class Budget:
    """Bytes for temporaries. `halvings`: how often memory ran out; tuned sizes are halved as often."""

    n_bytes: int
    halvings: int = 0

    def halved(self) -> Budget:
        return Budget(self.n_bytes // 2, self.halvings + 1)


_CURRENT: ContextVar[Budget | None] = ContextVar("basins_memory_budget", default=None)


@contextmanager
def within(budget: Budget | None) -> Iterator[None]:
    """Sizes asked for inside fit in this budget; None: they are as tuned."""
    token = _CURRENT.set(budget)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def fitted(tuned: int, bytes_each: float, share: float = SHARE) -> int:
    """How many floats, pairs or keys at once: the tuned number, or fewer where its share of the budget is less.

    `bytes_each`: what one of them takes at the worst moment, with everything that is computed from it and kept.
    """
    budget = _CURRENT.get()
    if budget is None:
        return tuned
    return max(1, min(tuned >> budget.halvings, int(budget.n_bytes * share / bytes_each)))


def default_budget(device: torch.device) -> int:
    """Bytes: half of a GPU's free memory; on a CPU half of what is free, and at most 4 GiB."""
    if device.type == "cuda":
        return int(free_on_gpu(device) * FREE_SHARE)
    return int(min(CPU_MOST, available_memory() * FREE_SHARE))


def free_on_gpu(device: torch.device) -> int:
    """Bytes that could still be allocated, what PyTorch holds without using it included; 0 where there is no GPU."""
    if device.type != "cuda":
        return 0
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + held


def available_memory() -> int:
    """Bytes of main memory that programs could take now; the machine's whole memory where it does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            found = {name: int(value.split()[0]) for name, value in (line.split(":") for line in lines)}
        return found["MemAvailable"] * 1024
    except (OSError, KeyError, ValueError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 2 * CPU_MOST


def is_out_of_memory(error: BaseException) -> bool:
    """PyTorch says it with a class of its own on GPUs, and in words on a CPU."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in OUT_OF_MEMORY)


@dataclass
class Memory:
    """The budget of one call of the scorer, and at which layers memory ran out."""

    budget: Budget
    halved_at: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, given: int | None, device: torch.device) -> Memory:
        """`given` bytes, or the device's default."""
        return cls(Budget(default_budget(device) if given is None else given))

    def attempt(
        self, layer: int, measure: Callable[[], Result], start_over: Callable[[], None] = lambda: None
    ) -> Result:
        """`measure()` within the budget; where memory runs out, once more within half of it, after `start_over()`.

        Raises BasinsError where it runs out again: what was asked for, and which settings help.
        """
        for last in (False, True):
            try:
                with within(self.budget):
                    return measure()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if last:
                    raise self._refused(layer, error) from error
            # Outside of the handler: the exception's frames hold the tensors that there was no room for.
            free_caches()
            self.budget = self.budget.halved()
            self.halved_at.append(layer)
            start_over()
        raise AssertionError("the second attempt returns or raises")

    def _refused(self, layer: int, error: BaseException) -> BasinsError:
        asked = (str(error).strip().partition("\n")[0] or type(error).__name__)[:300]
        return BasinsError(
            f"memory ran out at layer {layer}, and again with half the budget, {in_words(self.budget.n_bytes)} for "
            f"temporaries. The last request: {asked}. What helps: fewer texts or tokens at a time, a smaller k, a "
            "smaller max_length, batch_size=1, a smaller memory_budget, the model in bfloat16, or another device. "
            "`basins plan` says beforehand what a call takes."
        )


def give_back() -> None:
    """Freed blocks go back to the system: the C library keeps those under 32 MiB for itself, between others in use."""
    if _TRIM is not None:
        _TRIM(0)


def _malloc_trim() -> Callable[[int], int] | None:
    """glibc's; other C libraries have none."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None


_TRIM = _malloc_trim()


def free_caches() -> None:
    gc.collect()
    give_back()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def in_words(n_bytes: float) -> str:
    """1536 * 2**20 -> "1.50 GiB"."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if n_bytes >= size:
            return f"{n_bytes / size:.2f} {unit}"
    return f"{n_bytes:.0f} bytes"
