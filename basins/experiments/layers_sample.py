"""What is measured on a sample of the tokens: map or context, the local limit, and who is near after the block."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from numpy import ndarray
from torch import Tensor

from basins.decomposition import Decomposition, assemble, decompose_at
from basins.experiments.sequences import Sequences
from basins.local_limit import SHRINKS, LocalLimit, relative_at
from basins.neighborhoods import about, neighborhoods
from basins.overlap import nearest_after
from basins.progress import progress
from basins.scorer import BasinScorer


@dataclass(frozen=True)
class Sampled:
    """One model's sampled queries at every layer. `cluster`: the text or window of each query."""

    decomposition: Decomposition
    local_limit: LocalLimit
    after: dict[int, tuple[Tensor, Tensor]]
    cluster: Int[ndarray, "query"]


def measure_sample(scorer: BasinScorer, texts: Sequences, layers: tuple[int, ...], sample: int) -> Sampled:
    """One sweep for all three: `sample` tokens that are no repetition of an earlier prefix."""
    settings, parts, relative, after = scorer.settings, {}, {}, {}
    queries = torch.empty(0, dtype=torch.long)
    hoods = neighborhoods(
        scorer.model,
        settings,
        texts.tokens,
        None,
        texts.mask,
        layers,
        sample=sample,
        among=~texts.repeated,
        dtype=scorer.dtype,
    )
    with closing(hoods), progress("sampled tokens", len(layers)) as advance:
        for hood in hoods:
            queries = hood.queries
            parts[hood.layer] = decompose_at(hood, settings)
            relative[hood.layer] = relative_at(hood, SHRINKS, settings.normalize)
            after[hood.layer] = nearest_after(hood)
            advance(1)
    made: dict[str, Any] = about(scorer.model, settings, len(queries))
    n_pos = texts.tokens.shape[1]
    stacked = torch.stack(list(relative.values()))
    limit = LocalLimit(stacked, SHRINKS, tuple(relative), queries, n_pos, made | {"shrink": list(SHRINKS)})
    return Sampled(assemble(parts, queries, n_pos, made), limit, after, texts.cluster[queries // n_pos].numpy())
