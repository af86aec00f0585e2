"""The demo: real text and planted passages, scored by the shipped model. What it computes; the CLI prints it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from basins import pocket
from basins.corpus import tokenize
from basins.errors import choose
from basins.losses import token_losses
from basins.models import load_model
from basins.scorer import BasinScorer
from basins.scores import LEAST_DISTINCT, BasinScores

if TYPE_CHECKING:
    import pandas as pd

DOSES = (0, 1, 4, 16, 64, 256)
PASSAGES = 4  # a dose
PARAGRAPHS = 3
# Stated before it is run (the primary analysis of every experiment): neighbours from other sequences only, the first
# position left out of queries and bank.
ANALYSIS: dict[str, Any] = {"k": 15, "method": "rerun", "neighbors": "cross_sequence", "exclude_first": 1}


@dataclass(frozen=True)
class Demo:
    """What the demo found. `doses`: a row a dose; `dose_by_layer`: medians of the relative score, a row a dose."""

    scores: BasinScores
    names: dict[int, str]
    doses: pd.DataFrame
    dose_by_layer: pd.DataFrame


def run_demo(model_name: str = "pocket") -> Demo:
    """Score paragraphs of a held-out book together with planted passages of several doses and controls.

    All tokens are each other's candidates for neighbours, across sequences.
    """
    model = load_model(choose("model", model_name, pocket.NAMES))
    passages = [passage for dose in DOSES for passage in _of_dose(dose)]
    texts = [*pocket.demo_text()[:PARAGRAPHS], *(passage.text for passage in passages)]
    batch = tokenize(model, texts, long_texts="split")
    scores = BasinScorer(model, **ANALYSIS).score_texts(batch)
    doses = torch.tensor([-1] * PARAGRAPHS + [passage.dose for passage in passages])[list(batch.text_ids)]
    losses = token_losses(model, batch.tokens, batch.attention_mask)
    names = {
        i: f"planted, dose {dose}" if dose else "control, dose 0" for i, dose in enumerate(doses.tolist()) if dose >= 0
    }
    text_names = {i: f"held-out book, paragraph {text}" for i, text in enumerate(batch.text_ids) if i not in names}
    return Demo(scores, text_names | names, dose_table(scores, doses, losses), dose_by_layer(scores, doses))


def _of_dose(dose: int) -> list[pocket.Passage]:
    return [passage for passage in pocket.passages() if passage.dose == dose][:PASSAGES]


def dose_table(scores: BasinScores, doses: Int[Tensor, "batch"], losses: Float[Tensor, "batch pos"]) -> pd.DataFrame:
    """One row a dose: mean loss a token, and each score as its difference from the controls.

    A difference is taken at every layer between the medians over tokens of the dose and of the controls (dose 0), and
    averaged over the layers but the first, which is the embedding's. Nats.
    """
    import pandas as pd

    later = [i for i, layer in enumerate(scores.layers) if layer > 0]
    rows = []
    for dose in DOSES:
        loss = losses[doses == dose]
        row = {"dose": dose, "passages": int((doses == dose).sum()), "loss": float(loss[loss.isfinite()].mean())}
        for name in ("relative", "update", "raw", "density"):
            value = getattr(scores, name)
            row[name] = float(
                (_medians(scores, value, doses == dose) - _medians(scores, value, doses == 0))[later].mean()
            )
        rows.append(row)
    return pd.DataFrame(rows)


def dose_by_layer(scores: BasinScores, doses: Int[Tensor, "batch"]) -> pd.DataFrame:
    """One row a dose, one column a layer: median relative score of its tokens, nats."""
    import pandas as pd

    rows = [_medians(scores, scores.relative, doses == dose).tolist() for dose in DOSES]
    frame = pd.DataFrame(rows, columns=pd.Index([f"layer {layer}" for layer in scores.layers]))
    frame.insert(0, "dose", DOSES)
    return frame


def _medians(scores: BasinScores, value: Float[Tensor, "layer batch pos"], rows: Tensor) -> Float[Tensor, "layer"]:
    kept = value.masked_fill(scores.n_distinct < LEAST_DISTINCT, float("nan"))
    return kept[:, rows].flatten(1).nanquantile(0.5, dim=1)
