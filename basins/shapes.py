"""How large a model is, known without its weights: from its configuration alone, or from one that is loaded.

A configuration is made into a model on PyTorch's "meta" device, whose tensors have shapes and no numbers. So parameters
are counted as the architecture has them, tied ones once.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from basins import gguf_files, pocket
from basins.errors import BasinsError, MissingExtra
from basins.lens import all_modules, block_dtype, model_name, n_layers
from basins.load_errors import check_decoder_only, explained
from basins.models import find_folder, hub_id, parse_dtype
from basins.wrap import has_bridge

# Modules of an MLP whose inner layer is multiplied by a gate.
GATED = ("gate_proj", "gate_up_proj", "experts")
# A bridge takes this matrix apart into query, key and value, and keeps both (GPT-NeoX, BLOOM, Falcon).
COPIED = "query_key_value."
DEPTHS = ("num_hidden_layers", "n_layer", "num_layers")


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder-only model. `block_weights`: numbers in one block's matrices that a token is multiplied by.

    `n_parameters` counts tied and shared ones once; `n_copied` are those that a TransformerLens model keeps a second
    time; `buffer_bytes` are constants such as rotary frequencies. `block`: the class of a block in transformers, or ""
    where it is not known.
    """

    name: str
    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_mlp: int
    gated: bool
    n_parameters: int
    block_weights: int
    dtype_bytes: int
    n_copied: int = 0
    buffer_bytes: int = 0
    block: str = ""
    n_ctx: int | None = None

    @property
    def weight_bytes(self) -> int:
        """What the loaded model's parameters and buffers take."""
        return (self.n_parameters + self.n_copied) * self.dtype_bytes + self.buffer_bytes

    @property
    def attention_weights(self) -> int:
        """Numbers in a block's query, key and value matrices, and in its output matrix."""
        return self.d_model * self.d_head * 2 * (self.n_heads + self.n_kv_heads)


