"""Tiny random models of every supported architecture, built from a seed without any download.

Freshly initialised weights (std 0.02) make every block close to the identity, which would hide mistakes. Here each
block changes its input by an amount of the input's own size, norm weights differ from one and biases from zero.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import nn

D_VOCAB, D_MODEL, D_MLP, N_LAYERS, N_HEADS, N_CTX = 64, 32, 48, 3, 4, 64
SLIDING_WINDOW = 5
PAD, BOS, EOS, UNK = "<pad>", "<bos>", "<eos>", "<unk>"
CHARACTERS = " abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,;!?'\n"
_SPECIAL_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

_LLAMA_LIKE: dict[str, Any] = {
    "vocab_size": D_VOCAB,
    "hidden_size": D_MODEL,
    "intermediate_size": D_MLP,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": N_HEADS,
    "max_position_embeddings": N_CTX,
    **_SPECIAL_IDS,
}
_GPT2_LIKE: dict[str, Any] = {
    "vocab_size": D_VOCAB,
    "n_positions": N_CTX,
    "n_embd": D_MODEL,
    "n_layer": N_LAYERS,
    "n_head": N_HEADS,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
    **_SPECIAL_IDS,
}
_GROUPED: dict[str, Any] = {**_LLAMA_LIKE, "num_key_value_heads": 2}
_NO_DROPOUT: dict[str, float] = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attention_dropout": 0.0}

# name -> (Hugging Face model class, configuration class, configuration)
_MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", _GPT2_LIKE),
    "llama": ("LlamaForCausalLM", "LlamaConfig", _GROUPED),
    "gpt_neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", _LLAMA_LIKE),
    "gemma2": (
        "Gemma2ForCausalLM",
        "Gemma2Config",
        {**_GROUPED, "head_dim": 8, "sliding_window": SLIDING_WINDOW},
    ),
    "gemma3": (
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        {
            **_GROUPED,
            "head_dim": 8,
            "sliding_window": SLIDING_WINDOW,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", _GROUPED),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {**_GROUPED, "head_dim": 8}),
    "mistral": ("MistralForCausalLM", "MistralConfig", {**_GROUPED, "sliding_window": SLIDING_WINDOW}),
    "opt": (
        "OPTForCausalLM",
        "OPTConfig",
        {
            "vocab_size": D_VOCAB,
            "hidden_size": D_MODEL,
            "word_embed_proj_dim": D_MODEL,
            "ffn_dim": D_MLP,
            "num_hidden_layers": N_LAYERS,
            "num_attention_heads": N_HEADS,
            "max_position_embeddings": N_CTX,
            "dropout": 0.0,
            **_SPECIAL_IDS,
        },
    ),
    "gptj": ("GPTJForCausalLM", "GPTJConfig", {**_GPT2_LIKE, "rotary_dim": 4}),
    "phi": ("PhiForCausalLM", "PhiConfig", {**_GROUPED, **_NO_DROPOUT}),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", {**_GROUPED, **_NO_DROPOUT}),
    "olmo2": ("Olmo2ForCausalLM", "Olmo2Config", _GROUPED),
    "bloom": (
        "BloomForCausalLM",
        "BloomConfig",
        {
            "vocab_size": D_VOCAB,
            "hidden_size": D_MODEL,
            "n_layer": N_LAYERS,
            "n_head": N_HEADS,
            "hidden_dropout": 0.0,
            "attention_dropout": 0.0,
            **_SPECIAL_IDS,
        },
    ),
    "falcon": (
        "FalconForCausalLM",
        "FalconConfig",
        {
            "vocab_size": D_VOCAB,
            "hidden_size": D_MODEL,
            "num_hidden_layers": N_LAYERS,
            "num_attention_heads": N_HEADS,
            "alibi": True,
            "new_decoder_architecture": False,
            "multi_query": True,
            **_SPECIAL_IDS,
        },
    ),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", {**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "gpt_neo": (
        "GPTNeoForCausalLM",
        "GPTNeoConfig",
        {
            "vocab_size": D_VOCAB,
            "max_position_embeddings": N_CTX,
            "hidden_size": D_MODEL,
            "intermediate_size": D_MLP,
            "num_layers": N_LAYERS,
            "num_heads": N_HEADS,
            "window_size": SLIDING_WINDOW,
            "attention_types": [[["global", "local", "global"], 1]],
            "resid_dropout": 0.0,
            "embed_dropout": 0.0,
            "attention_dropout": 0.0,
            **_SPECIAL_IDS,
        },
    ),
    "mamba": (
        "MambaForCausalLM",
        "MambaConfig",
        {
            "vocab_size": D_VOCAB,
            "hidden_size": D_MODEL,
            "num_hidden_layers": N_LAYERS,
            "state_size": 4,
            **_SPECIAL_IDS,
        },
    ),
}

ARCHITECTURES: list[str] = list(_MODELS)
"""Every name that `tiny_model` knows."""

SLIDING: list[str] = ["gemma2", "gemma3", "mistral", "gpt_neo"]
"""Those with a window of `SLIDING_WINDOW` positions in at least one block."""


def tiny_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """One token a character, `<bos>` in front; the ids are those of the tiny models."""
    vocabulary = {token: i for i, token in enumerate([PAD, BOS, EOS, UNK, *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.Fuse()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, vocabulary[BOS])]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        # TransformerLens fetches a tokenizer again, by name, unless it already says that it prepends BOS.
        add_bos_token=True,
        name_or_path="tiny",
    )


def _randomise(model: nn.Module, generator: torch.Generator) -> None:
    """Weights with which attention, MLP and norms all matter: see the module docstring."""
    embedding_weights = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64).to(weight.dtype)
            if id(weight) in embedding_weights:
                weight.copy_(noise)
            elif weight.ndim < 2 or name.endswith("A_log"):
                weight.add_(0.2 * noise)
            else:
                weight.copy_(0.25 * noise)


def tiny_hf_model(name: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """The plain `transformers` model, in eval mode and with eager attention."""
    model_class, config_class, config = _MODELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # Eager from the start, as under TransformerLens: Falcon reads this when its layers are built.
        hf_model = getattr(transformers, model_class)._from_config(
            getattr(transformers, config_class)(**config), attn_implementation="eager"
        )
    hf_model.to(dtype).eval()
    _randomise(hf_model, torch.Generator().manual_seed(seed))
    hf_model.config.architectures = [model_class]
    return hf_model


@cache
def tiny_model(name: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """The model as a TransformerLens 4 bridge, built by the same public call as `basins.load_model`.

    Shared by all callers with the same arguments: tests must leave it as they found it (fixture `untouched`).
    """
    from transformer_lens.model_bridge import TransformerBridge

    return TransformerBridge.boot_transformers(
        f"tiny/{name}",
        hf_model=tiny_hf_model(name, dtype, seed),
        dtype=dtype,
        device="cpu",
        tokenizer=tiny_tokenizer(),
    )


def tiny_hooked(
    name: str, dtype: torch.dtype = torch.float32, seed: int = 0, state: dict[str, torch.Tensor] | None = None
) -> Any:
    """The same weights in a TransformerLens 2 or 3 `HookedTransformer`, with no weight processing.

    `name` is "gpt2" or "llama". `state` overrides the seeded weights with a Hugging Face state dict, so that two
    environments compare the same numbers whatever their random generators do.
    """
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained import weight_conversions

    hf_model = tiny_hf_model(name, dtype, seed)
    if state is not None:
        hf_model.load_state_dict(state)
    common: dict[str, Any] = {
        "n_layers": N_LAYERS,
        "d_model": D_MODEL,
        "n_heads": N_HEADS,
        "d_head": D_MODEL // N_HEADS,
        "n_ctx": N_CTX,
        "d_vocab": D_VOCAB,
        "model_name": f"tiny-{name}",
        "device": "cpu",
        "dtype": dtype,
    }
    if name == "gpt2":
        config = HookedTransformerConfig(
            **common,
            d_mlp=4 * D_MODEL,
            act_fn="gelu_new",
            normalization_type="LN",
            original_architecture="GPT2LMHeadModel",
        )
        weights = weight_conversions.convert_gpt2_weights(hf_model, config)
    elif name == "llama":
        config = HookedTransformerConfig(
            **common,
            d_mlp=D_MLP,
            act_fn="silu",
            gated_mlp=True,
            normalization_type="RMS",
            final_rms=True,
            eps=hf_model.config.rms_norm_eps,
            positional_embedding_type="rotary",
            rotary_dim=D_MODEL // N_HEADS,
            rotary_adjacent_pairs=False,
            n_key_value_heads=2,
            original_architecture="LlamaForCausalLM",
        )
        weights = weight_conversions.convert_llama_weights(hf_model, config)
    else:
        raise ValueError(f"tiny_hooked builds gpt2 and llama, not {name}")
    model = HookedTransformer(config, tokenizer=tiny_tokenizer(), default_padding_side="right")
    model.load_and_process_state_dict(
        weights,
        fold_ln=False,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
        refactor_factored_attn_matrices=False,
    )
    return model.eval()
