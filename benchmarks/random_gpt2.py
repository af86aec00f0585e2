"""A model of GPT-2's shape without a download."""

from __future__ import annotations

from typing import Any

import torch
import transformers


def gpt2(n_layers: int, d_model: int, vocabulary: int) -> Any:
    """Random weights under which every part of a block matters: matrices that keep a vector's size."""
    config = transformers.GPT2Config(
        vocab_size=vocabulary, n_positions=1024, n_layer=n_layers, n_embd=d_model, n_head=max(1, d_model // 64)
    )
    config.architectures = ["GPT2LMHeadModel"]
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel._from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2:
                weight.normal_(0, 1 if "wte" in name or "wpe" in name else weight.shape[0] ** -0.5)
            else:
                weight.add_(0.1 * torch.randn_like(weight))
    return model
