"""basins: where does a language model collapse distinctions? Compression scores by really re-running each block.

model = basins.load_model("pocket")
scorer = basins.BasinScorer(model, k=15)
_, cache = model.run_with_cache("Call me Ishmael.")
scores = scorer.score(cache)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from basins import corpus as corpus
    from basins import experiments as experiments
    from basins import pocket as pocket
    from basins.attributed import Attribution as Attribution
    from basins.corpus import TokenBatch as TokenBatch
    from basins.decomposition import Decomposition as Decomposition
    from basins.errors import BasinsError as BasinsError
    from basins.errors import MissingExtra as MissingExtra
    from basins.models import load_model as load_model
    from basins.planning import Plan as Plan
    from basins.planning import plan as plan
    from basins.scorer import BasinScorer as BasinScorer
    from basins.scores import BasinScores as BasinScores
    from basins.studies import study as study

__version__ = "0.1.0"

# Each name loads its module at first use: `import basins` itself stays light.
_EXPORTS = {
    "Attribution": "basins.attributed",
    "BasinScorer": "basins.scorer",
    "BasinScores": "basins.scores",
    "BasinsError": "basins.errors",
    "Decomposition": "basins.decomposition",
    "MissingExtra": "basins.errors",
    "Plan": "basins.planning",
    "TokenBatch": "basins.corpus",
    "load_model": "basins.models",
    "plan": "basins.planning",
    "study": "basins.studies",
}
_MODULES = ("corpus", "experiments", "pocket")

__all__ = [
    "Attribution",
    "BasinScorer",
    "BasinScores",
    "BasinsError",
    "Decomposition",
    "MissingExtra",
    "Plan",
    "TokenBatch",
    "corpus",
    "experiments",
    "load_model",
    "plan",
    "pocket",
    "study",
]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"basins.{name}")
    raise AttributeError(f"module 'basins' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
