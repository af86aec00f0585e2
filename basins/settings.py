"""The scorer's settings: one frozen object, checked when it is made, recorded in every result."""

from __future__ import annotations

import numbers
import platform
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from typing import Any

from basins.errors import BasinsError, choose

METHODS = ("rerun", "lookup")
NEIGHBORS = ("same_layer", "cross_sequence", "same_token")
METRICS = ("euclidean", "cosine")
INDEXES = ("auto", "exact", "half", "faiss", "faiss-ivf")
DTYPES = ("float32", "float64")
PRECISIONS = ("float32", "tf32", "bfloat16")
PACKAGES = ("compression-basins", "torch", "transformer-lens", "transformers", "numpy", "faiss-cpu")


@dataclass(frozen=True, kw_only=True)
class ScorerSettings:
    """What a score depends on; see `basins.BasinScorer` for the meaning of each field.

    Raises BasinsError for a value that is not possible; the message lists what is.
    """

    k: int = 15
    method: str = "rerun"
    neighbors: str = "same_layer"
    metric: str = "euclidean"
    normalize: bool = False
    include_self: bool = False
    exclude_first: int = 0
    shrink: float = 1.0
    eps: float = 1e-10
    index: str = "auto"
    dtype: str | None = None
    precision: str = "float32"
    batch_size: int | None = None
    memory_budget: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        choices = {"method": METHODS, "neighbors": NEIGHBORS, "metric": METRICS, "index": INDEXES}
        for name, possible in (choices | {"precision": PRECISIONS}).items():
            choose(name, getattr(self, name), possible)
        whole("k", self.k, 2, "with k=1 the variance of one neighbour is 0 for every token. Pass k=15, the default.")
        whole("exclude_first", self.exclude_first, 0, "it counts positions left out at the start of each sequence.")
        whole("seed", self.seed, 0, "it seeds every random choice.")
        if self.batch_size is not None:
            whole("batch_size", self.batch_size, 1, "it counts sequences; None plans it from memory.")
        if self.memory_budget is not None:
            whole("memory_budget", self.memory_budget, 1, "it counts bytes for temporaries; None plans it from memory.")
        for name in ("normalize", "include_self"):
            if not isinstance(getattr(self, name), bool):
                raise BasinsError(f"{name}={getattr(self, name)!r} is not an option. Possible: True, False.")
        if not _is_number(self.shrink) or not 0 < self.shrink <= 1:
            raise BasinsError(
                f"shrink={self.shrink!r} is out of range: it must be in (0, 1]. 1 re-runs the neighbours themselves, "
                "1e-3 is close to the local (Jacobian) limit."
            )
        if self.shrink != 1 and self.method == "lookup":
            raise BasinsError(
                f'shrink={self.shrink} needs method="rerun": method="lookup" runs no block, so a moved neighbour has '
                'no output. Pass shrink=1.0 or method="rerun".'
            )
        if not _is_number(self.eps) or not 0 < self.eps < float("inf"):
            raise BasinsError(f"eps={self.eps!r} is out of range: it must be positive, because V_out may be 0.")
        if self.dtype is not None:
            name = str(self.dtype).removeprefix("torch.")
            if name not in DTYPES:
                raise BasinsError(
                    f"dtype={self.dtype!r} is not an option. Possible: {', '.join(map(repr, DTYPES))}. Distances, "
                    "variances and logarithms need float32 or better; the block itself runs in the model's own dtype."
                )
            object.__setattr__(self, "dtype", name)
        # NumPy and torch scalars are welcome, and recorded as the plain numbers that they are.
        for name, plain in (("k", int), ("exclude_first", int), ("seed", int), ("shrink", float), ("eps", float)):
            object.__setattr__(self, name, plain(getattr(self, name)))
        for name in ("batch_size", "memory_budget"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, int(getattr(self, name)))

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


SETTING_NAMES = tuple(field.name for field in fields(ScorerSettings))


def whole(name: str, value: object, least: int, why: str) -> None:
    """Raise unless `value` is a whole number of at least `least`."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise BasinsError(f"{name}={value!r} must be a whole number of at least {least}; {why}")
    if int(value) < least:  # type: ignore[call-overload]
        raise BasinsError(f"{name}={value!r} is too small: it must be at least {least}; {why}")


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a score depends on, as installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
