"""The parts of a block whose shape is known: its norms, projections and MLP, as the wrapped model has them.

A block is known by the class of the Hugging Face layer that the bridge wraps. What is read here is what the bridge
itself calls; that the parts are put together as the block does is for `selfcheck.py` to find out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from basins.block_calls import CannotRebuild

PRE_NORM = ("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer", "GemmaDecoderLayer")
SANDWICH = ("Gemma2DecoderLayer", "Gemma3DecoderLayer")
KNOWN = ("GPT2Block", "GPTNeoXLayer", *PRE_NORM, *SANDWICH)
# Where TransformerLens and transformers keep the hooks of their own bookkeeping; they change nothing.
BOOKKEEPING = ("transformer_lens.model_bridge.", "transformers.utils.output_capturing")

Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class BlockParts:
    """y = x + after_attention(out(attention(before_attention(x)))), then the MLP likewise.

    In a parallel block the MLP reads x itself. `softmax` None: in the scores' own dtype.
    """

    before_attention: Map
    query: Map
    key: Map
    value: Map
    out: Map
    before_mlp: Map
    mlp: Map
    d_head: int
    scaling: float
    query_norm: Map | None = None
    key_norm: Map | None = None
    after_attention: Map | None = None
    after_mlp: Map | None = None
    parallel: bool = False
    softcap: float | None = None
    softmax: torch.dtype | None = None


def has_known_parts(model: Any, layer: int) -> bool:
    return type(_bare(model.blocks[layer])).__name__ in KNOWN


def block_parts(model: Any, layer: int) -> BlockParts:
    """Raises CannotRebuild for a block of unknown shape, and for one that anything is hooked to."""
    block = _bare(model.blocks[layer])
    name = type(block).__name__
    if not has_known_parts(model, layer):
        raise CannotRebuild(f"{name} is not among the blocks whose parts are known")
    if is_hooked(model.blocks[layer]):
        raise CannotRebuild("the block has hooks, which must apply to the re-run too")
    if name == "GPT2Block":
        return _gpt2(block)
    if name == "GPTNeoXLayer":
        return _gpt_neox(block)
    return _llama_like(block, name in SANDWICH)


def is_hooked(block: nn.Module) -> bool:
    """Whether any hook of the user stands inside the block."""
    for module in block.modules():
        if module._backward_hooks or module._backward_pre_hooks:
            return True
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values()):
            if not str(getattr(hook, "__module__", "")).startswith(BOOKKEEPING):
                return True
    return False


def _gpt2(block: Any) -> BlockParts:
    bridge, attention, mlp = block.attn, _bare(block.attn), _bare(block.mlp)
    return BlockParts(
        before_attention=_bare(block.ln_1),
        query=_bare(bridge.q),
        key=_bare(bridge.k),
        value=_bare(bridge.v),
        out=_bare(bridge.o),
        before_mlp=_bare(block.ln_2),
        mlp=_plain_mlp(mlp.c_fc, mlp.act, mlp.c_proj),
        d_head=attention.head_dim,
        scaling=attention.scaling,
    )


def _gpt_neox(block: Any) -> BlockParts:
    bridge, attention, mlp = block.attention, _bare(block.attention), _bare(block.mlp)
    return BlockParts(
        before_attention=_bare(block.input_layernorm),
        query=_bare(bridge.q),
        key=_bare(bridge.k),
        value=_bare(bridge.v),
        out=_bare(bridge.o),
        before_mlp=_bare(block.post_attention_layernorm),
        mlp=_plain_mlp(mlp.dense_h_to_4h, mlp.act, mlp.dense_4h_to_h),
        d_head=attention.head_size,
        scaling=attention.scaling,
        parallel=bool(block.use_parallel_residual),
    )


def _llama_like(block: Any, sandwich: bool) -> BlockParts:
    attention, mlp = _bare(block.self_attn), _bare(block.mlp)
    after = _bare(block.post_attention_layernorm)
    query_norm, key_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
    return BlockParts(
        before_attention=_bare(block.input_layernorm),
        query=_bare(attention.q_proj),
        key=_bare(attention.k_proj),
        value=_bare(attention.v_proj),
        out=_bare(attention.o_proj),
        before_mlp=_bare(block.pre_feedforward_layernorm) if sandwich else after,
        mlp=_gated_mlp(mlp.gate_proj, mlp.act_fn, mlp.up_proj, mlp.down_proj),
        d_head=attention.head_dim,
        scaling=attention.scaling,
        query_norm=None if query_norm is None else _bare(query_norm),
        key_norm=None if key_norm is None else _bare(key_norm),
        after_attention=after if sandwich else None,
        after_mlp=_bare(block.post_feedforward_layernorm) if sandwich else None,
        softcap=getattr(attention, "attn_logit_softcapping", None),
        softmax=torch.float32,
    )


def _plain_mlp(up: Any, activation: Any, down: Any) -> Map:
    up, activation, down = _bare(up), _fused(activation), _bare(down)
    return lambda states: down(activation(up(states)))


def _gated_mlp(gate: Any, activation: Any, up: Any, down: Any) -> Map:
    gate, activation, up, down = _bare(gate), _fused(activation), _bare(up), _bare(down)
    return lambda states: down(activation(gate(states)).mul_(up(states)))


def _fused(activation: Any) -> Map:
    """GPT-2's GELU, the tanh formula, is written in eight elementwise steps there; PyTorch has it in one."""
    if type(activation).__name__ in ("NewGELUActivation", "GELUTanh"):
        return lambda states: functional.gelu(states, approximate="tanh")
    return activation


def _bare(module: Any) -> Any:
    """The wrapped module of a bridge component."""
    inner = getattr(module, "original_component", None)
    return module if inner is None else inner
