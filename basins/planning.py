"""What scoring will take, before anything runs: peak memory, disk, operations, and an estimate of time."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from basins import costs
from basins.errors import BasinsError
from basins.indexes import HALF_FROM, uses_half
from basins.jobs import Job
from basins.lens import check_layers_of
from basins.memory import FREE_SHARE, Budget, default_budget, give_back
from basins.models import parse_device
from basins.moments import Moment, check_budget, moments
from basins.operations import operations
from basins.precision import matmul_precision
from basins.scorer import BasinScorer
from basins.settings import ScorerSettings, whole
from basins.shapes import ModelShape, read_shape, shape_of
from basins.state_store import MEMORY_BUDGET
from basins.wrap import wrap_model

# Of a device that is not here: operations a second of dense float32 products, as makers state them (NVIDIA's data
# sheets: H100 SXM 67 TFLOP/s, A100 19.5) or, for a CPU, what two cores of a server give. A measured rate is better.
STATED_RATES = {"cpu": 1e11, "cuda": 1.95e13, "mps": 1e12}
# And the budget there: half of what such a GPU has free.
ABSENT_BUDGET = 32 * 2**30
RATE_SECONDS = 0.2
RATE_DTYPES = {2: torch.bfloat16, 4: torch.float32, 8: torch.float64}
RATE_SIZE = {"cpu": 1024, "cuda": 8192}


@dataclass(frozen=True)
class Plan:
    """Predicted costs of one call of `score_tokens`.

    `device_bytes`: at the worst moment, on the model's device, weights included; on a GPU what PyTorch allocates, on a
    CPU without `libraries_bytes`, what Python and the libraries take by themselves. `host_bytes`: main memory that a
    call on a GPU takes. `operations`: of matrix products, by stage. `seconds`: operations at `rate` a second; what has
    no matrix product comes on top. `rate_source` says whether the rate was measured here.
    """

    shape: ModelShape
    settings: ScorerSettings
    n_tokens: int
    length: int
    layers: int
    device: str
    sequences_at_once: int
    moments: tuple[Moment, ...]
    libraries_bytes: int
    disk_bytes: int
    operations: dict[str, float]
    rate: float
    rate_source: str

    @property
    def worst(self) -> Moment:
        return max(self.moments, key=lambda moment: moment.device_bytes)

    @property
    def device_bytes(self) -> int:
        return self.worst.device_bytes

    @property
    def host_bytes(self) -> int:
        return max(moment.host_bytes for moment in self.moments)

    @property
    def process_bytes(self) -> int:
        """Main memory of the whole process at its peak."""
        return self.libraries_bytes + (self.device_bytes if self.device == "cpu" else self.host_bytes)

    @property
    def seconds(self) -> float:
        return sum(self.operations.values()) / self.rate


def plan(
    model: Any,
    n_tokens: int,
    *,
    length: int = 128,
    layers: int | Iterable[int] | None = None,
    device: str | torch.device | None = None,
    dtype: str | None = None,
    rate: float | None = None,
    **settings: Any,
) -> Plan:
    """Costs of `BasinScorer(model, **settings).score_tokens` on sequences of `length`, `n_tokens` in all.

    `model`: what `basins.load_model` takes by name (nothing of it is loaded but its configuration), a loaded model, or
    a `basins.shapes.ModelShape`.
    `rate`: operations a second; None measures the device's for 0.2 s, or takes a stated one where it is not here.
    """
    asked = ScorerSettings(**settings)
    whole("n_tokens", n_tokens, 1, "it counts all tokens that will be scored.")
    whole("length", length, 1, "it counts the tokens of one sequence.")
    default = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if isinstance(model, ModelShape):
        shape, place = model, default
    elif hasattr(model, "cfg"):
        shape, place = shape_of(model), next(iter(model.parameters())).device
    else:
        shape, place = read_shape(model, dtype), default
    place, here = (place, True) if device is None else _device(device)
    if shape.n_ctx and length > shape.n_ctx:
        raise BasinsError(f"length={length} is more than the context of {shape.name}, {shape.n_ctx} tokens.")
    if rate is not None and not (isinstance(rate, int | float) and rate > 0):
        raise BasinsError(f"rate={rate!r} is no number above 0: it counts operations a second. None measures it.")
    if dtype is not None and (hasattr(model, "cfg") or isinstance(model, ModelShape)):
        raise BasinsError(f"dtype={dtype!r} is of a model that will be loaded; this one has its own. Leave it out.")
    wanted = check_layers_of(shape.n_layers, layers)
    to_load = 0 if hasattr(model, "cfg") else shape.weight_bytes
    job = Job(
        shape=shape,
        n_sequences=-(-n_tokens // length),
        length=length,
        settings=asked,
        device=place,
        budget=Budget(asked.memory_budget or (_default_budget(place, to_load) if here else ABSENT_BUDGET)),
        first=wanted[0],
        last=wanted[-1],
        n_scored=len(wanted),
        states_budget=asked.memory_budget or MEMORY_BUDGET,
        half=_uses_half(asked, n_tokens, place, here),
    )
    if job.n < asked.k + 1:
        raise BasinsError(f"k={asked.k} needs at least {asked.k + 1} states and there are {job.n}. Pass a smaller k.")
    if asked.memory_budget is not None:
        check_budget(job)
    if rate is None:
        products = RATE_DTYPES[shape.dtype_bytes]
        rate, source = measured_rate(place, asked.precision, products) if here else (STATED_RATES[place.type], "stated")
    else:
        source = "given"
    return Plan(
        shape=shape,
        settings=asked,
        n_tokens=job.n,
        length=length,
        layers=len(wanted),
        device=str(place),
        sequences_at_once=job.sequences_at_once,
        moments=moments(job),
        libraries_bytes=libraries_bytes(),
        disk_bytes=int(costs.disk_bytes(job)),
        operations=operations(job),
        rate=rate,
        rate_source=source,
    )


def _device(device: str | torch.device) -> tuple[torch.device, bool]:
    """The device, and whether it is in this machine: one that is not can be planned for too."""
    try:
        found = torch.device(device)
    except RuntimeError:
        return parse_device(device), True  # type: ignore[return-value]  # raises, and says what is possible
    if found.type not in STATED_RATES:
        return parse_device(device), True  # type: ignore[return-value]
    try:
        parse_device(found)
    except BasinsError:
        return found, False
    return found, True


def _default_budget(device: torch.device, to_load: int) -> int:
    """As the scorer will find it, once the weights are on a GPU."""
    return max(1, default_budget(device) - int(FREE_SHARE * to_load * (device.type == "cuda")))


def _uses_half(settings: ScorerSettings, n: int, device: torch.device, here: bool) -> bool:
    """A GPU that is not here is taken to have what the float16 search needs."""
    if device.type != "cuda" or here:
        return uses_half(settings, n, device)
    return settings.index == "half" or (settings.index == "auto" and n >= HALF_FROM)


def measured_rate(
    device: torch.device, precision: str = "float32", dtype: torch.dtype = torch.float32
) -> tuple[float, str]:
    """Operations a second of a large square product on this device, with its threads, in about 0.2 s."""
    size = RATE_SIZE.get(device.type, 2048)
    # Random numbers, because a GPU multiplies others faster; of a generator of its own, which nobody else draws from.
    square = torch.rand(size, size, generator=torch.Generator().manual_seed(0)).to(device, dtype)

    def finished() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    with torch.no_grad(), matmul_precision(precision, device, dtype):
        torch.mm(square, square)  # what is set up once is not counted
        start, products, spent = finished(), 0, 0.0
        while spent < RATE_SECONDS:
            torch.mm(square, square)
            products += 1
            spent = finished() - start
    return 2 * size**3 * products / spent, "measured"


def libraries_bytes() -> int:
    """Resident memory of this process, once the libraries are in use; 0 where it cannot be read.

    What they read in and set up at their first call is found by making one, with a model of one small block.
    """
    _toy_call()
    gc.collect()
    give_back()
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


@cache
def _toy_call() -> None:
    import faiss  # noqa: F401
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes: dict[str, Any] = {"vocab_size": 512, "n_positions": 64, "n_embd": 64, "n_layer": 1, "n_head": 2}
    config = GPT2Config(**sizes, bos_token_id=0, eos_token_id=0, architectures=["GPT2LMHeadModel"])
    # Drawing its weights must not cost the caller's random state.
    with torch.random.fork_rng(devices=[]):
        model = wrap_model(GPT2LMHeadModel(config).eval(), None, "toy")
    tokens = torch.arange(128).view(2, 64)
    BasinScorer(model, k=2).score_tokens(tokens)
