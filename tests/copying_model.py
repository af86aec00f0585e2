"""A GPT-2 of one block whose only head copies from one place, so that which token matters is known."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from tiny_models import N_CTX, tiny_tokenizer

D_VOCAB = 12
D_MODEL = 32
# Where things stand in the stream: the token, whether the position is the source, what the head copied.
TOKEN, COPIED = slice(0, D_VOCAB), slice(16, 16 + D_VOCAB)
SOURCE, NOT_SOURCE = 13, 14
SHARPNESS, COPY_GAIN, READ_GAIN = 12.0, 3.0, 10.0


def copying_model(source: int | None = None, cause: int | None = None) -> Any:
    """Attends to position `source`, or wherever token `cause` stands, and predicts the copied token's successor.

    The successor of token t is t + 1, modulo the vocabulary. Every state has two ones and otherwise zeros, so that the
    first norm treats all alike. Queries are constant; keys read one coordinate; values copy the token; the MLP is zero.
    The norms' epsilon is large against the stream's variance, so that they are close to linear: behind a norm that is
    scale-free, the gradient of any state is orthogonal to it and `gradient_x_input` is 0 whatever the token causes.
    """
    from transformer_lens.model_bridge import TransformerBridge

    config = transformers.GPT2Config(
        vocab_size=D_VOCAB,
        n_positions=N_CTX,
        n_embd=D_MODEL,
        n_layer=1,
        n_head=1,
        layer_norm_epsilon=1.0,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    hf_model = transformers.GPT2LMHeadModel._from_config(config, attn_implementation="eager").eval()
    hf_model.config.architectures = ["GPT2LMHeadModel"]
    with torch.no_grad():
        for name, weight in hf_model.named_parameters():
            weight.fill_(1.0 if "ln_" in name and name.endswith("weight") else 0.0)
        parts, block = hf_model.transformer, hf_model.transformer.h[0]
        parts.wte.weight[:, TOKEN] = torch.eye(D_VOCAB)
        parts.wpe.weight[:, NOT_SOURCE] = 1
        if source is not None:
            parts.wpe.weight[source, [SOURCE, NOT_SOURCE]] = torch.tensor([1.0, 0.0])
        block.attn.c_attn.bias[0] = SHARPNESS * D_MODEL**0.5
        block.attn.c_attn.weight[SOURCE if source is not None else cause, D_MODEL] = 1
        block.attn.c_attn.weight[TOKEN, 2 * D_MODEL : 2 * D_MODEL + D_VOCAB] = torch.eye(D_VOCAB)
        block.attn.c_proj.weight[:D_VOCAB, COPIED] = COPY_GAIN * torch.eye(D_VOCAB)
        hf_model.lm_head.weight[:, COPIED] = READ_GAIN * torch.eye(D_VOCAB).roll(1, 0)
    return TransformerBridge.boot_transformers(
        "made/copying", hf_model=hf_model, dtype=torch.float32, device="cpu", tokenizer=tiny_tokenizer()
    )
