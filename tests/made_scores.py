"""A BasinScores made by hand, with known variances: for tests of what is shown and written, not of what is scored."""

from __future__ import annotations

from typing import Any

import torch

from basins.scores import BasinScores

WORDS = ("<s>", " the", "<b>bold</b>", " &amp;", "\n", "</script>", ' "quoted"', "", " é", " end")


def made_scores(
    n_layers: int = 3,
    batch: int = 2,
    pos: int = 10,
    strings: bool = True,
    ids: bool = True,
    lookup: bool = True,
    seed: int = 0,
    **settings: Any,
) -> BasinScores:
    """V_in = exp(normal), V_out close to it; the first position is not scored, the last of sequence 1 is padding."""
    rng = torch.Generator().manual_seed(seed)
    shape = (n_layers, batch, pos)
    var_in = torch.randn(shape, generator=rng).exp()
    var_out = var_in * (0.3 * torch.randn(shape, generator=rng)).exp()
    var_update = torch.randn(shape, generator=rng).exp()
    unscored = torch.zeros(shape, dtype=torch.bool)
    unscored[:, :, 0] = True
    unscored[:, 1:2, -1] = True
    variances = [v.masked_fill(unscored, float("nan")) for v in (var_in, var_out, var_update)]
    tokens = (torch.arange(batch * pos) % len(WORDS)).view(batch, pos)
    rest: dict[str, Any] = {
        "neighbor_ids": torch.zeros((*shape, 4), dtype=torch.int64),
        "neighbor_distances": torch.rand((*shape, 4), generator=rng),
        "n_distinct": torch.full(shape, 5).masked_fill(unscored, 0),
        "same_token_share": None,
        "layers": tuple(range(n_layers)),
        "tokens": tokens if ids else None,
        "token_strings": tuple(tuple(WORDS[i] for i in row) for row in tokens.tolist()) if strings and ids else None,
        "settings": {
            "k": 4,
            "method": "rerun",
            "neighbors": "cross_sequence",
            "eps": 1e-10,
            "seed": 7,
            "model": "made",
            "model_fingerprint": "f00",
            "n_layers": n_layers,
            "left_out_first": batch,
            "unscored": 0,
            "versions": {"torch": "0"},
            "real_positions": [[0, pos]] + [[0, pos - 1]] + [[0, pos]] * (batch - 2) if batch > 1 else [[0, pos]],
            "tokenization": {"prepend_bos": True, "text_ids": [0, *range(batch - 1)]},
        }
        | settings,
    }
    other = None
    if lookup:
        seen = [v * 1.2 for v in variances]
        other = BasinScores.from_variances(*seen, eps=1e-10, **rest)
    return BasinScores.from_variances(*variances, eps=1e-10, lookup=other, **rest)
