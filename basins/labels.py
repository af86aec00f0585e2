"""Memorised or not: three kinds of labels for token rows, each from what the model says after the rows' own prompts.

Small pretrained models recite almost nothing freely, because one early miss derails the rest. So the greedy
continuation of the prompt (`free`) stands beside what the model says token by token when the true text goes on
(`forced`, `run`), and all three are always reported.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from basins.activations import check_mask, check_tokens
from basins.continuation import continue_greedily
from basins.corpus import check_room
from basins.errors import BasinsError, MissingExtra, choose
from basins.lens import check_model, fingerprint, model_name, weight_processing
from basins.losses import next_tokens
from basins.settings import versions, whole

if TYPE_CHECKING:
    import pandas as pd

FREE_BY = ("edit", "position")
LABELS = ("free", "forced", "run", "exact")


@dataclass(frozen=True)
class MemorizationLabels:
    """What each row shows of having been memorised. n is the length of its continuation, in tokens.

    `prompt_length`: tokens of text in the prompt; a BOS token in front is none and comes on top.
    `continuation`: the positions that labels speak of, and to which scores must be restricted; none in excluded rows.
    `greedy`: the model's greedy continuation of the prompt, at those positions; -1 elsewhere.
    `forced_hits`: where the true token is the model's first choice given the true tokens before it.
    `free_match`: share of the n positions at which the greedy continuation is the text.
    `free_edit`: (n - d) / n, d the Levenshtein distance of the two: one early insertion costs 2 / n, not nearly all.
    `exact_prefix`: tokens until the first difference. `exact`: 1 where that is all n.
    `forced_match`: share of `forced_hits`. `forced_run`: their longest run, in tokens.
    `free`: 1 where `free_edit` (or `free_match`, see `settings["free_by"]`) exceeds the threshold, else 0; `forced`:
    the same of `forced_match`; `run`: 1 where `forced_run` reaches `settings["run_length"]`.
    `excluded`: why a row has no labels, None where it has. All of an excluded row's numbers are NaN: a text too short
    to tell is not one that was not memorised.
    """

    prompt_length: Int[Tensor, "batch"]
    continuation: Bool[Tensor, "batch pos"]
    greedy: Int[Tensor, "batch pos"]
    forced_hits: Bool[Tensor, "batch pos"]
    free_match: Float[Tensor, "batch"]
    free_edit: Float[Tensor, "batch"]
    exact_prefix: Float[Tensor, "batch"]
    exact: Float[Tensor, "batch"]
    forced_match: Float[Tensor, "batch"]
    forced_run: Float[Tensor, "batch"]
    free: Float[Tensor, "batch"]
    forced: Float[Tensor, "batch"]
    run: Float[Tensor, "batch"]
    excluded: tuple[str | None, ...]
    settings: dict[str, Any] = field(repr=False)

    @property
    def included(self) -> Bool[Tensor, "batch"]:
        return torch.tensor([reason is None for reason in self.excluded])

    def __len__(self) -> int:
        return len(self.excluded)

    def __repr__(self) -> str:
        n = int(self.included.sum())
        found = ", ".join(f"{name} {int((getattr(self, name) == 1).sum())}" for name in LABELS)
        return f"MemorizationLabels({n} of {len(self)} rows labelled, {len(self) - n} excluded; memorised: {found})"

    def to_frame(self) -> pd.DataFrame:
        """One row a sequence; labels are booleans, missing where the row is excluded."""
        import pandas as pd

        n = self.continuation.sum(1).tolist()
        columns: dict[str, Any] = {
            "sequence": range(len(self)),
            "prompt_length": self.prompt_length.tolist(),
            "continuation_length": n,
        }
        for name in ("free_match", "free_edit", "forced_match"):
            columns[name] = getattr(self, name).tolist()
        for name in ("exact_prefix", "forced_run"):
            columns[name] = pd.array([_int(value) for value in getattr(self, name).tolist()], dtype="Int64")
        for name in LABELS:
            known = [None if value is None else bool(value) for value in map(_int, getattr(self, name).tolist())]
            columns[name] = pd.array(known, dtype="boolean")
        columns["excluded"] = list(self.excluded)
        return pd.DataFrame(columns)

    def summary(self) -> pd.DataFrame:
        """One row a kind of label: rows labelled, memorised ones, their share, and rows excluded."""
        import pandas as pd

        n = int(self.included.sum())
        counts = [int((getattr(self, name) == 1).sum()) for name in LABELS]
        shares = [count / n if n else float("nan") for count in counts]
        return pd.DataFrame(
            {"label": LABELS, "labelled": n, "memorised": counts, "share": shares, "excluded": len(self) - n}
        )


def label(
    model: Any,
    tokens: Int[Tensor, "batch pos"],
    attention_mask: Int[Tensor, "batch pos"] | None = None,
    *,
    prompt_fraction: float = 1 / 3,
    prompt_length: int | None = None,
    threshold: float = 0.8,
    run_length: int = 16,
    min_continuation: int | None = None,
    free_by: str = "edit",
    batch_size: int | None = None,
) -> MemorizationLabels:
    """Label the same token rows that are scored: `batch.tokens`, `batch.attention_mask` of a `TokenBatch`.

    A row's prompt is the first `prompt_fraction` of its text, rounded down, or its first `prompt_length` tokens, the
    same for all rows; its continuation is the rest. A BOS token in front goes with the prompt and is no text. Rows
    whose continuation is shorter than `min_continuation` (None: `run_length`, so that every row could have such a run)
    or whose prompt is empty are excluded. A label needs more than `threshold`: a share of exactly 0.8 is not memorised.

    The model is run on each row's real tokens; `batch_size` (rows at a time) changes nothing but time and memory. Needs
    rapidfuzz. Raises BasinsError for settings that are not possible and tokens that the model has no room for.
    """
    check_model(model)
    ids = check_tokens(tokens, None)
    if ids is None:
        raise BasinsError("tokens is None. Pass token ids, one row a sequence.")
    check_room(model, ids)
    mask = check_mask(attention_mask, (ids.shape[0], ids.shape[1]))
    for name, value in (("prompt_fraction", prompt_fraction), ("threshold", threshold)):
        if not isinstance(value, float) or not 0 < value < 1:
            raise BasinsError(f"{name}={value!r} is out of range: it is a share, more than 0 and less than 1.")
    if prompt_length is not None:
        whole("prompt_length", prompt_length, 1, "it counts tokens of text; None takes prompt_fraction of each text.")
    whole("run_length", run_length, 1, "it counts tokens.")
    least = run_length if min_continuation is None else min_continuation
    whole("min_continuation", least, 1, "it counts tokens.")
    if least < run_length:
        raise BasinsError(
            f"min_continuation={least} is less than run_length={run_length}: a shorter continuation cannot have such a "
            "run, and would be labelled not memorised. Pass a smaller run_length too."
        )
    choose("free_by", free_by, FREE_BY)
    edit_distance([], [])  # a missing package is reported before the model runs

    begins, ends = mask.argmax(1), mask.argmax(1) + mask.sum(1)
    text = begins + _has_bos(model, ids, begins)
    n_text = ends - text
    # A third of 3 is 1, whatever 1 / 3 is in binary.
    prompts = (n_text.double() * prompt_fraction + 1e-9).long() if prompt_length is None else begins * 0 + prompt_length
    excluded = tuple(_reason(int(n), int(m), least) for n, m in zip(n_text, prompts, strict=True))
    rows = [row for row, reason in enumerate(excluded) if reason is None]

    starts = text + prompts
    place = torch.arange(ids.shape[1])
    continuation = (place >= starts[:, None]) & (place < ends[:, None])
    continuation &= torch.tensor([reason is None for reason in excluded])[:, None]
    greedy = torch.full_like(ids, -1)
    hits = torch.zeros_like(continuation)
    how: dict[str, Any] = {}
    if rows:
        texts = [ids[row, begins[row] : starts[row]] for row in rows]
        found = continue_greedily(model, texts, [int(ends[row] - starts[row]) for row in rows], batch_size=batch_size)
        hits[rows] = next_tokens(model, ids[rows], mask[rows], batch_size).hit & continuation[rows]
        for row, new in zip(rows, found.ids, strict=True):
            greedy[row, continuation[row]] = new
        how = {"decoding": found.path, "decoding_reason": found.reason, "near_ties": found.near_ties}
    return MemorizationLabels(
        prompt_length=prompts,
        continuation=continuation,
        greedy=greedy,
        excluded=excluded,
        **_measures(ids, continuation, greedy, hits, rows, threshold, run_length, free_by),
        settings={
            "prompt_fraction": prompt_fraction if prompt_length is None else None,
            "prompt_length": prompt_length,
            "threshold": threshold,
            "run_length": run_length,
            "min_continuation": least,
            "free_by": free_by,
            "n_excluded": len(ids) - len(rows),
            **how,
            "model": model_name(model),
            "weights": weight_processing(model),
            "fingerprint": fingerprint(model),
            "versions": versions(),
        },
    )


def _measures(
    ids: Int[Tensor, "batch pos"],
    continuation: Bool[Tensor, "batch pos"],
    greedy: Int[Tensor, "batch pos"],
    hits: Bool[Tensor, "batch pos"],
    rows: list[int],
    threshold: float,
    run_length: int,
    free_by: str,
) -> dict[str, Tensor]:
    """Every number of the rows that are included; in float64, where a share of 4 / 5 is no more than 0.8."""
    names = ("free_match", "free_edit", "exact_prefix", "exact", "forced_match", "forced_run", "free", "forced", "run")
    values = {name: torch.full((len(ids),), float("nan"), dtype=torch.float64) for name in names}
    hits = hits.clone()
    for row in rows:
        at = continuation[row].nonzero()[:, 0]
        true, said = ids[row, at].tolist(), greedy[row, at].tolist()
        n, same = len(true), [a == b for a, b in zip(true, said, strict=True)]
        prefix = same.index(False) if False in same else n
        # As long as the greedy continuation is the text, both kinds ask the same question; a near-tie is decided once.
        hits[row, at[: prefix + 1]] = torch.arange(min(prefix + 1, n)) < prefix
        hit = hits[row, at].tolist()
        one = {
            "free_match": sum(same) / n,
            "free_edit": (n - edit_distance(true, said)) / n,
            "exact_prefix": prefix,
            "exact": prefix == n,
            "forced_match": sum(hit) / n,
            "forced_run": longest_run(hit),
        }
        one["free"] = one[f"free_{'edit' if free_by == 'edit' else 'match'}"] > threshold
        one["forced"] = one["forced_match"] > threshold
        one["run"] = one["forced_run"] >= run_length
        for name, value in one.items():
            values[name][row] = float(value)
    return {**values, "forced_hits": hits}


def edit_distance(one: list[int], other: list[int]) -> int:
    """Levenshtein distance: insertions, deletions and substitutions of single tokens."""
    try:
        from rapidfuzz.distance import Levenshtein
    except ImportError as error:
        raise MissingExtra("rapidfuzz", "experiments") from error
    return int(Levenshtein.distance(one, other))


def longest_run(hits: list[bool]) -> int:
    """Length of the longest run of True."""
    longest = current = 0
    for hit in hits:
        current = current + 1 if hit else 0
        longest = max(longest, current)
    return longest


def _has_bos(model: Any, ids: Int[Tensor, "batch pos"], begins: Int[Tensor, "batch"]) -> Int[Tensor, "batch"]:
    """1 for rows whose first real token is the tokenizer's BOS (or CLS) token."""
    tokenizer = getattr(model, "tokenizer", None)
    front = [getattr(tokenizer, name, None) for name in ("bos_token_id", "cls_token_id")]
    front = torch.tensor([token for token in front if token is not None], dtype=torch.long)
    return torch.isin(ids.gather(1, begins[:, None])[:, 0], front).long()


def _reason(n_text: int, prompt: int, least: int) -> str | None:
    if prompt >= 1 and n_text - prompt >= least:
        return None
    left = max(0, n_text - prompt)
    return f"{n_text} tokens of text: a prompt of {prompt} leaves {left}, and a label needs a prompt and {least} more"


def _int(value: float) -> int | None:
    return None if value != value else int(value)
