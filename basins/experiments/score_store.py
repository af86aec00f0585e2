"""Scores that several experiments need, computed once: same model, tokens and settings give the same scores."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from basins.corpus import TokenBatch
from basins.errors import BasinsError
from basins.lens import check_layers, has_own_hooks
from basins.nulls import NULLS, null_scores
from basins.scorer import BasinScorer
from basins.scores import BasinScores
from basins.settings import versions

# These change how a result is computed, not the result.
WITHOUT_EFFECT = ("batch_size", "memory_budget")


class ScoreStore:
    """Remembers every score it was asked for; with a folder also beyond this run.

    The key is a digest of all weights, tokens, mask, layers, settings and versions. A model that the user hooked is
    scored anew each time: what a hook does cannot be told from outside.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = Path(folder) if folder is not None else None
        self.computed, self.found = 0, 0
        self._kept: dict[str, BasinScores] = {}

    def score(
        self,
        scorer: BasinScorer,
        tokens: Int[Tensor, "batch pos"],
        attention_mask: Int[Tensor, "batch pos"] | None = None,
        layers: int | Iterable[int] | None = None,
        tokenization: dict[str, Any] | None = None,
    ) -> BasinScores:
        """`scorer.score_tokens`, or what it gave before."""
        if scorer.fitted:
            raise BasinsError("a scorer with a fitted bank is not stored: score with it directly.")
        if has_own_hooks(scorer.model):
            return scorer.score_tokens(tokens, attention_mask, layers=layers, tokenization=tokenization)
        wanted = check_layers(scorer.model, layers)
        mask = attention_mask if attention_mask is not None else torch.ones_like(tokens)
        key = _key(scorer, tokens, mask, wanted)
        return self._remember(key, lambda: scorer.score_tokens(tokens, mask, layers=wanted, tokenization=tokenization))

    def null_scores(
        self,
        scorer: BasinScorer,
        tokens: Int[Tensor, "batch pos"],
        attention_mask: Int[Tensor, "batch pos"],
        scores: BasinScores,
        seed: int,
    ) -> dict[str, BasinScores]:
        """`basins.nulls.null_scores` of scores that this scorer gave, or what it gave before."""
        if has_own_hooks(scorer.model):
            return null_scores(scorer.model, tokens, attention_mask, scores, seed=seed)
        key = _key(scorer, tokens, attention_mask, scores.layers)
        drawn: dict[str, BasinScores] = {}

        def draw(null: str) -> BasinScores:
            if not drawn:  # all nulls push through the same blocks: one walk through the model for all
                drawn.update(null_scores(scorer.model, tokens, attention_mask, scores, seed=seed))
            return drawn[null]

        return {null: self._remember(f"{key}-{null.replace(' ', '-')}-{seed}", partial(draw, null)) for null in NULLS}

    def _remember(self, key: str, compute: Callable[[], BasinScores]) -> BasinScores:
        scores = self._kept.get(key)
        place = self.folder / key if self.folder is not None else None
        if scores is None and place is not None and place.is_dir():
            scores = BasinScores.load(place)
        if scores is None:
            scores = compute()
            self.computed += 1
            if place is not None:
                scores.save(place)
        else:
            self.found += 1
        self._kept[key] = scores
        return scores

    def score_batch(
        self, scorer: BasinScorer, batch: TokenBatch, layers: int | Iterable[int] | None = None
    ) -> BasinScores:
        """`scorer.score_texts` of tokenised texts, or what it gave before."""
        tokenization = batch.tokenization | {"text_ids": list(batch.text_ids)}
        return self.score(scorer, batch.tokens, batch.attention_mask, layers, tokenization)


def _key(scorer: BasinScorer, tokens: Tensor, mask: Tensor, layers: tuple[int, ...]) -> str:
    settings = {name: value for name, value in scorer.settings.as_dict().items() if name not in WITHOUT_EFFECT}
    about: dict[str, Any] = {
        "settings": settings,
        "layers": layers,
        "versions": versions(),
        "shape": list(tokens.shape),
    }
    about |= {"dtype": str(scorer.dtype)}
    digest = hashlib.blake2b(json.dumps(about, sort_keys=True, default=str).encode(), digest_size=16)
    for name, weight in sorted(scorer.model.state_dict().items()):
        digest.update(f"{name}{tuple(weight.shape)}{weight.dtype}".encode())
        digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    for tensor in (tokens, mask):
        digest.update(tensor.cpu().long().contiguous().numpy().tobytes())
    return digest.hexdigest()
