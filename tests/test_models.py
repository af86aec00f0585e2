from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.errors
import pytest
import torch
import transformers
from tiny_models import tiny_hf_model, tiny_tokenizer

from basins import load_model
from basins.errors import BasinsError
from basins.models import parse_device, parse_dtype

TOKENS = torch.tensor([[1, 5, 9, 12, 40, 7]])


@pytest.fixture(scope="module")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    tiny_hf_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def _logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS)


# --- what loads -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "n_layers", "d_model"), [("pocket", 8, 256), ("pocket-mini", 4, 128)])
def test_pocket(name: str, n_layers: int, d_model: int) -> None:
    model = load_model(name, device="cpu")
    assert (len(model.blocks), model.cfg.d_model, model.cfg.n_ctx) == (n_layers, d_model, 128)
    assert (model.cfg.model_name, model.cfg.dtype, model.training) == (name, torch.float32, False)
    tokens = model.to_tokens("It was a dark night.")
    with torch.no_grad():
        logits, cache = model.run_with_cache(tokens)
    assert logits.shape == (1, tokens.shape[1], 4096)
    assert cache[f"blocks.{n_layers - 1}.hook_resid_post"].shape == (1, tokens.shape[1], d_model)


def test_loading_keeps_the_random_state_and_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    load_model("pocket-mini")
    assert torch.equal(torch.rand(3), expected)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("as_path", [True, False])
def test_folder(llama_folder: Path, as_path: bool, capfd: pytest.CaptureFixture[str]) -> None:
    model = load_model(llama_folder if as_path else str(llama_folder), device="cpu")
    torch.testing.assert_close(_logits(model), tiny_hf_model("llama")(TOKENS).logits.detach())
    assert model.to_tokens("ab").tolist() == [tiny_tokenizer()("ab")["input_ids"]]
    assert "it/s" not in capfd.readouterr().err


def test_loaded_model_with_its_tokenizer() -> None:
    hf_model, tokenizer = tiny_hf_model("gpt2"), tiny_tokenizer()
    expected = hf_model(TOKENS).logits.detach()
    hf_model.train()
    model = load_model(hf_model, tokenizer=tokenizer)
    torch.testing.assert_close(_logits(model), expected)
    assert not model.training
    assert model.to_tokens("ab").tolist() == [tokenizer("ab")["input_ids"]]
    assert (model.cfg.device, model.cfg.dtype) == ("cpu", torch.float32)


def test_the_callers_tokenizer_and_configuration_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    # TransformerLens loads a tokenizer that does not say add_bos_token again, by its name, and sets tokens on it.
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the tokenizer was loaded again")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", refuse)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer()._tokenizer, bos_token="<bos>")
    settings = dict(tokenizer.init_kwargs)
    hf_model = tiny_hf_model("gpt2")
    hf_model.config.architectures = None
    model = load_model(hf_model, tokenizer=tokenizer)
    assert model.to_tokens("ab").tolist() == [tokenizer("ab")["input_ids"]]
    assert (tokenizer.pad_token, dict(tokenizer.init_kwargs)) == (None, settings)
    assert hf_model.config.architectures is None


def test_loaded_model_without_tokenizer_gives_caches() -> None:
    model = load_model(tiny_hf_model("llama"))
    assert model.tokenizer is None
    with torch.no_grad():
        _, cache = model.run_with_cache(TOKENS)
    assert cache["blocks.2.hook_resid_post"].shape == (1, 6, 32)
    assert cache["blocks.0.attn.hook_pattern"].shape == (1, 4, 6, 6)


def test_loaded_model_is_cast_only_when_asked() -> None:
    assert load_model(tiny_hf_model("llama", torch.float64)).cfg.dtype == torch.float64
    model = load_model(tiny_hf_model("llama", torch.float64), dtype="float32")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.cfg.dtype == torch.float32


def test_casting_keeps_rotary_frequencies() -> None:
    model = load_model(tiny_hf_model("llama"), dtype="bfloat16")
    buffers = {name: b.dtype for name, b in model.original_model.named_buffers() if "inv_freq" in name}
    assert buffers
    assert set(buffers.values()) == {torch.float32}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", torch.float64])
def test_dtypes(dtype: Any) -> None:
    model = load_model("pocket-mini", dtype=dtype)
    assert {p.dtype for p in model.parameters()} == {parse_dtype(dtype)} == {model.cfg.dtype}
    assert _logits(model).isfinite().all()


