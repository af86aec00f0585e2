"""A random Gemma 3 of two blocks as a .gguf file, in the form that llama.cpp writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

D_MODEL, D_MLP, N_HEADS, N_KEY_VALUE_HEADS, D_HEAD, N_LAYERS, N_CTX = 32, 48, 4, 2, 8, 2, 64
SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
LETTERS = ["▁", *"abcdefghijklmnopqrstuvwxyz"]


def write_gemma3(path: Path) -> Path:
    import gguf

    rng = np.random.default_rng(0)
    tokens = [*SPECIAL, *BYTES, *LETTERS]
    writer = gguf.GGUFWriter(path, "gemma3")
    writer.add_name("tiny gemma 3")
    writer.add_context_length(N_CTX)
    writer.add_embedding_length(D_MODEL)
    writer.add_block_count(N_LAYERS)
    writer.add_feed_forward_length(D_MLP)
    writer.add_head_count(N_HEADS)
    writer.add_head_count_kv(N_KEY_VALUE_HEADS)
    writer.add_key_length(D_HEAD)
    writer.add_value_length(D_HEAD)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_sliding_window(8)
    writer.add_rope_freq_base(1e6)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * (len(SPECIAL) + 256) + [-float(i) for i in range(len(LETTERS))])
    writer.add_token_types([3, 3, 3, 2] + [6] * 256 + [1] * len(LETTERS))  # control, unknown, byte, normal
    writer.add_pad_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_unk_token_id(3)
    writer.add_add_bos_token(True)

    def weight(*shape: int) -> np.ndarray:
        return rng.normal(0, 0.2, shape).astype(np.float32) + np.float32(len(shape) == 1)

    writer.add_tensor("token_embd.weight", weight(len(tokens), D_MODEL))
    writer.add_tensor("output_norm.weight", weight(D_MODEL))
    shapes = {
        "attn_norm": (D_MODEL,),
        "attn_q": (N_HEADS * D_HEAD, D_MODEL),
        "attn_k": (N_KEY_VALUE_HEADS * D_HEAD, D_MODEL),
        "attn_v": (N_KEY_VALUE_HEADS * D_HEAD, D_MODEL),
        "attn_output": (D_MODEL, N_HEADS * D_HEAD),
        "attn_q_norm": (D_HEAD,),
        "attn_k_norm": (D_HEAD,),
        "post_attention_norm": (D_MODEL,),
        "ffn_norm": (D_MODEL,),
        "ffn_gate": (D_MLP, D_MODEL),
        "ffn_up": (D_MLP, D_MODEL),
        "ffn_down": (D_MODEL, D_MLP),
        "post_ffw_norm": (D_MODEL,),
    }
    for layer in range(N_LAYERS):
        for name, shape in shapes.items():
            writer.add_tensor(f"blk.{layer}.{name}.weight", weight(*shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
