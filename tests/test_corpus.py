from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_models import tiny_hf_model, tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from basins import corpus, load_model
from basins import pocket as shipped
from basins.corpus import TokenBatch, tokenize
from basins.errors import BasinsError

TEXTS = [
    "Call me Ishmael.",
    " leading and trailing spaces  ",
    "a",
    "two\nlines\tand\r\na tab",
    "naïve café, 東京 🙂🙂 e\u0301",
    "<|endoftext|> written out <bos> and <eos> too",
    "x" * 60,
]


def _words(template: str, *special: str) -> PreTrainedTokenizerFast:
    """A sentencepiece-like tokenizer: words with their space as "▁", `template` around a text."""
    vocabulary = {
        t: i for i, t in enumerate(["<unk>", "<s>", "</s>", "▁call", "▁me", "▁", *"abcdefghijklmnopqrstuvwxyz"])
    }
    tokenizer: Any = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(s, vocabulary[s]) for s in special]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        add_bos_token=True,
        name_or_path="",
    )


TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "prepends BOS, like Llama's": tiny_tokenizer,
    "prepends BOS and appends EOS": lambda: _words("<s> $A </s>", "<s>", "</s>"),
    "appends EOS, like OLMo's": lambda: _words("$A </s>", "</s>"),
    "adds nothing, like GPT-2's": shipped.load_tokenizer,
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def model(request: pytest.FixtureRequest) -> Any:
    return load_model(tiny_hf_model("llama"), tokenizer=TOKENIZERS[request.param]())


def _rows(batch: TokenBatch) -> list[list[int]]:
    return [tokens[mask.bool()].tolist() for tokens, mask in zip(batch.tokens, batch.attention_mask)]


def _to_tokens(model: Any, text: str, prepend_bos: bool | None = None) -> list[int]:
    return model.to_tokens(text, prepend_bos=prepend_bos, truncate=False)[0].tolist()


# --- the rule ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prepend_bos", [None, True, False])
def test_tokens_are_those_of_to_tokens_on_each_text_alone(model: Any, prepend_bos: bool | None) -> None:
    batch = tokenize(model, TEXTS, max_length=100, prepend_bos=prepend_bos)
    assert batch.tokenization["offsets"], "the batched path was not taken"
    assert _rows(batch) == [_to_tokens(model, text, prepend_bos) for text in TEXTS]
    assert batch.text_ids == tuple(range(len(TEXTS)))


