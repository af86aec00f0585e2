"""The shipped models, their tokenizer, planted passages and a page of text: package files only, never a network.

`pocket` (8 layers, width 256) and `pocket-mini` (4 layers, width 128) are GPT-2-architecture models trained on
public-domain English in which 64-token passages were planted in known doses. MODEL_CARD.md beside this file says how.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from basins.errors import choose

if TYPE_CHECKING:
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

FILES = Path(__file__).parent / "files"
SEPARATOR = "<|endoftext|>"
SHAPES: dict[str, dict[str, Any]] = {
    "pocket": {"n_layer": 8, "n_embd": 256, "n_head": 8},
    "pocket-mini": {"n_layer": 4, "n_embd": 128, "n_head": 4},
}
NAMES = tuple(SHAPES)
CONTEXT = 128


@dataclass(frozen=True)
class Passage:
    """64 tokens of a book that is otherwise held out of the training text.

    `dose`: times the models saw it in training; 0 for `split` "control" (the
    other split is "planted").
    `char_start`: where it starts in the book. `longest_shared_run`: words in a row, 0 or 4 to 7, that it shares with
    the training text (a candidate that shared 8 or more was not used).
    """

    id: int
    text: str
    dose: int
    split: str
    book: str
    char_start: int
    longest_shared_run: int


def passages() -> list[Passage]:
    """All 408 passages: 24 at each dose 1, 2, 4, ..., 256, and 192 controls of dose 0."""
    with open(FILES / "passages.jsonl", encoding="utf-8") as lines:
        return [Passage(**json.loads(line)) for line in lines]


def demo_text() -> list[str]:
    """Paragraphs of the held-out book that share no passage with `passages()`: ordinary text, new to the models."""
    return (FILES / "demo.txt").read_text(encoding="utf-8").rstrip("\n").split("\n")


@dataclass(frozen=True)
class Tags:
    """The words of a paragraph of `demo_text()`: their characters, their tags, the number of each one's sentence."""

    spans: tuple[tuple[int, int], ...]
    tags: tuple[str, ...]
    sentences: tuple[int, ...]


def demo_tags() -> list[Tags]:
    """The words of each paragraph of `demo_text()` with tags of the universal tagset: automatic ones, not gold."""
    found = []
    with open(FILES / "demo_tags.jsonl", encoding="ascii") as lines:
        for row in map(json.loads, lines):
            spans = tuple((start, start + n) for start, n in zip(row["starts"], row["lengths"], strict=True))
            firsts = set(row["sentences"][1:])
            sentences = tuple(accumulate(int(word in firsts) for word in range(len(spans))))
            found.append(Tags(spans, tuple(row["tags"].split()), sentences))
    return found


def load(name: str) -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]:
    """The transformers model (float32, CPU, eval mode) and tokenizer behind "pocket" or "pocket-mini"."""
    from safetensors.torch import load_file
    from transformers import GPT2LMHeadModel

    name = choose("name", name, NAMES)
    tokenizer = load_tokenizer()
    model = GPT2LMHeadModel(config(name, tokenizer))
    missing, unexpected = model.load_state_dict(load_file(FILES / f"{name}.safetensors"), strict=False)
    if set(missing) - {"lm_head.weight"} or unexpected:  # lm_head shares the embedding's weight and is not stored
        raise RuntimeError(f"{name}.safetensors does not fit the model: missing {missing}, unexpected {unexpected}")
    model.name_or_path = name
    return model.eval(), tokenizer


def config(name: str, tokenizer: PreTrainedTokenizerFast | None = None) -> GPT2Config:
    """The configuration of "pocket" or "pocket-mini"; no weights are read."""
    from transformers import GPT2Config

    tokenizer = tokenizer or load_tokenizer()
    separator: Any = tokenizer.convert_tokens_to_ids(SEPARATOR)
    return GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=CONTEXT,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=separator,
        eos_token_id=separator,
        architectures=["GPT2LMHeadModel"],
        **SHAPES[choose("name", name, NAMES)],
    )


def load_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE, vocabulary 4,096; "<|endoftext|>" is the token in front, at the end and for padding."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_file=str(FILES / "tokenizer.json"),
        bos_token=SEPARATOR,
        eos_token=SEPARATOR,
        pad_token=SEPARATOR,
        model_max_length=CONTEXT,
    )
