from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_gguf import D_MODEL, N_LAYERS, write_gemma3

from basins import gguf_files, load_model
from basins.corpus import tokenize
from basins.errors import BasinsError, MissingExtra

needs_gguf = pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason='needs the "gguf" extra')


@pytest.fixture(scope="module")
def gemma3_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gemma3(tmp_path_factory.mktemp("gguf") / "tiny-gemma3.gguf")


@needs_gguf
def test_gemma3_names_no_architecture_and_still_loads(gemma3_gguf: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(gemma3_gguf.parent, gguf_file=gemma3_gguf.name)
    assert not config.architectures, "transformers names it now: gguf_files.architecture may no longer be needed"

    model = load_model(gemma3_gguf)

    assert (len(model.blocks), model.cfg.d_model, model.cfg.model_name) == (N_LAYERS, D_MODEL, "tiny-gemma3")
    tokens = model.to_tokens("hello world", truncate=False)
    assert tokens[0, 0] == model.tokenizer.bos_token_id == 2
    assert model.to_string(tokens[0, 1:]).strip() == "hello world"
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens)
        expected = model.original_model(tokens, output_hidden_states=True).hidden_states[1]
    torch.testing.assert_close(cache["blocks.0.hook_resid_post"], expected)


@needs_gguf
def test_weights_are_the_ones_of_the_file_in_the_dtype_asked_for(gemma3_gguf: Path) -> None:
    import gguf

    stored = {t.name: torch.tensor(t.data) for t in gguf.GGUFReader(gemma3_gguf).tensors}
    model = load_model(str(gemma3_gguf), dtype="bfloat16")
    loaded = model.original_model.get_input_embeddings().weight
    assert loaded.dtype == torch.bfloat16
    torch.testing.assert_close(loaded.float(), stored["token_embd.weight"], atol=0, rtol=1e-2)


@needs_gguf
def test_a_tokenizer_that_is_given_replaces_the_one_of_the_file(gemma3_gguf: Path) -> None:
    from tiny_models import tiny_tokenizer

    model = load_model(gemma3_gguf, tokenizer=tiny_tokenizer())
    assert model.to_tokens("ab", truncate=False).tolist() == [tiny_tokenizer()("ab")["input_ids"]]


@pytest.mark.parametrize(
    ("model_type", "expected"),
    [("gemma3_text", "Gemma3ForCausalLM"), ("llama", "LlamaForCausalLM"), ("gpt2", "GPT2LMHeadModel")],
)
def test_architecture_is_filled_from_the_model_type(model_type: str, expected: str) -> None:
    config: Any = transformers.PretrainedConfig()
    config.model_type = model_type
    assert gguf_files.architecture(config) == expected
    config.architectures = ["NamedInTheFile"]
    assert gguf_files.architecture(config) == "NamedInTheFile"


def test_architecture_without_a_language_model_class() -> None:
    config: Any = transformers.PretrainedConfig()
    config.model_type = "vit"
    with pytest.raises(BasinsError, match=r"holds a vit model, for which transformers has no language model class"):
        gguf_files.architecture(config)


def test_missing_file() -> None:
    with pytest.raises(
        BasinsError, match=r"There is no file nowhere/x\.gguf \(looked from .*\)\. Is the path spelt right\?"
    ):
        load_model("nowhere/x.gguf")


def test_a_file_that_is_not_gguf(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"version https://git-lfs")
    with pytest.raises(BasinsError, match=r"x\.gguf is not a \.gguf file: it starts with b'vers' instead of b'GGUF'"):
        load_model(tmp_path / "x.gguf")


@needs_gguf
@pytest.mark.parametrize("length", [8, 2_000, 20_000])
def test_a_file_that_ends_too_early(gemma3_gguf: Path, tmp_path: Path, length: int) -> None:
    (tmp_path / "cut.gguf").write_bytes(gemma3_gguf.read_bytes()[:length])
    with pytest.raises(BasinsError, match=r"cut\.gguf ends too early or is damaged .* Is the download complete\?"):
        load_model(tmp_path / "cut.gguf")


def test_the_extra_is_named_when_gguf_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "gguf" else find_spec(name, *a))
    with pytest.raises(MissingExtra, match=r'gguf is not installed; .*pip install "compression-basins\[gguf\]"'):
        load_model(tmp_path / "x.gguf")


@pytest.mark.real_model
def test_smollm2_knows_the_capital_of_germany_and_keeps_the_rule(smollm2_gguf: Path) -> None:
    model = load_model(smollm2_gguf)
    assert (len(model.blocks), model.cfg.d_model, model.cfg.dtype) == (30, 576, torch.float32)
    assert not model.training
    tokens = model.to_tokens("The capital of France is Paris. The capital of Germany is", truncate=False)
    with torch.no_grad():
        assert model.to_string(model(tokens)[0, -1].argmax()).strip() == "Berlin"

    texts = ["Call me Ishmael.", "naïve café, 東京 🙂", " two\n\nlines"]
    batch = tokenize(model, texts)
    rows = [tokens[mask.bool()].tolist() for tokens, mask in zip(batch.tokens, batch.attention_mask)]
    assert rows == [model.to_tokens(text, truncate=False)[0].tolist() for text in texts]
    assert (batch.tokens[:, 0] == model.tokenizer.bos_token_id).all()
    assert [texts[0][a:b] for a, b in batch.offsets[0, :5].tolist()] == ["", "Call", " me", " Ishmael", "."]
