"""`load_model` and `tokenize` keep their promises where TransformerLens is 2.18 (HookedTransformer) or 3.9 (bridge)."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_models import tiny_hf_model, tiny_tokenizer

from basins import load_model
from basins import pocket as shipped
from basins.corpus import tokenize
from basins.errors import BasinsError

pytestmark = pytest.mark.compat

ON_2 = metadata.version("transformer-lens").startswith("2.")
TOKENS = torch.tensor([[1, 5, 9, 12, 40, 7]])


def _logits(model: Any, tokens: torch.Tensor = TOKENS) -> torch.Tensor:
    with torch.no_grad():
        output = model(tokens)
    return getattr(output, "logits", output)


def test_pocket_computes_what_its_transformers_model_computes() -> None:
    model = load_model("pocket")
    assert type(model).__name__ == ("HookedTransformer" if ON_2 else "TransformerBridge")
    assert (model.cfg.model_name, model.cfg.n_ctx, model.training) == ("pocket", 128, False)
    hf_model, _ = shipped.load("pocket")
    tokens = tokenize(model, [p.text for p in shipped.passages()[:2]]).tokens
    torch.testing.assert_close(_logits(model, tokens), _logits(hf_model, tokens), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral", "gptj", "opt"])
@pytest.mark.parametrize("with_tokenizer", [True, False])
def test_loaded_model(name: str, with_tokenizer: bool) -> None:
    hf_model = tiny_hf_model(name)
    expected = _logits(hf_model)
    model = load_model(hf_model, tokenizer=tiny_tokenizer() if with_tokenizer else None)
    torch.testing.assert_close(_logits(model), expected, rtol=1e-4, atol=1e-4)
    assert (model.tokenizer is not None) == with_tokenizer
    assert all(p.requires_grad for p in hf_model.parameters())


def test_rotary_base_of_the_model_is_kept() -> None:
    config = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    hf_model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config, rope_theta=50.0)).eval()
    for name, parameter in hf_model.named_parameters():
        if "self_attn" in name:
            parameter.data.mul_(10)  # so that attention depends on the positions
    expected = _logits(hf_model)
    torch.testing.assert_close(_logits(load_model(hf_model)), expected, rtol=1e-4, atol=1e-5)


def test_folder_in_half_precision(tmp_path: Path) -> None:
    tiny_hf_model("llama").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    model = load_model(tmp_path, dtype="bfloat16")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.to_tokens("ab").tolist() == [tiny_tokenizer()("ab")["input_ids"]]


@pytest.mark.parametrize("prepend_bos", [None, True, False])
def test_tokens_are_those_of_to_tokens(prepend_bos: bool | None) -> None:
    model = load_model("pocket-mini")
    texts = [p.text for p in shipped.passages()[:20]] + ["naïve café, 東京 🙂", "<|endoftext|> x"]
    batch = tokenize(model, texts, prepend_bos=prepend_bos)
    assert batch.tokenization["offsets"]
    rows = [tokens[mask.bool()].tolist() for tokens, mask in zip(batch.tokens, batch.attention_mask)]
    assert rows == [model.to_tokens(t, prepend_bos=prepend_bos, truncate=False)[0].tolist() for t in texts]


@pytest.mark.skipif(not ON_2, reason="only HookedTransformer converts weights")
def test_a_conversion_that_computes_something_else_is_refused() -> None:
    with pytest.raises(
        BasinsError, match=r"TransformerLens 2\S* converts this PhiForCausalLM wrongly \(the shapes of its"
    ):
        load_model(tiny_hf_model("phi"))
    hf_model = tiny_hf_model("llama")
    hf_model.config.rms_norm_eps = 1.0  # what the conversion is told, and the model does not do
    with pytest.raises(
        BasinsError, match=r"wrongly \(logits differ by .*% of the model's largest\)\. TransformerLens 4 wr"
    ):
        load_model(hf_model)


@pytest.mark.skipif(not ON_2, reason="the bridge of 3.9 knows these")
def test_architecture_that_this_version_does_not_know() -> None:
    with pytest.raises(
        BasinsError, match=r"has no adapter for the architecture \(FalconForCausalLM\)\. Possible: decoder-"
    ):
        load_model(tiny_hf_model("falcon"))
