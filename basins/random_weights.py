"""A model of the same architecture that has learnt nothing."""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import warnings
from typing import Any

import torch

from basins import wrap
from basins.errors import BasinsError
from basins.lens import block_dtype, input_device, model_name


def random_weights(model: Any, seed: int = 0) -> Any:
    """A new TransformerLens model with the configuration of `model` and weights as its architecture draws them.

    A bridge's transformers class is built anew from its configuration, so every weight has the distribution that the
    class starts its training from (GPT-2: standard deviation 0.02, in residual projections divided by
    sqrt(2 n_layers); biases 0; LayerNorm and RMSNorm as the identity). A HookedTransformer is built anew from its
    `cfg`. Same seed, same weights. `model` and the caller's random state are left alone; hooks are not carried over.

    Raises BasinsError for a model that has neither.
    """
    name = f"{model_name(model)} with random weights"
    wrapped = getattr(model, "original_model", None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if hasattr(type(wrapped), "_from_config"):
            config = copy.deepcopy(wrapped.config)  # type: ignore[union-attr]
            fresh = type(wrapped)._from_config(config, attn_implementation="eager")  # type: ignore[union-attr]
            fresh = fresh.to(input_device(model), block_dtype(model, 0)).eval()
            return wrap.wrap_model(fresh, getattr(model, "tokenizer", None), name)
        if type(model).__name__ == "HookedTransformer":
            cfg = copy.deepcopy(model.cfg)
            cfg.init_weights, cfg.seed, cfg.model_name = True, seed, name
            lens: Any = importlib.import_module("transformer_lens")
            with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
                # 3.9 says of every new one that 4.0 will not have the class.
                warnings.simplefilter("ignore", DeprecationWarning)
                fresh = lens.HookedTransformer(cfg, model.tokenizer, move_to_device=False)
                return fresh.to(input_device(model)).eval()
    raise BasinsError(
        f"{model_name(model)} ({type(model).__name__}) cannot be built anew with random weights: it is neither a "
        "TransformerBridge around a transformers model nor a HookedTransformer. Load it with basins.load_model."
    )
