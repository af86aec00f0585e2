"""Labels, scores, baselines: one row a passage and one row a token, for one model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool
from torch import Tensor

from basins.aggregates import norm_aggregates, score_aggregates, wide
from basins.baselines import loss_baselines
from basins.experiments.memorization_passages import Passages, continuations, reference_totals, rows
from basins.experiments.score_store import ScoreStore
from basins.experiments.token_columns import column_frame, join
from basins.labels import MemorizationLabels, label
from basins.losses import NextToken, next_tokens
from basins.scorer import BasinScorer
from basins.scores import LEAST_DISTINCT, BasinScores
from basins.state_norms import state_norms

if TYPE_CHECKING:
    import pandas as pd

    from basins.corpus import TokenBatch

# A stretch of this many first choices in a row is what a memorised span looks like from inside.
SPAN = 8
# Depths at which compression enters the regressions: every layer would be more columns than passages carry.
DEPTHS = (0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Measured:
    """`passages`: a row a passage: group, dose, labels. `measures`: tidy, a row a (sequence, measure, layer).
    `matrix`: the same, a row a passage. `tokens`: a row a (layer, sequence, position) of the continuations."""

    passages: pd.DataFrame
    measures: pd.DataFrame
    matrix: pd.DataFrame
    controls: pd.DataFrame
    tokens: pd.DataFrame = field(repr=False)
    scores: BasinScores = field(repr=False)
    labels: MemorizationLabels = field(repr=False)
    texts: list[str] = field(repr=False)


def measure(
    scorer: BasinScorer,
    passages: Passages,
    *,
    window: int,
    layers: tuple[int, ...],
    reference: Any = None,
    share: float = 0.2,
    threshold: float = 0.8,
    store: ScoreStore | None = None,
) -> Measured:
    """Everything is taken over the continuations only; labels, scores and losses come from the same rows of tokens."""
    import pandas as pd

    model = scorer.model
    batch, prompt = rows(model, passages.text, window)
    labels = label(model, batch.tokens, batch.attention_mask, prompt_length=prompt, threshold=threshold)
    where = labels.continuation
    scores = (store or ScoreStore()).score_batch(scorer, batch, layers)
    said = next_tokens(model, batch.tokens, batch.attention_mask)
    texts = continuations(batch, passages.text, where)
    baselines = loss_baselines(
        said.loss,
        where,
        mean_log_prob=said.mean_log_prob,
        std_log_prob=said.std_log_prob,
        texts=texts,
        share=share,
        **_reference(reference, batch, passages, where),
    )
    norms = state_norms(model, batch.tokens, batch.attention_mask, scores.layers)
    tidy = pd.concat(
        [baselines, score_aggregates(scores, where, share), norm_aggregates(norms, scores.layers, where)],
        ignore_index=True,
    )
    table = labels.to_frame()
    table.insert(1, "group", list(passages.group))
    table.insert(2, "source", list(passages.source))
    if passages.dose is not None:
        table.insert(2, "dose", list(passages.dose))
    table["loss"] = [-value for value in baselines[baselines["measure"] == "loss"]["value"]]
    matrix = wide(tidy)
    tokens = _tokens(scores, said, labels, passages)
    return Measured(table, tidy, matrix, _controls(matrix, batch, where, layers), tokens, scores, labels, texts)


def _reference(
    reference: Any, batch: TokenBatch, passages: Passages, where: Bool[Tensor, "batch pos"]
) -> dict[str, Any]:
    """The reference model's loss: token by token where it reads the same tokens, else summed over the same text."""
    if reference is None:
        return {}
    own = rows(reference, passages.text, batch.tokens.shape[1])[0]
    same = own.tokens.shape[1] >= batch.tokens.shape[1]
    if same and torch.equal(
        own.tokens[:, : batch.tokens.shape[1]] * batch.attention_mask, batch.tokens * batch.attention_mask
    ):
        return {"reference_loss": next_tokens(reference, batch.tokens, batch.attention_mask).loss}
    first = [int(spans[inside, 0].min()) if inside.any() else 0 for spans, inside in zip(batch.offsets, where)]
    last = [int(spans[inside, 1].max()) if inside.any() else 0 for spans, inside in zip(batch.offsets, where)]
    return {"reference_total": reference_totals(reference, passages.text, first, last)}


def depths(layers: tuple[int, ...]) -> list[int]:
    """The layers at a quarter, half, three quarters and the end of those scored."""
    return sorted({layers[round(depth * (len(layers) - 1))] for depth in DEPTHS})


def _controls(
    matrix: pd.DataFrame, batch: TokenBatch, where: Bool[Tensor, "batch pos"], layers: tuple[int, ...]
) -> Any:
    """What may explain a difference without memory: token frequency, length, density before the block."""
    real = batch.attention_mask.bool()
    counts = batch.tokens[real].bincount(minlength=int(batch.tokens.max()) + 1)
    frequency = counts[batch.tokens].double().log().masked_fill(~where, 0).sum(1) / where.sum(1)
    found = {"log_frequency": frequency.numpy(), "length": where.sum(1).double().numpy()}
    found |= {f"density_mean.L{layer}": matrix[f"density_mean.L{layer}"] for layer in depths(layers)}
    return matrix[[]].assign(**found)


def _tokens(scores: BasinScores, said: NextToken, labels: MemorizationLabels, passages: Passages) -> Any:
    """Every token of the continuations with its scores, its loss, whether it was the first choice, and in a span."""
    frame = scores.to_frame()
    many = (len(scores.layers), -1, -1)
    columns = {"loss": said.loss, "hit": said.hit.double(), "span": _spans(labels.forced_hits).double()}
    for name, values in columns.items():
        frame = join(frame, column_frame(values.expand(*many), name, scores.layers))
    inside = labels.continuation.numpy()[frame["sequence"], frame["position"]]
    frame["used"] = inside & (frame["n_distinct"] >= LEAST_DISTINCT) & frame["relative"].notna()
    frame["group"] = [passages.group[sequence] for sequence in frame["sequence"]]
    return frame


def _spans(hits: Bool[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
    """Tokens inside a run of at least `SPAN` hits."""
    found = torch.zeros_like(hits)
    for row, marks in enumerate(hits.tolist()):
        start = 0
        for place, mark in enumerate([*marks, False]):
            if not mark:
                if place - start >= SPAN:
                    found[row, start:place] = True
                start = place + 1
    return found
