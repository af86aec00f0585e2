"""Experiments: a question, what is stated before the run, and what was found. Each is one file and one call.

found = basins.experiments.importance("pocket")
print(found)
found.save("runs/importance")
"""

from basins.experiments.importance import Importance, importance
from basins.experiments.layers import Layers, layers
from basins.experiments.linguistic import Linguistic, linguistic
from basins.experiments.memorization import Memorization, memorization
from basins.experiments.robustness import Robustness, robustness

__all__ = [
    "Importance",
    "Layers",
    "Linguistic",
    "Memorization",
    "Robustness",
    "importance",
    "layers",
    "linguistic",
    "memorization",
    "robustness",
]