@given(texts=st.lists(st.text(min_size=1, max_size=40).filter(str.strip), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rule_and_offsets_on_any_text(pocket_mini: Any, texts: list[str]) -> None:
    batch = tokenize(pocket_mini, texts, long_texts="split")
    assert batch.tokenization["offsets"]
    assert [tokens for tokens, _ in _joined(batch)] == [_to_tokens(pocket_mini, text) for text in texts]
    for text, (_, spans) in zip(texts, _joined(batch), strict=True):
        covered = {i for a, b in spans for i in range(a, b)}
        assert covered == set(range(len(text)))  # a byte-level tokenizer drops nothing


def _joined(batch: TokenBatch) -> list[tuple[list[int], list[list[int]]]]:
    """Tokens and spans of each text, its windows put together again."""
    joined: dict[int, tuple[list[int], list[list[int]]]] = {}
    for row, text in enumerate(batch.text_ids):
        n, first = int(batch.attention_mask[row].sum()), text not in joined
        tokens, spans = joined.setdefault(text, ([], []))
        tokens += batch.tokens[row, 0 if first else 1 : n].tolist()
        spans += batch.offsets[row, 0 if first else 1 : n].tolist()
    return list(joined.values())


def test_cache_made_by_hand_sees_the_same_tokens(pocket_mini: Any) -> None:
    texts = [p.text for p in shipped.passages()[:3]]
    batch = tokenize(pocket_mini, texts)
    for row, text in enumerate(texts):
        with torch.no_grad():
            by_hand, _ = pocket_mini.run_with_cache(text)
            ours = pocket_mini(batch.tokens[row : row + 1])
        torch.testing.assert_close(ours, by_hand)
    assert (batch.tokens[:, 0] == pocket_mini.tokenizer.bos_token_id).all()
    assert batch.tokens.shape == (3, 65)


def test_many_texts_are_the_same_in_one_call_and_in_several(pocket_mini: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"{p.text[: 5 + p.id % 90]}." for p in shipped.passages()[:60]]
    whole = tokenize(pocket_mini, texts)
    monkeypatch.setattr(corpus, "CHUNK", 7)
    chunked = tokenize(pocket_mini, texts)
    assert torch.equal(whole.tokens, chunked.tokens)
    assert torch.equal(whole.offsets, chunked.offsets)
    monkeypatch.setattr(corpus, "_batches_like_to_tokens", lambda *_: False)
    singly = tokenize(pocket_mini, texts)
    assert torch.equal(whole.tokens, singly.tokens)
    assert torch.equal(whole.attention_mask, singly.attention_mask)


def test_what_is_recorded(pocket_mini: Any) -> None:
    recorded = tokenize(pocket_mini, ["one", "two"]).tokenization
    assert recorded == {
        "rule": "model.to_tokens(text, prepend_bos=prepend_bos, truncate=False)",
        "prepend_bos": True,
        "bos_token": "<|endoftext|>",
        "max_length": 128,
        "long_texts": "error",
        "n_long_texts": 0,
        "offsets": True,
        "tokenizer": recorded["tokenizer"],
    }
    without = tokenize(pocket_mini, ["one", "two"], prepend_bos=False).tokenization
    assert (without["prepend_bos"], without["bos_token"]) == (False, None)


# --- masks and offsets ------------------------------------------------------------------------------------------------


def test_padding_is_on_the_right_and_known_by_the_mask_alone(pocket_mini: Any) -> None:
    batch = tokenize(pocket_mini, ["one", "<|endoftext|> three four five <|endoftext|>"])
    assert pocket_mini.tokenizer.pad_token_id == pocket_mini.tokenizer.bos_token_id == 0
    n_short, n_long = (len(_to_tokens(pocket_mini, t)) for t in ("one", "<|endoftext|> three four five <|endoftext|>"))
    assert batch.attention_mask.tolist() == [[1] * n_short + [0] * (n_long - n_short), [1] * n_long]
    assert (batch.tokens[0, n_short:] == 0).all()
    assert (batch.offsets[0, n_short:] == 0).all()
    assert (batch.tokens.dtype, batch.attention_mask.dtype) == (torch.int64, torch.int64)
    assert repr(batch) == f"TokenBatch({n_short + n_long} tokens of 2 texts in 2 rows of at most {n_long})"


def test_offsets_point_into_the_text(pocket_mini: Any) -> None:
    text = "Call me Ishmael. Some years ago"
    batch = tokenize(pocket_mini, [text])
    pieces = [text[a:b] for a, b in batch.offsets[0].tolist()]
    assert pieces[0] == ""
    assert "".join(pieces) == text
    assert pieces == [""] + [pocket_mini.tokenizer.decode([i]) for i in batch.tokens[0, 1:].tolist()]


def test_offsets_with_a_tokenizer_that_adds_bos_itself() -> None:
    model = load_model(tiny_hf_model("llama"), tokenizer=tiny_tokenizer())
    assert tokenize(model, ["ab c"]).offsets[0].tolist() == [[0, 0], [0, 1], [1, 2], [2, 3], [3, 4]]
    assert tokenize(model, ["ab c"], prepend_bos=False).offsets[0].tolist() == [[0, 1], [1, 2], [2, 3], [3, 4]]


def test_tokenizer_that_cannot_tell_offsets(pocket_mini: Any) -> None:
    tokenizer = SimpleNamespace(is_fast=False, bos_token_id=0, bos_token="<|endoftext|>", pad_token_id=0)
    slow = SimpleNamespace(cfg=pocket_mini.cfg, tokenizer=tokenizer, to_tokens=pocket_mini.to_tokens)
    batch = tokenize(slow, ["one two three four", "five"])
    assert _rows(batch) == [_to_tokens(pocket_mini, t) for t in ("one two three four", "five")]
    assert not batch.tokenization["offsets"]
    assert (batch.offsets[batch.attention_mask.bool()] == -1).all()
    assert (batch.offsets[~batch.attention_mask.bool()] == 0).all()


def test_to_tokens_has_the_last_word(pocket_mini: Any) -> None:
    """A model class with a rule of its own: batches would differ, so each text goes through `to_tokens`."""
    other = SimpleNamespace(
        cfg=pocket_mini.cfg,
        tokenizer=pocket_mini.tokenizer,
        to_tokens=lambda text, **settings: pocket_mini.to_tokens(text.upper(), **settings),
    )
    batch = tokenize(other, ["one two", "three"])
    assert _rows(batch) == [_to_tokens(pocket_mini, t) for t in ("ONE TWO", "THREE")]
    assert not batch.tokenization["offsets"]


# --- long texts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prepend_bos", [True, False])
def test_truncate_keeps_the_first_tokens(pocket_mini: Any, prepend_bos: bool) -> None:
    text = shipped.demo_text()[0]
    whole = _to_tokens(pocket_mini, text, prepend_bos)
    assert len(whole) > 128
    batch = tokenize(pocket_mini, ["short", text], long_texts="truncate", prepend_bos=prepend_bos)
    assert _rows(batch)[1] == whole[:128]
    assert (batch.text_ids, batch.tokenization["n_long_texts"]) == ((0, 1), 1)
    assert _rows(tokenize(pocket_mini, [text], 10, "truncate", prepend_bos)) == [whole[:10]]


@pytest.mark.parametrize("prepend_bos", [True, False])
@pytest.mark.parametrize("max_length", [None, 10, 2])
def test_split_loses_no_token(pocket_mini: Any, max_length: int | None, prepend_bos: bool) -> None:
    texts = [shipped.demo_text()[0], "short", shipped.demo_text()[1]]
    batch = tokenize(pocket_mini, texts, max_length, "split", prepend_bos)
    limit, front = max_length or 128, int(prepend_bos)
    for number, text in enumerate(texts):
        rows = [i for i, t in enumerate(batch.text_ids) if t == number]
        lengths = batch.attention_mask[rows].sum(1).tolist()
        assert all(n == limit for n in lengths[:-1])
        assert front < lengths[-1] <= limit
        body = [token for i, n in zip(rows, lengths) for token in batch.tokens[i, front:n].tolist()]
        assert body == _to_tokens(pocket_mini, text, prepend_bos)[front:]
        pieces = [text[a:b] for i, n in zip(rows, lengths) for a, b in batch.offsets[i, front:n].tolist()]
        assert "".join(pieces) == text
        assert (batch.tokens[rows, :front] == 0).all()
    assert batch.text_ids == tuple(sorted(batch.text_ids))


def test_a_text_of_just_the_context_is_not_long(pocket_mini: Any) -> None:
    n = len(_to_tokens(pocket_mini, "the sea and the wind"))
    batch = tokenize(pocket_mini, ["the sea and the wind"], max_length=n)
    assert (batch.tokens.shape, batch.tokenization["n_long_texts"]) == ((1, n), 0)


def test_a_longer_max_length_than_the_context() -> None:
    """Rotary positions go on; learned ones end."""
    rotary = load_model(tiny_hf_model("llama"), tokenizer=tiny_tokenizer())
    batch = tokenize(rotary, ["a" * 80], max_length=100)
    assert batch.tokens.shape == (1, 81)
    assert rotary(batch.tokens).isfinite().all()
    learned = load_model(tiny_hf_model("gpt2"), tokenizer=tiny_tokenizer())
    with pytest.raises(
        BasinsError,
        match=r"max_length=100 is more than the model's context of 64 tokens, and it has no positions beyond\.",
    ):
        tokenize(learned, ["a" * 80], max_length=100)


# --- what is refused, and the words it says ---------------------------------------------------------------------------


def test_too_long(pocket_mini: Any) -> None:
    text = shipped.demo_text()[0]
    n = len(_to_tokens(pocket_mini, text))
    ways_out = r'; long_texts="truncate" scores its first tokens only; long_texts="split" scores all of it in windows\.'
    with pytest.raises(
        BasinsError,
        match=rf"texts\[1\] has {n} tokens, more than the model's context of 128\. Possible: a shorter text{ways_out}",
    ):
        tokenize(pocket_mini, ["short", text])
    with pytest.raises(
        BasinsError,
        match=r"texts\[0\] has \d+ tokens, more than max_length=3\. Possible: a shorter text or a larger max_length "
        rf"\(the model can take 128\){ways_out}",
    ):
        tokenize(pocket_mini, ["one two three four"], max_length=3)


@pytest.mark.parametrize("max_length", [1, 0, -5, 2.5])
def test_max_length_too_short(pocket_mini: Any, max_length: Any) -> None:
    with pytest.raises(
        BasinsError, match=rf"max_length={max_length} is too short: a row holds a token besides the BOS"
    ):
        tokenize(pocket_mini, ["one"], max_length=max_length)


def test_unknown_long_texts(pocket_mini: Any) -> None:
    with pytest.raises(
        BasinsError, match=r"long_texts='cut' is not an option\. Possible: 'error', 'truncate', 'split'\."
    ):
        tokenize(pocket_mini, ["one"], long_texts="cut")


def test_texts_that_are_none(pocket_mini: Any) -> None:
    with pytest.raises(BasinsError, match=r"texts\[1\] is empty: there is nothing to score\. Leave it out\."):
        tokenize(pocket_mini, ["one", ""])
    with pytest.raises(BasinsError, match=r"texts\[1\] is empty \(white space only\)"):
        tokenize(pocket_mini, ["one", "\n"])
    with pytest.raises(BasinsError, match=r"texts\[0\] is not a string but a int \(1\)\."):
        tokenize(pocket_mini, [1])  # pyright: ignore[reportArgumentType]
    with pytest.raises(BasinsError, match=r"texts is one string\. Pass a list: \[text\]\."):
        tokenize(pocket_mini, "one")  # pyright: ignore[reportArgumentType]
    with pytest.raises(BasinsError, match=r"The list of texts is empty\."):
        tokenize(pocket_mini, [])


def test_text_that_the_tokenizer_drops() -> None:
    vocabulary = {"<bos>": 0, "a": 1}
    tokenizer: Any = Tokenizer(models.WordLevel(vocabulary, unk_token="<bos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("b", "removed")
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", add_bos_token=True, name_or_path="")
    model = load_model(tiny_hf_model("llama"), tokenizer=fast)
    with pytest.raises(
        BasinsError, match=r"texts\[1\] has no token: the tokenizer drops all of it \('bb'\)\. Leave it out\."
    ):
        tokenize(model, ["a", "bb"])


def test_model_without_tokenizer() -> None:
    with pytest.raises(
        BasinsError, match=r"The model has no tokenizer, so it cannot read texts\. Pass one to basins\.load_model"
    ):
        tokenize(load_model(tiny_hf_model("llama")), ["one"])
