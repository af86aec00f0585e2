"""A transformers model, loaded or named -> a TransformerLens model, whichever TransformerLens is installed.

TransformerLens 3.9 and 4 wrap it in a TransformerBridge; 2.18 copies its weights into a HookedTransformer. Neither way
folds or centres weights. Model classes are imported where they are used: TransformerLens 4 has no HookedTransformer.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import importlib.util
import io
import tempfile
from importlib import metadata
from typing import TYPE_CHECKING, Any

import torch

from basins.errors import BasinsError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def has_bridge() -> bool:
    return importlib.util.find_spec("transformer_lens.model_bridge") is not None


def wrap_model(hf_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, name: str) -> Any:
    """Wrap a loaded model where and as it is (device, dtype). A bridge changes `hf_model`; `tokenizer` is copied."""
    config = copy.deepcopy(hf_model.config)
    config.architectures = [model_class(hf_model)]
    if tokenizer is not None:
        tokenizer = _as_given(tokenizer)
    if not has_bridge():
        return _hooked_transformer(hf_model, config, tokenizer, name)
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    hf_model.set_attn_implementation("eager")  # the fused kernels return no attention patterns
    return build_bridge_from_module(
        hf_model, config.architectures[0], hf_config=config, tokenizer=tokenizer, model_name=name
    )


def model_class(hf_model: Any) -> str:
    """The class that transformers itself defines: a user's subclass of it has a name no adapter is listed under."""
    classes = [cls for cls in type(hf_model).__mro__ if cls.__module__.startswith("transformers.")]
    return (classes or [type(hf_model)])[0].__name__


def boot(name: str, tokenizer: PreTrainedTokenizerBase | None, device: torch.device, dtype: torch.dtype) -> Any:
    """Load the hub id or folder `name` the way TransformerLens does, tokenizer included unless one is given."""
    if has_bridge():
        from transformer_lens.model_bridge import TransformerBridge

        given = None if tokenizer is None else _as_given(tokenizer)
        return TransformerBridge.boot_transformers(
            name, device=device, dtype=dtype, tokenizer=given, trust_remote_code=False
        )
    from transformers import AutoModelForCausalLM, AutoTokenizer

    hf_model: Any = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, trust_remote_code=False)
    if tokenizer is None:
        tokenizer = AutoTokenizer.from_pretrained(name, add_bos_token=True, trust_remote_code=False)
    return wrap_model(hf_model.to(device), tokenizer, name)


def _as_given(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A copy that TransformerLens will use as it is.

    TransformerLens loads a tokenizer that does not say `add_bos_token` anew from the place it came from, which may be
    nowhere (the pocket tokenizer), the wrong place (a .gguf's folder) or the network.
    """
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.init_kwargs["add_bos_token"] = True
    tokenizer.init_kwargs.setdefault("name_or_path", "")
    return tokenizer


def _hooked_transformer(hf_model: Any, config: Any, tokenizer: Any, name: str) -> Any:
    """TransformerLens 2: the steps of `from_pretrained_no_processing`, which takes only names on its own list."""
    lens: Any = importlib.import_module("transformer_lens")
    loading: Any = importlib.import_module("transformer_lens.loading_from_pretrained")
    dtype, device = hf_model.dtype, hf_model.device
    if not hasattr(config, "n_ctx") and hasattr(config, "n_positions"):
        config.n_ctx = config.n_positions  # a GPT2Config made by hand lacks what the file of the real GPT-2 repeats
    trainable = [parameter.requires_grad for parameter in hf_model.parameters()]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        config.save_pretrained(folder)
        cfg = loading.get_pretrained_model_config(folder, hf_cfg=config.to_dict(), device=device, dtype=dtype)
        if cfg.positional_embedding_type == "rotary" and getattr(config, "rope_theta", None):
            cfg.rotary_base = config.rope_theta  # its table of known models is not asked for a folder
        state = loading.get_pretrained_state_dict(folder, cfg, hf_model, dtype=dtype)
    for parameter, was_trainable in zip(hf_model.parameters(), trainable, strict=True):
        parameter.requires_grad = was_trainable
    cfg.model_name = name
    cfg.tokenizer_name = None  # it would be loaded by that name where `tokenizer` is None
    model = lens.HookedTransformer(cfg, tokenizer, move_to_device=False)
    unprocessed = dict.fromkeys(("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases"), False)
    try:
        model.load_and_process_state_dict(state, **unprocessed)
    except RuntimeError as error:  # how load_state_dict says that shapes differ
        raise BasinsError(
            _converts_wrongly(hf_model, name, "the shapes of its weights differ from the model's")
        ) from error
    model.move_model_modules_to_device()
    _check_conversion(model.eval(), hf_model, name)
    return model


@torch.no_grad()
def _check_conversion(model: Any, hf_model: Any, name: str) -> None:
    """A HookedTransformer is a second implementation: refuse it where it does not compute what the model computes."""
    tokens = torch.arange(min(32, model.cfg.n_ctx), device=hf_model.device).unsqueeze(0) % hf_model.config.vocab_size
    expected, actual = hf_model(tokens).logits.float(), model(tokens).float()
    error = ((actual - expected).abs().max() / expected.abs().max()).item()
    limit = 1e-3 if hf_model.dtype in (torch.float32, torch.float64) else 5e-2
    if not error <= limit:
        raise BasinsError(_converts_wrongly(hf_model, name, f"logits differ by {error:.1%} of the model's largest"))


def _converts_wrongly(hf_model: Any, name: str, what: str) -> str:
    return (
        f"{name}: TransformerLens {metadata.version('transformer-lens')} converts this {type(hf_model).__name__} "
        f'wrongly ({what}). TransformerLens 4 wraps the model itself: pip install "transformer-lens>=4".'
    )
