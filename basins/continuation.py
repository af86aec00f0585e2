"""Greedy continuation: what the model says when it always says its first choice.

Batched with the key-value cache, and yet token for token what continuing each prompt alone without a cache gives.
Batching and caching change logits by rounding, and so the choice wherever the two highest are nearly equal. Such
choices are therefore made by a forward pass over that row alone, without a cache: exactly what the slow way computes.
And a row of every batch is gone through again in the slow way; where it disagrees, everything is recomputed without a
cache, and the result says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from basins.activations import check_mask, check_tokens
from basins.corpus import check_room
from basins.errors import BasinsError
from basins.kv_cache import Steps, all_logits, cached, has_user_hooks, recomputed
from basins.lens import as_found, block_dtype, input_device, n_layers
from basins.progress import progress
from basins.settings import whole
from basins.sources import FLOATS_PER_CALL

# Two logits are nearly equal when they differ by less than this many machine epsilons of the largest. What batching and
# caching change is less than an eighth of it in every architecture (tests/test_continuation.py).
NEAR_TIE, NEAR_TIE_IN_HALF = 2**9, 4
# What a cache may change logits by, in near-ties: far above rounding, and far below what a wrong cache does.
LOGITS_OFF = 4
# A cache holds no attention scores of whole sequences, so more rows fit than in a forward pass.
ROWS_TIMES = 4


@dataclass(frozen=True)
class Continuations:
    """The continuation of each prompt.

    `ids[i]`: the token ids that follow prompt i. `path`: "cache", or "recompute" where every step was a forward pass
    over the whole rows; `reason` says why. `near_ties`: choices between two nearly equal logits, each made by a forward
    pass over that row alone.
    """

    ids: tuple[Int[Tensor, "new"], ...]
    path: str
    reason: str | None
    near_ties: int

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> Int[Tensor, "new"]:
        return self.ids[row]

    def __repr__(self) -> str:
        how = self.path if self.reason is None else f"{self.path}: {self.reason}"
        return f"Continuations({len(self)} rows, {sum(map(len, self.ids))} tokens, {how}, {self.near_ties} near-ties)"


class _CacheDisagrees(Exception):
    """With the cache a row is continued otherwise than without it."""


def continue_greedily(
    model: Any,
    prompts: Sequence[Any] | Int[Tensor, "batch pos"],
    n_new: int | Sequence[int] | Int[Tensor, "batch"],
    attention_mask: Int[Tensor, "batch pos"] | None = None,
    batch_size: int | None = None,
) -> Continuations:
    """Append the model's first choice `n_new` times to each prompt (of equal logits: the token with the lowest id).

    `prompts`: a list of rows of token ids, or one tensor with its `attention_mask`. `n_new`: one number, or one a
    prompt. No token ends a continuation. The user's hooks apply; because a hook may look at positions, which a cache
    hides, hooked models are continued without one.

    The tokens do not depend on `batch_size` nor on the cache, as long as rounding moves logits by less than half of
    what counts as a near-tie (2^9 machine epsilons of a row's largest logit; 4 in half precision). Raises BasinsError
    for prompts that are empty or leave no room for `n_new` tokens, and where logits are NaN.
    """
    rows = _rows(prompts, attention_mask)
    each = n_new.tolist() if isinstance(n_new, Tensor) else n_new
    counts = list(each) if isinstance(each, Sequence) else [each] * len(rows)
    if len(counts) != len(rows):
        raise BasinsError(f"n_new has {len(counts)} numbers for {len(rows)} prompts. Pass one number, or one a prompt.")
    for row, count in zip(rows, counts, strict=True):
        whole("n_new", count, 0, "it counts the tokens of a continuation.")
        check_room(model, torch.nn.functional.pad(row, (0, int(count)))[None])
    if batch_size is not None:
        whole("batch_size", batch_size, 1, "it counts prompts; None plans it from memory.")
    lengths = [(len(row), len(row) + int(count)) for row, count in zip(rows, counts, strict=True)]
    with as_found(model), torch.no_grad():
        if has_user_hooks(model):
            return _continue(model, rows, lengths, batch_size, "the model has hooks")
        try:
            return _continue(model, rows, lengths, batch_size, None)
        except Exception as error:  # whatever an architecture's cache may raise; without one it is not met again
            reason = str(error) if isinstance(error, _CacheDisagrees) else f"{type(error).__name__}: {error}"
        return _continue(model, rows, lengths, batch_size, reason)


def _rows(prompts: Any, attention_mask: Any) -> list[Int[Tensor, "pos"]]:
    if isinstance(prompts, Tensor):
        tokens = check_tokens(prompts, None)
        mask = check_mask(attention_mask, (tokens.shape[0], tokens.shape[1])).bool()
        return [row[real] for row, real in zip(tokens, mask, strict=True)]
    if attention_mask is not None:
        raise BasinsError("attention_mask belongs to one tensor of prompts. A list of rows needs none: leave it out.")
    if isinstance(prompts, str) or not isinstance(prompts, Sequence) or not len(prompts):
        raise BasinsError("prompts must be a list of rows of token ids, or a tensor, with at least one prompt.")
    return [check_tokens(torch.as_tensor(row)[None], None)[0] for row in prompts]


def _continue(
    model: Any,
    prompts: list[Int[Tensor, "pos"]],
    lengths: list[tuple[int, int]],
    batch_size: int | None,
    no_cache: str | None,
) -> Continuations:
    ids: list[Tensor] = [torch.empty(0, dtype=torch.long)] * len(prompts)
    near_ties = 0
    # The longest first: what does not fit in memory or in a window of the model shows at once.
    order = sorted(range(len(prompts)), key=lambda row: lengths[row], reverse=True)
    size = batch_size or plan_rows(model, max(end for _, end in lengths), no_cache is None)
    with progress("continuing greedily", len(prompts)) as advance:
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            some, spans = [prompts[row] for row in batch], [lengths[row] for row in batch]
            if no_cache is not None:
                found, near, _ = _decode(model, recomputed(model), some, spans)
            else:
                with cached(model, len(batch)) as steps:
                    found, near, last = _decode(model, steps, some, spans)
                longest = max(range(len(batch)), key=lambda row: spans[row][1])
                if len(found[longest]):
                    _check(model, some[longest], found[longest], last[longest])
            near_ties += near
            for row, new in zip(batch, found, strict=True):
                ids[row] = new
            advance(len(batch))
    return Continuations(tuple(ids), "cache" if no_cache is None else "recompute", no_cache, near_ties)


def _decode(
    model: Any, steps: Steps, prompts: list[Int[Tensor, "pos"]], spans: list[tuple[int, int]]
) -> tuple[list[Int[Tensor, "new"]], int, Float[Tensor, "row d_vocab"]]:
    """The continuations of one batch, the number of near-ties, and the logits of the last step.

    The batch runs from the end of its shortest prompt; rows whose prompt is longer are given its tokens meanwhile.
    """
    begins, ends = torch.tensor(spans).T
    rows = torch.zeros(len(prompts), int(ends.max()), dtype=torch.long)
    for row, prompt in zip(rows, prompts, strict=True):
        row[: len(prompt)] = prompt
    near_ties, logits = 0, torch.empty(len(prompts), 0)
    for end in range(int(begins.min()), int(ends.max())):
        choosing = (begins <= end) & (end < ends)
        if not bool(choosing.any()):
            continue
        logits = steps(rows, end)
        chosen = logits.argmax(-1).cpu()
        for row in (choosing & _nearly_tied(model, logits)).nonzero()[:, 0].tolist():
            chosen[row] = all_logits(model, rows[row : row + 1, :end])[0, -1].argmax().cpu()
            near_ties += 1
        rows[choosing, end] = chosen[choosing]
    return [row[begin:end].clone() for row, (begin, end) in zip(rows, spans, strict=True)], near_ties, logits


def _tolerance(model: Any, logits: Float[Tensor, "row d_vocab"]) -> Float[Tensor, "row"]:
    # A float64 model too computes norms and rotary angles in float32.
    eps = max(torch.finfo(dtype).eps for dtype in (logits.dtype, block_dtype(model, 0), torch.float32))
    largest = logits.double().masked_fill(logits.isinf(), 0).abs().amax(-1)
    if bool(largest.isnan().any()):
        raise BasinsError(
            "the model's logits hold NaN. Are its weights finite? In float16 sums may overflow: use float32."
        )
    return largest * eps * (NEAR_TIE if eps < 1e-5 else NEAR_TIE_IN_HALF)


def _nearly_tied(model: Any, logits: Float[Tensor, "row d_vocab"]) -> Bool[Tensor, "row"]:
    first, second = logits.topk(2).values.double().unbind(-1)
    return (first - second <= _tolerance(model, logits)).cpu()


def _check(model: Any, prompt: Int[Tensor, "pos"], new: Int[Tensor, "new"], last: Float[Tensor, "d_vocab"]) -> None:
    """Raise _CacheDisagrees unless without a cache each token is the first choice, and the last logits are the same."""
    logits = all_logits(model, torch.cat([prompt, new])[None, :-1])[0, len(prompt) - 1 :]
    tolerance = _tolerance(model, logits)
    short = logits.amax(-1) - logits.gather(-1, new.to(logits.device)[:, None])[:, 0]
    wrong = (short.double() > tolerance).nonzero()[:, 0].tolist()
    if wrong:
        raise _CacheDisagrees(
            f"with its cache the model chooses another token at {wrong[0]} of {len(new)} than without"
        )
    off = (logits[-1] - last).double().nan_to_num(0).abs().max()
    if bool(off > LOGITS_OFF * tolerance[-1]):
        raise _CacheDisagrees(f"with its cache the model's logits differ by {float(off):.3g}")


def plan_rows(model: Any, length: int, with_cache: bool) -> int:
    """Rows that are continued together: of their keys, values and activations, and of logits at each step."""
    d_model, d_vocab = int(model.cfg.d_model), int(getattr(model.cfg, "d_vocab", None) or 1)
    n_heads = getattr(model.cfg, "n_heads", None) or 8
    # With a cache a prompt's logits may still be formed at all its positions; a third of a row is the usual prompt.
    floats = length * (16 * d_model + n_heads * length) + d_vocab * (1 + length // (3 if with_cache else 1))
    if with_cache:
        floats += 2 * n_layers(model) * d_model * length
    return max(1, ROWS_TIMES * FLOATS_PER_CALL.get(input_device(model).type, 2**24) // floats)
