"""Hand-made models whose blocks are known functions: what a score must be can be worked out on paper.

A token's embedding is the row of a table that the test writes, so a test chooses the states and the block. The three
routes call the same block in ways that make the self-check take packed replay, single blocks, or the whole model;
"key_mask" is a fourth, for pointwise blocks only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint

ROUTES = ("packed", "single_block", "full_model")


class Pointwise(nn.Module):
    """A block without attention: y = fn(x), for every position alone."""

    def __init__(self, fn: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        return self.fn(states)


class UniformAttention(nn.Module):
    """y = x + softmax(0) LN(x) W_V W_O + b: attention with W_Q = W_K = 0, even over the allowed positions."""

    def __init__(self, w_v: Tensor, w_o: Tensor, bias: Tensor, skip: bool = True) -> None:
        super().__init__()
        self.w_v, self.w_o, self.bias = (nn.Parameter(weight.clone()) for weight in (w_v, w_o, bias))
        self.skip = skip

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        normed = layer_norm(states)
        query, key = torch.zeros_like(normed), torch.zeros_like(normed)
        scores = (query @ key.transpose(-1, -2)).masked_fill(~mask[:, 0], float("-inf"))
        written = scores.softmax(-1) @ normed @ self.w_v @ self.w_o + self.bias
        return states + written if self.skip else written


def layer_norm(states: Tensor) -> Tensor:
    """Without weights and without epsilon."""
    centred = states - states.mean(-1, keepdim=True)
    return centred / centred.square().mean(-1, keepdim=True).sqrt()


def rms_norm(states: Tensor) -> Tensor:
    return states / states.square().mean(-1, keepdim=True).sqrt()


class Block(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.hook_resid_pre, self.hook_resid_post = HookPoint(), HookPoint()
        self.inner = inner

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, own_mask: Any = None, table: Any = None
    ) -> Tensor:
        mask = attention_mask if attention_mask is not None else own_mask[0]
        return self.hook_resid_post(self.inner(self.hook_resid_pre(hidden_states), mask))


class BlockModel(HookedRootModule):
    """Embedding -> blocks. `inners`: a module per block, called with states and a boolean mask, "batch 1 pos pos"."""

    def __init__(self, embedding: Tensor, inners: Sequence[nn.Module], route: str = "packed") -> None:
        super().__init__()
        d_vocab, d_model = embedding.shape
        self.cfg = SimpleNamespace(
            d_model=d_model,
            n_layers=len(inners),
            n_heads=1,
            n_ctx=1024,
            d_vocab=d_vocab,
            device="cpu",
            dtype=embedding.dtype,
            model_name=f"hand-made ({route})",
        )
        self.embed = nn.Embedding(d_vocab, d_model, dtype=embedding.dtype)
        self.embed.weight.data.copy_(embedding)
        self.blocks = nn.ModuleList(Block(inner) for inner in inners)
        self.route, self.tokenizer = route, None
        if route == "packed":
            self.adapter = "hand-made"
        self.setup()
        self.eval()

    def forward(
        self,
        tokens: Tensor,
        return_type: str | None = None,
        stop_at_layer: int | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        batch, pos = tokens.shape
        real = torch.ones(batch, pos) if attention_mask is None else attention_mask
        mask = torch.ones(pos, pos, dtype=torch.bool).tril()[None, None] & real.bool()[:, None, None, :]
        # A padding row attends to itself, so that it stays finite.
        mask = mask | torch.eye(pos, dtype=torch.bool)
        states = self.embed(tokens)
        for block in self.blocks[:stop_at_layer]:
            if self.route == "packed":
                states = block(states, attention_mask=mask)
            elif self.route == "key_mask":
                # As HookedTransformer does; but these blocks have no hook point for attention scores.
                states = block(states, attention_mask=real)
            elif self.route == "single_block":
                # Not called attention_mask, so its role is unknown to a packed call.
                states = block(states, own_mask=[mask])
            else:
                # Whose first axis is not the batch: nothing can rebuild that.
                states = block(states, own_mask=[mask], table=torch.zeros(batch + pos + 1, 2))
        return states


def model_of(states: Tensor, *inners: nn.Module | Callable[[Tensor], Tensor], route: str = "packed") -> BlockModel:
    """A model in which token i has the state `states[i]` at layer 0. A plain function makes a pointwise block."""
    modules = [inner if isinstance(inner, nn.Module) else Pointwise(inner) for inner in inners]
    return BlockModel(states, modules, route)