def test_parse() -> None:
    assert (parse_dtype(None), parse_device(None)) == (None, None)
    assert parse_dtype("torch.bfloat16") == torch.bfloat16
    assert parse_device("cpu") == parse_device(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.gpu
def test_gpu_is_the_default_and_cpu_is_kept() -> None:
    assert load_model("pocket-mini").cfg.device.startswith("cuda")
    assert load_model("pocket-mini", device="cpu").cfg.device == "cpu"
    assert load_model(tiny_hf_model("gpt2")).cfg.device == "cpu"
    assert load_model(tiny_hf_model("gpt2"), device="cuda").cfg.device.startswith("cuda")


# --- what does not, and the words it says -----------------------------------------------------------------------------


def _config(folder: Path, **values: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize("dtype", ["int8", "float", torch.int64])
def test_unknown_dtype(dtype: Any) -> None:
    with pytest.raises(
        BasinsError, match=r"dtype='.*' is not an option\. Possible: 'float32', 'float16', 'bfloat16', 'float64'"
    ):
        load_model("pocket", dtype=dtype)


@pytest.mark.parametrize("device", ["gpu", "meta", "cuda:99", "cpu:x"])
def test_impossible_device(device: str) -> None:
    with pytest.raises(BasinsError, match=rf"device='{device}' cannot be used on this machine\. Possible: 'cpu'"):
        load_model("pocket", device=device)


def test_source_of_another_type() -> None:
    with pytest.raises(
        BasinsError, match=r"source is of type int\. Possible: a Hugging Face hub id such as \"gpt2\", "
    ):
        load_model(3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(BasinsError, match=r"source is a Linear, not a transformers model\. Possible: "):
        load_model(torch.nn.Linear(2, 2))  # pyright: ignore[reportArgumentType]
    with pytest.raises(BasinsError, match=r"source is empty\. Possible: "):
        load_model(" ")


def test_source_that_is_wrapped_already(tiny: Callable[..., Any]) -> None:
    with pytest.raises(
        BasinsError, match=r"source is a TransformerBridge, which is a TransformerLens model already: use"
    ):
        load_model(tiny("gpt2"))


@pytest.mark.parametrize("source", ["./nowhere", "/nowhere/at/all", "~/nowhere", "a/b/c", Path("nowhere")])
def test_path_that_does_not_exist(source: Any) -> None:
    with pytest.raises(
        BasinsError, match=r"The path .*(nowhere|a/b/c).* does not exist \(looked from /.*\)\. Possible: "
    ):
        load_model(source)


def test_file_that_is_not_gguf(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(
        BasinsError, match=r"safetensors is a file, and the only model files are \.gguf\. Is it part of a "
    ):
        load_model(tmp_path / "model.safetensors")


def test_folder_without_config(tmp_path: Path) -> None:
    message = r"The folder .* holds no config\.json, so it is not a Hugging Face model\. It holds: "
    with pytest.raises(BasinsError, match=message + r"nothing\. Is it the folder that save_pretrained wrote\?"):
        load_model(tmp_path)
    (tmp_path / "a.gguf").touch()
    with pytest.raises(BasinsError, match=message + r"a\.gguf\. Did you mean .*a\.gguf\?"):
        load_model(tmp_path)


def test_folder_with_empty_config(tmp_path: Path) -> None:
    with pytest.raises(BasinsError, match=r"has no config\.json that names a model type, so it is not a model in the "):
        load_model(_config(tmp_path))


def test_folder_without_weights(tmp_path: Path) -> None:
    tiny_hf_model("llama").config.save_pretrained(tmp_path)
    with pytest.raises(BasinsError, match=r"has a config\.json but no weights \(.*\) Is the download complete\?"):
        load_model(tmp_path)


def test_folder_with_damaged_weights(tmp_path: Path) -> None:
    tiny_hf_model("llama").save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(BasinsError, match=r"ends too early or is damaged \(.*\)\. Is the download complete\?"):
        load_model(tmp_path)


def test_folder_without_tokenizer(tmp_path: Path) -> None:
    tiny_hf_model("llama").save_pretrained(tmp_path)
    with pytest.raises(BasinsError, match=r"holds no tokenizer that can be loaded\. Pass one: basins\.load_model\("):
        load_model(tmp_path)
    assert load_model(tmp_path, tokenizer=tiny_tokenizer()).to_tokens("ab").shape == (1, 3)


def test_encoder_decoder(tmp_path: Path) -> None:
    config = transformers.T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=16)
    message = (
        r" is an encoder-decoder \(T5ForConditionalGeneration\): it has two residual streams .* Possible: decoder-only"
    )
    with pytest.raises(BasinsError, match="T5ForConditionalGeneration" + message):
        load_model(transformers.T5ForConditionalGeneration(config))
    config.architectures = ["T5ForConditionalGeneration"]
    config.save_pretrained(tmp_path)
    with pytest.raises(BasinsError, match=tmp_path.name + message):
        load_model(tmp_path)


def test_encoder(tmp_path: Path) -> None:
    transformers.BertConfig(architectures=["BertForMaskedLM"]).save_pretrained(tmp_path)
    with pytest.raises(BasinsError, match=r"is an encoder \(BertForMaskedLM\): its tokens see what comes after them"):
        load_model(tmp_path)


def test_model_of_images(tmp_path: Path) -> None:
    transformers.ViTConfig(architectures=["ViTForImageClassification"]).save_pretrained(tmp_path)
    with pytest.raises(
        BasinsError, match=r"\(ViTForImageClassification\) is not a language model\. Possible: decoder-only"
    ):
        load_model(tmp_path)


def test_loaded_model_without_language_model_head() -> None:
    with pytest.raises(
        BasinsError, match=r"\(LlamaModel\) is not a language model\. .* what AutoModelForCausalLM loads\."
    ):
        load_model(tiny_hf_model("llama").model)


def test_subclass_of_a_language_model() -> None:
    class Mine(transformers.GPT2LMHeadModel):
        pass

    hf_model = tiny_hf_model("gpt2")
    hf_model.__class__ = Mine
    torch.testing.assert_close(_logits(load_model(hf_model)), hf_model(TOKENS).logits)


def test_architecture_without_adapter(tmp_path: Path) -> None:
    transformers.CTRLConfig(architectures=["CTRLLMHeadModel"]).save_pretrained(tmp_path)
    message = r"this version of TransformerLens has no adapter for the architecture \(CTRLLMHeadModel\)\. Possible: "
    with pytest.raises(BasinsError, match=message):
        load_model(tmp_path)


def test_architecture_unknown_to_transformers(tmp_path: Path) -> None:
    folder = _config(tmp_path, model_type="mine", architectures=["MineForCausalLM"])
    with pytest.raises(BasinsError, match=r"model type `mine` .* pip install --upgrade transformers may help\."):
        load_model(folder)


def test_remote_code_is_never_run(tmp_path: Path) -> None:
    auto_map = {"AutoConfig": "mine.MineConfig", "AutoModelForCausalLM": "mine.Mine"}
    folder = _config(tmp_path, model_type="mine", architectures=["Mine"], auto_map=auto_map)
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(
        BasinsError, match=r"needs Python code from its own repository \(trust_remote_code\), and basins "
    ):
        load_model(folder)
    assert not (tmp_path / "ran").exists()


def test_hub_while_offline() -> None:
    message = (
        r"owner/model is not in the local Hugging Face cache, and HF_HUB_OFFLINE forbids downloading it\. Unset "
        r"HF_HUB_OFFLINE, .* Possible without the hub: a local Hugging Face folder, a \.gguf file, .* \"pocket\""
    )
    with pytest.raises(BasinsError, match=message):
        load_model("owner/model")


@pytest.mark.parametrize(
    ("cause", "text", "message"),
    [
        (
            "LocalEntryNotFoundError",
            "We couldn't connect to the hub to load the files",
            r"is not in the local Hugging Face cache, and the hub could not be reached\. Is this machine connected",
        ),
        (
            "GatedRepoError",
            "You are trying to access a gated repo.",
            r"is a gated repository: .* Accept them on the model's page on the hub, then log in with `hf auth login`",
        ),
        (
            "RepositoryNotFoundError",
            "owner/model is not a local folder and is not a valid model identifier",
            r"'owner/model' is neither a folder here nor a model on the Hugging Face hub\. Is it spelt right",
        ),
        (
            "EntryNotFoundError",
            "owner/model does not appear to have a file named config.json.",
            r"has no config\.json that names a model type, .* If it holds \.gguf files, download one and pass",
        ),
        ("HfHubHTTPError", "Server error 500", r"owner/model could not be loaded: OSError: Server error 500"),
    ],
)
def test_hub_failures(cause: str, text: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exceptions that transformers and the hub client raise, as recorded against a local server playing the hub."""
    kind: type[BaseException] = getattr(huggingface_hub.errors, cause)
    error = kind.__new__(kind, text)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(text) from error

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", fail)
    with pytest.raises(BasinsError, match=message):
        load_model("owner/model")


def test_a_name_that_no_repository_can_have() -> None:
    with pytest.raises(BasinsError, match=r"'a b c' is neither a folder here nor a model on the Hugging Face hub"):
        load_model("a b c")


def test_a_failure_inside_transformer_lens_is_explained(monkeypatch):
    """TransformerLens 4.3 raises a bare RuntimeError for a Falcon with grouped queries, for one."""

    def fail(*args):
        raise RuntimeError("split_with_sizes expects split_sizes to sum exactly to 64")

    monkeypatch.setattr("basins.wrap.wrap_model", fail)
    with pytest.raises(BasinsError, match=r"could not be loaded: RuntimeError: split_with_sizes expects"):
        load_model(tiny_hf_model("gpt2"))
