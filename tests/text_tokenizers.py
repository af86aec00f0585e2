"""A model that has only a tokenizer, of two families: bytes (GPT-2's way) and pieces of words (SentencePiece's way)."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

BOS = "<s>"


def with_tokenizer(tokenizer: Any) -> Any:
    """What `basins.corpus.tokenize` needs of a model."""

    def to_tokens(text: str, prepend_bos: bool = True, **_: Any) -> torch.Tensor:
        return torch.tensor([tokenizer((tokenizer.bos_token if prepend_bos else "") + text)["input_ids"]])

    cfg = SimpleNamespace(n_ctx=None, default_prepend_bos=True, tokenizer_prepends_bos=False)
    return SimpleNamespace(cfg=cfg, tokenizer=tokenizer, to_tokens=to_tokens)


def unigram(texts: Iterable[str], size: int = 600) -> Any:
    """A Unigram model with Metaspace ("▁the") and NFKC, as SentencePiece trains them, bytes for what it lacks."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<unk>", BOS]
    trainer = trainers.UnigramTrainer(vocab_size=size, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, unk_token="<unk>", pad_token=BOS)
