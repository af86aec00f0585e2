"""Shapes read from a configuration are those of the model that is then loaded."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import transformers
from tiny_gguf import write_gemma3
from tiny_models import ARCHITECTURES, D_MLP, D_MODEL, N_CTX, N_HEADS, N_LAYERS, tiny_hf_model

import basins
from basins import pocket, shapes
from basins.errors import BasinsError
from basins.shapes import read_shape, shape_of, shape_of_config

# There the bridge keeps copies of query, key and value beside the matrix they come from.
COPIES = {"bloom", "falcon", "gpt_neox"}
TRANSFORMERS = [name for name in ARCHITECTURES if name != "mamba"]


def without(shape, *names):
    return {name: value for name, value in dataclasses.asdict(shape).items() if name not in names}


def matrices(block):
    return sum(p.numel() for p in block.parameters() if p.ndim == 2)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_configuration_says_what_the_loaded_model_says(name, tiny):
    hf_model = tiny_hf_model(name)
    read = shape_of_config(hf_model.config, name)
    assert read.n_parameters == sum(parameter.numel() for parameter in tiny_hf_model(name).parameters())
    loaded = shape_of(tiny(name))
    assert without(read, "name", "buffer_bytes") == without(loaded, "name", "buffer_bytes")
    assert bool(read.n_copied) == (name in COPIES)
    assert read.n_layers == N_LAYERS
    assert (read.d_model, read.n_heads) == (D_MODEL, N_HEADS)


@pytest.mark.parametrize(
    ("name", "n_kv", "d_mlp", "gated"), [("gpt2", 4, 4 * D_MODEL, False), ("llama", 2, D_MLP, True)]
)
def test_sizes_of_two_architectures(name, n_kv, d_mlp, gated):
    shape = shape_of_config(tiny_hf_model(name).config, name)
    assert (shape.n_kv_heads, shape.d_mlp, shape.gated, shape.n_ctx) == (n_kv, d_mlp, gated, N_CTX)
    attention = 2 * D_MODEL * 8 * (N_HEADS + n_kv)
    assert shape.attention_weights == attention
    assert shape.block_weights == attention + (3 if gated else 2) * D_MODEL * d_mlp


def test_parameter_bytes_are_exactly_those_of_the_model(pocket_mini):
    stored = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in pocket_mini.parameters()}
    shape = read_shape("pocket-mini")
    assert shape.n_parameters * shape.dtype_bytes == sum(stored.values())
    assert shape.weight_bytes == shape.n_parameters * 4 + shape.buffer_bytes


def test_half_precision_halves_the_bytes(tiny):
    assert shape_of(tiny("gpt2", torch.bfloat16)).dtype_bytes == 2
    assert read_shape("pocket", "bfloat16").weight_bytes * 2 == read_shape("pocket").weight_bytes


def test_shipped_models_are_not_loaded(monkeypatch):
    monkeypatch.setattr(pocket, "load", None)
    shape = read_shape("pocket")
    assert (shape.n_layers, shape.d_model, shape.n_heads, shape.n_ctx) == (8, 256, 8, 128)


def test_a_folder_needs_no_weights(tmp_path):
    tiny_hf_model("llama").config.save_pretrained(tmp_path)
    (tmp_path / "config.json").exists()
    shape = read_shape(tmp_path)
    assert without(shape, "name") == without(shape_of_config(tiny_hf_model("llama").config, ""), "name")


def test_a_gguf_file_is_read_by_its_header(tmp_path, monkeypatch):
    path = write_gemma3(tmp_path / "tiny.gguf")
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", None)
    shape = read_shape(path)
    assert (shape.name, shape.n_layers, shape.d_model, shape.n_kv_heads, shape.d_mlp) == ("tiny", 2, 32, 2, 48)
    monkeypatch.undo()
    assert shape.n_parameters == shape_of(basins.load_model(path)).n_parameters


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("./nowhere", "does not exist"),
        ("nobody/nothing", "HF_HUB_OFFLINE.*local Hugging Face folder"),
        (3, "source is of type int"),
        ("nothing.gguf", "no file nothing.gguf"),
    ],
)
def test_what_cannot_be_read(source, message):
    with pytest.raises(BasinsError, match=f"(?s){message}"):
        read_shape(source)


def test_models_without_attention_are_refused():
    with pytest.raises(BasinsError, match="no attention heads"):
        shape_of_config(tiny_hf_model("mamba").config, "mamba")


def test_experts_count_as_a_token_uses_them():
    shape = shape_of_config(tiny_hf_model("mixtral").config, "mixtral")
    router, expert = 4 * D_MODEL, 3 * D_MODEL * D_MLP
    assert shape.block_weights == shape.attention_weights + router + 2 * expert


def test_a_shape_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        shapes.read_shape("pocket").n_layers = 3  # type: ignore[misc]