def shape_of(model: Any) -> ModelShape:
    """Of a loaded TransformerLens model."""
    cfg, name = model.cfg, model_name(model)
    stored = {t.untyped_storage().data_ptr(): t for t in _tensors(model, buffers=False) if t.numel()}
    # Query, key and value of some architectures are views of one matrix: storage is counted, not names.
    n_stored = sum(t.untyped_storage().nbytes() // t.element_size() for t in stored.values())
    buffers = {t.untyped_storage().data_ptr(): t for t in _tensors(model, buffers=True) if t.numel()}
    buffer_bytes = sum(t.untyped_storage().nbytes() for place, t in buffers.items() if place not in stored)
    dtype_bytes = torch.finfo(block_dtype(model, 0)).bits // 8
    wrapped = getattr(model, "original_model", None)
    if hasattr(type(wrapped), "_from_config"):
        built = shape_of_config(copy.deepcopy(wrapped.config), name, dtype_bytes, type(wrapped))  # type: ignore[union-attr]
        return replace(built, n_copied=n_stored - built.n_parameters, buffer_bytes=buffer_bytes)
    n_heads, d_model, d_head = int(cfg.n_heads), int(cfg.d_model), int(cfg.d_head)
    return ModelShape(
        name=name,
        n_layers=n_layers(model),
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=int(getattr(cfg, "n_key_value_heads", None) or n_heads),
        d_head=d_head,
        d_mlp=int(cfg.d_mlp or 0),
        gated=bool(getattr(cfg, "gated_mlp", False)),
        n_parameters=n_stored,
        block_weights=sum(p.numel() for p in model.blocks[0].parameters() if p.ndim > 1),
        dtype_bytes=dtype_bytes,
        buffer_bytes=buffer_bytes,
        n_ctx=getattr(cfg, "n_ctx", None),
    )


def read_shape(source: str | Path, dtype: str | torch.dtype | None = None) -> ModelShape:
    """Of a model that `basins.load_model(source, dtype=dtype)` would load; no weights are read.

    `source`: "pocket" or "pocket-mini", a local Hugging Face folder (its config.json), a .gguf file (its header), or a
    hub id whose config.json is in the local cache or can be fetched. Raises BasinsError for anything else.
    """
    dtype_bytes = torch.finfo(parse_dtype(dtype) or torch.float32).bits // 8
    if not isinstance(source, str | Path):
        raise BasinsError(
            f"source is of type {type(source).__name__}. A shape is read for a name, a folder or a .gguf file; of a "
            "loaded model it is basins.shapes.shape_of(model)."
        )
    if source in pocket.NAMES:
        return shape_of_config(pocket.config(str(source)), str(source), dtype_bytes)
    if str(source).lower().endswith(".gguf"):
        path = Path(source).expanduser()
        gguf_files.check_file(path)
        if importlib.util.find_spec("gguf") is None:
            raise MissingExtra("gguf", "gguf")
        return shape_of_config(gguf_files.read_config(path), path.stem, dtype_bytes)
    from transformers import AutoConfig

    name = find_folder(source) or hub_id(source)
    with explained(name):
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        check_decoder_only(config, name)
    return shape_of_config(config, name, dtype_bytes)


def shape_of_config(config: Any, name: str, dtype_bytes: int = 4, model_class: Any = None) -> ModelShape:
    """Of the language model that transformers builds for a configuration: of `model_class`, or its own for that."""
    from transformers import AutoModelForCausalLM

    with explained(name), torch.device("meta"):
        empty = (model_class._from_config if model_class else AutoModelForCausalLM.from_config)(config)
    n = _get(config.get_text_config(), *DEPTHS)
    if not n and any(hasattr(config.get_text_config(), depth) for depth in DEPTHS):
        raise BasinsError(f"{name} has num_hidden_layers={n}: a model without blocks has nothing to score.")
    lists = [module for module in empty.modules() if isinstance(module, nn.ModuleList) and len(module) == n]
    if not lists:
        raise BasinsError(
            f"{name} ({type(empty).__name__}) has no list of {n} blocks, so its costs are not known. Load it with "
            "basins.load_model and score a few tokens to see what it takes."
        )
    block = lists[0][0]
    config = config.get_text_config()
    d_model, n_heads = _get(config, "hidden_size", "n_embd"), _get(config, "num_attention_heads", "n_head", "num_heads")
    if not d_model or not n_heads:
        raise BasinsError(f"{name} ({config.model_type}) has no attention heads: basins plans transformers only.")
    n_kv = _get(config, "num_key_value_heads", "num_kv_heads") or n_heads
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        n_kv = 1
    experts = _get(config, "num_local_experts", "num_experts")
    used = (_get(config, "num_experts_per_tok") or experts) / experts if experts else 1.0
    matrices = [parameter for parameter in block.parameters() if parameter.ndim > 1]
    return ModelShape(
        name=name,
        n_layers=n,
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=n_kv,
        d_head=_get(config, "head_dim") or d_model // n_heads,
        d_mlp=_get(config, "intermediate_size", "ffn_hidden_size", "ffn_dim", "n_inner") or 4 * d_model,
        gated=any(part.endswith(GATED) for part, _ in block.named_modules()),
        n_parameters=sum(parameter.numel() for parameter in empty.parameters()),
        # Experts are stacked in tensors of three axes, and a token goes through some of them.
        block_weights=int(sum(matrix.numel() * (used if matrix.ndim == 3 else 1) for matrix in matrices)),
        dtype_bytes=dtype_bytes,
        n_copied=n * sum(p.numel() for part, p in block.named_parameters() if COPIED in part) if has_bridge() else 0,
        buffer_bytes=sum(buffer.numel() * buffer.element_size() for buffer in empty.buffers()),
        block=type(block).__name__,
        n_ctx=_get(config, "max_position_embeddings", "n_positions") or None,
    )


def _get(config: Any, *names: str) -> int:
    """The first of these names that the configuration has; 0 where it has none."""
    for name in names:
        try:
            value = getattr(config, name, None)
        except RuntimeError:  # transformers' for what differs from layer to layer
            value = max(getattr(layer, name) for layer in config.per_layer_config)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return 0


def _tensors(model: Any, buffers: bool) -> Iterable[Tensor]:
    for module in all_modules(model):
        yield from (module.buffers if buffers else module.parameters)(recurse=False)
