"""Texts -> token batches with masks and character offsets, by one rule.

The rule: the tokens of a text are what `model.to_tokens(text, prepend_bos=prepend_bos, truncate=False)` gives for that
text alone. So a corpus scored through `score_texts` and a cache made by hand hold the same tokens, the BOS-like token
in front included.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from basins.errors import BasinsError, choose
from basins.texts import check_texts, read_labelled, read_texts

__all__ = ["LONG_TEXTS", "TokenBatch", "read_labelled", "read_texts", "tokenize"]

LONG_TEXTS = ("error", "truncate", "split")
CHUNK = 1_000  # texts a tokenizer call: bounds what its Python lists take
NO_OFFSETS = (-1, -1)


@dataclass(frozen=True)
class TokenBatch:
    """Rows of tokens, padded on the right.

    `tokens`: token ids, on the CPU; padding holds the pad token's id (0 where there is none).
    `attention_mask`: 1 for real tokens, 0 for padding. Only it says what padding is: the pad token is often the BOS.
    `offsets`: where a token starts and ends in its text, in characters, (0, 0) for a token the tokenizer added and for
    padding. Whether a leading space belongs to its word's token is up to the tokenizer. All -1 if it cannot say.
    `text_ids`: the text (its place in the list) each row comes from.
    `tokenization`: how this was done, for the record.
    """

    tokens: Int[Tensor, "batch pos"]
    attention_mask: Int[Tensor, "batch pos"]
    offsets: Int[Tensor, "batch pos 2"]
    text_ids: tuple[int, ...]
    tokenization: dict[str, Any]

    def __len__(self) -> int:
        return len(self.tokens)

    def __repr__(self) -> str:
        rows, positions = self.tokens.shape
        n = int(self.attention_mask.sum())
        return f"TokenBatch({n} tokens of {len(set(self.text_ids))} texts in {rows} rows of at most {positions})"


@dataclass(frozen=True)
class _Encoded:
    """One text: its token ids, their character spans, and how many of the first are tokens put in front (0 or 1)."""

    ids: list[int]
    spans: list[tuple[int, int]]
    front: int


def tokenize(
    model: Any,
    texts: list[str],
    max_length: int | None = None,
    long_texts: str = "error",
    prepend_bos: bool | None = None,
) -> TokenBatch:
    """Tokenize `texts` for `model` (a TransformerLens model).

    `max_length`: tokens a row may have, BOS included; None means the model's context, `model.cfg.n_ctx`. More than the
    context is possible on a bridge with rotary or ALiBi positions only.
    `long_texts`: what happens to a longer text. "error": BasinsError. "truncate": its first `max_length` tokens stay.
    "split": consecutive windows of `max_length` tokens, a row each, every one with its own BOS if the text has one.
    The windows are cut from the text's tokens (no word is tokenized anew), their offsets count in the whole text, no
    token is dropped, and so the last window may be as short as one token.
    `prepend_bos`: None is the model's own default (`model.cfg.default_prepend_bos`).

    Empty texts, texts that are no strings and texts without a token raise BasinsError.
    """
    choose("long_texts", long_texts, LONG_TEXTS)
    if isinstance(texts, str):
        raise BasinsError("texts is one string. Pass a list: [text].")
    texts = list(check_texts(texts, "texts[{}]"))
    if not texts:
        raise BasinsError("The list of texts is empty.")
    if getattr(model, "tokenizer", None) is None:
        raise BasinsError(
            "The model has no tokenizer, so it cannot read texts. Pass one to "
            "basins.load_model(..., tokenizer=tokenizer), or score a cache."
        )
    limit = _limit(model, max_length)
    if prepend_bos is None:
        prepend_bos = bool(getattr(model.cfg, "default_prepend_bos", True))

    has_offsets = _batches_like_to_tokens(model, texts, prepend_bos)
    encode = _encode_batched if has_offsets else _encode_singly
    rows: list[tuple[list[int], list[tuple[int, int]]]] = []
    text_ids: list[int] = []
    n_long = 0
    for number, text in enumerate(encode(model, texts, prepend_bos)):
        if len(text.ids) <= text.front:
            raise BasinsError(
                f"texts[{number}] has no token: the tokenizer drops all of it ({texts[number]!r:.40}). Leave it out."
            )
        if len(text.ids) > limit:
            n_long += 1
            if long_texts == "error":
                raise BasinsError(_too_long(number, len(text.ids), limit, max_length, model))
        windows = list(_windows(text, limit))
        kept = windows if long_texts == "split" else windows[:1]
        rows += kept
        text_ids += [number] * len(kept)
    tokens, mask, offsets = _pad(rows, getattr(model.tokenizer, "pad_token_id", None) or 0)
    starts_with_bos = prepend_bos and bool((tokens[:, 0] == model.tokenizer.bos_token_id).all())
    return TokenBatch(
        tokens,
        mask,
        offsets,
        tuple(text_ids),
        {
            "rule": "model.to_tokens(text, prepend_bos=prepend_bos, truncate=False)",
            "prepend_bos": prepend_bos,
            "bos_token": model.tokenizer.bos_token if starts_with_bos else None,
            "max_length": limit,
            "long_texts": long_texts,
            "n_long_texts": n_long,
            "offsets": has_offsets,
            "tokenizer": f"{type(model.tokenizer).__name__} {getattr(model.tokenizer, 'name_or_path', '')}".strip(),
        },
    )


def _limit(model: Any, max_length: int | None) -> int:
    n_ctx = getattr(model.cfg, "n_ctx", None)
    if max_length is None:
        return n_ctx or 2**31
    if not isinstance(max_length, int) or max_length < 2:
        raise BasinsError(
            f"max_length={max_length!r} is too short: a row holds a token besides the BOS token. Possible: 2 or more."
        )
    if n_ctx and max_length > n_ctx and not _unbounded(model):
        raise BasinsError(
            f"max_length={max_length} is more than the model's context of {n_ctx} tokens, and it has no positions "
            f"beyond. Possible: 2 to {n_ctx}."
        )
    return max_length


def _unbounded(model: Any) -> bool:
    """A HookedTransformer's rotary tables and masks end at n_ctx too; only a bridge runs the model's own code."""
    return hasattr(model, "adapter") and getattr(model.cfg, "positional_embedding_type", "") in ("rotary", "alibi")


def check_room(model: Any, tokens: Int[Tensor, "batch pos"]) -> None:
    """Raise BasinsError for ids outside the vocabulary, or more positions than the model has."""
    d_vocab, n_ctx = getattr(model.cfg, "d_vocab", None), getattr(model.cfg, "n_ctx", None)
    outside = tokens[(tokens < 0) | (tokens >= (d_vocab or 2**62))]
    if len(outside):
        raise BasinsError(
            f"token id {int(outside[0])} is not in the model's vocabulary (d_vocab={d_vocab}, ids 0 to "
            f"{(d_vocab or 0) - 1}). Were the tokens made with another tokenizer?"
        )
    if n_ctx and tokens.shape[1] > n_ctx and not _unbounded(model):
        raise BasinsError(
            f"tokens have {tokens.shape[1]} positions, more than the model's context of {n_ctx}. Cut them into rows of "
            f"at most {n_ctx}; score_texts(..., long_texts='split') does so for texts."
        )


def _too_long(number: int, length: int, limit: int, max_length: int | None, model: Any) -> str:
    n_ctx = getattr(model.cfg, "n_ctx", None) or 0
    bound = f"the model's context of {limit}" if max_length is None else f"max_length={max_length}"
    larger = f" or a larger max_length (the model can take {n_ctx})" if n_ctx > limit else ""
    return (
        f"texts[{number}] has {length} tokens, more than {bound}. Possible: a shorter text{larger}; "
        'long_texts="truncate" scores its first tokens only; long_texts="split" scores all of it in windows.'
    )


def _prefix(model: Any, prepend_bos: bool) -> str:
    """What TransformerLens puts in front of the text: the BOS token as a string, unless the tokenizer adds it."""
    if not prepend_bos or getattr(model.cfg, "tokenizer_prepends_bos", True):
        return ""
    bos = model.tokenizer.bos_token
    # A BOS that is not one token of the vocabulary ("<|endoftext|>" installed on BERT) is not put in front.
    if bos is None or len(model.tokenizer(bos, add_special_tokens=False)["input_ids"]) != 1:
        return ""
    return bos


def _encode_batched(model: Any, texts: list[str], prepend_bos: bool) -> Iterator[_Encoded]:
    """`to_tokens` of each text, many a tokenizer call, with offsets."""
    tokenizer, cfg = model.tokenizer, model.cfg
    prefix = _prefix(model, prepend_bos)
    drop_first = not prepend_bos and getattr(cfg, "tokenizer_prepends_bos", True)
    eos = tokenizer.eos_token_id if getattr(cfg, "tokenizer_appends_eos", False) else None
    for start in range(0, len(texts), CHUNK):
        chunk = [prefix + text for text in texts[start : start + CHUNK]]
        encoded = tokenizer(chunk, return_offsets_mapping=True, return_attention_mask=False, verbose=False)
        for ids, spans in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
            while eos is not None and len(ids) > 1 and ids[-1] == eos:
                ids, spans = ids[:-1], spans[:-1]
            if drop_first:
                ids, spans = ids[1:], spans[1:]
            spans = [(max(0, a - len(prefix)), max(0, b - len(prefix))) for a, b in spans]
            yield _Encoded(ids, spans, _front(tokenizer, ids, prepend_bos))


def _encode_singly(model: Any, texts: list[str], prepend_bos: bool) -> Iterator[_Encoded]:
    """`to_tokens` itself, a call a text, without offsets: the reference for `_encode_batched`, and its fallback."""
    for text in texts:
        ids = _to_tokens(model, text, prepend_bos)
        yield _Encoded(ids, [NO_OFFSETS] * len(ids), _front(model.tokenizer, ids, prepend_bos))


def _front(tokenizer: Any, ids: list[int], prepend_bos: bool) -> int:
    """1 if the first token was put in front of the text, 0 otherwise."""
    added = {tokenizer.bos_token_id, getattr(tokenizer, "cls_token_id", None)} - {None}
    return int(prepend_bos and bool(ids) and ids[0] in added)


def _batches_like_to_tokens(model: Any, texts: list[str], prepend_bos: bool) -> bool:
    """Whether batches stand for `to_tokens`: the tokenizer gives offsets; the first, last and longest texts agree."""
    if not getattr(model.tokenizer, "is_fast", False):
        return False
    probes = [texts[0], texts[-1], max(texts, key=len)]
    batched = [text.ids for text in _encode_batched(model, probes, prepend_bos)]
    return batched == [_to_tokens(model, text, prepend_bos) for text in probes]


def _to_tokens(model: Any, text: str, prepend_bos: bool) -> list[int]:
    return model.to_tokens(text, prepend_bos=prepend_bos, truncate=False, move_to_device=False)[0].tolist()


def _windows(text: _Encoded, limit: int) -> Iterator[tuple[list[int], list[tuple[int, int]]]]:
    """The text's tokens in rows of at most `limit`, each with the text's front token."""
    step = limit - text.front
    for start in range(text.front, len(text.ids), step):
        body = slice(start, start + step)
        yield text.ids[: text.front] + text.ids[body], text.spans[: text.front] + text.spans[body]


def _pad(
    rows: list[tuple[list[int], list[tuple[int, int]]]], pad_id: int
) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"], Int[Tensor, "batch pos 2"]]:
    width = max(len(ids) for ids, _ in rows)
    tokens = torch.full((len(rows), width), pad_id, dtype=torch.int64)
    mask = torch.zeros(len(rows), width, dtype=torch.int64)
    offsets = torch.zeros(len(rows), width, 2, dtype=torch.int32)
    for row, (ids, spans) in enumerate(rows):
        tokens[row, : len(ids)] = torch.tensor(ids)
        mask[row, : len(ids)] = 1
        offsets[row, : len(ids)] = torch.tensor(spans, dtype=torch.int32)
    return tokens, mask, offsets
