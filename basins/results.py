"""Transitions put together into one `BasinScores`, with everything that the numbers depend on."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from basins.errors import BasinsError
from basins.lens import block_device, block_dtype, fingerprint, model_name, n_layers, weight_processing
from basins.neighbors import TokenTable
from basins.precision import effective_precision
from basins.scores import BasinScores
from basins.selfcheck import CheckedPath
from basins.settings import ScorerSettings, versions
from basins.transition import Measured

VARIANCES = ("var_in", "var_out", "var_update")


def assemble(
    measured: dict[int, Measured],
    table: TokenTable,
    attention_mask: Int[Tensor, "batch pos"],
    tokens: Int[Tensor, "batch pos"] | None,
    settings: dict[str, Any],
    model: Any,
) -> BasinScores:
    """Stack the layers' flat rows, on the CPU, as "layer batch pos"."""
    shape = tuple(attention_mask.shape)
    parts = list(measured.values())

    def stack(rows: list[Tensor]) -> Tensor:
        # Each layer straight into its place: what comes from a GPU is moved once.
        stacked = torch.empty(len(rows), *rows[0].shape, dtype=rows[0].dtype)
        for place, row in zip(stacked, rows, strict=True):
            place.copy_(row)
        return stacked.view(len(rows), *shape, *rows[0].shape[1:])

    ids = stack([m.neighbors.ids for m in parts])
    if not bool((ids[..., 0] >= 0).any()):
        raise BasinsError(
            f"no token has {settings['k']} neighbours under neighbors={settings['neighbors']!r}: "
            f"{int(table.usable.sum())} usable tokens in {shape[0]} sequences. Pass a smaller k, more sequences, or "
            'neighbors="same_layer".'
        )
    shares = [m.same_token_share for m in parts if m.same_token_share is not None]
    common: dict[str, Any] = {
        "neighbor_ids": ids,
        "neighbor_distances": stack([m.neighbors.distances for m in parts]),
        "n_distinct": stack([m.n_distinct for m in parts]),
        "same_token_share": stack(shares) if shares else None,
        "layers": tuple(measured),
        "tokens": tokens,
        "token_strings": token_strings(model, tokens),
    }
    usable = table.usable.cpu().reshape(shape)
    settings = settings | {
        "unscored": int((usable & (ids[0, ..., 0] < 0)).sum()),
        "left_out_first": int(attention_mask.sum() - usable.sum()),
        "padding": int((attention_mask == 0).sum()),
        "real_positions": real_positions(attention_mask),
        "neighbor_search": {str(layer): m.neighbors.report for layer, m in measured.items()},
    }
    lookup = None
    if all(m.lookup is not None for m in parts):
        variances = [stack([m.lookup[name] for m in parts if m.lookup is not None]) for name in VARIANCES]
        own = settings | {"method": "lookup"}
        lookup = BasinScores.from_variances(*variances, eps=settings["eps"], settings=own, **common)
    variances = [stack([m.variances[name] for m in parts]) for name in VARIANCES]
    return BasinScores.from_variances(*variances, eps=settings["eps"], settings=settings, lookup=lookup, **common)


def real_positions(attention_mask: Int[Tensor, "batch pos"]) -> list[list[int]]:
    """First and one-past-last real position of every row."""
    start = attention_mask.argmax(1)
    return torch.stack([start, start + attention_mask.sum(1)], 1).tolist()


def token_strings(model: Any, tokens: Int[Tensor, "batch pos"] | None) -> tuple[tuple[str, ...], ...] | None:
    """Each token as its tokenizer decodes it alone; None without tokens or tokenizer."""
    tokenizer = getattr(model, "tokenizer", None)
    if tokens is None or tokenizer is None:
        return None
    strings = {i: _string(tokenizer, i) for i in tokens.unique().tolist()}
    return tuple(tuple(strings[i] for i in row) for row in tokens.tolist())


def _string(tokenizer: Any, token: int) -> str:
    string = tokenizer.decode([token])
    # SentencePiece decoders drop the space in front of what they take for a text's first word.
    word_start = str(tokenizer.convert_ids_to_tokens(token)).startswith("\u2581")
    return f" {string}" if word_start and not string.startswith(" ") else string


def provenance(
    model: Any,
    settings: ScorerSettings,
    dtype: torch.dtype,
    paths: dict[int, CheckedPath],
    bank: dict[str, Any] | None,
    tokenization: dict[str, Any] | None,
) -> dict[str, Any]:
    """Everything that a result depends on, as plain values."""
    refused = {str(layer): checked.refused for layer, checked in paths.items() if checked.refused}
    return settings.as_dict() | {
        "dtype": str(dtype).removeprefix("torch."),
        "model": model_name(model),
        "model_dtype": str(block_dtype(model, 0)).removeprefix("torch."),
        "model_fingerprint": fingerprint(model),
        "n_layers": n_layers(model),
        "d_model": int(model.cfg.d_model),
        "weight_processing": weight_processing(model),
        "device": str(block_device(model, 0)),
        "versions": versions(),
        "bank": bank or "the scored tokens themselves",
        "tokenization": tokenization or "made by the caller",
        "replay": dict(Counter(checked.path for checked in paths.values())),
        "replay_refused": refused,
        "replay_precision": effective_precision(settings.precision, block_device(model, 0), block_dtype(model, 0)),
    }
