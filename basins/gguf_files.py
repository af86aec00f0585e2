"""A `.gguf` file -> a transformers model and its tokenizer, both read from the file alone."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from basins.errors import BasinsError, MissingExtra
from basins.load_errors import check_decoder_only, explained

if TYPE_CHECKING:
    import torch

MAGIC = b"GGUF"


def load(path: Path, dtype: torch.dtype, tokenizer: Any = None) -> tuple[Any, Any]:
    """The model (CPU, eval mode, `dtype`) and the file's own tokenizer, or `tokenizer` if one is given.

    Quantised weights are expanded to `dtype`: a 4-bit file of n parameters needs 4 n bytes in float32.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    check_file(path)
    if importlib.util.find_spec("gguf") is None:
        raise MissingExtra("gguf", "gguf")
    source = _source(path)
    config = read_config(path)
    with explained(str(path)):
        hf_model = AutoModelForCausalLM.from_pretrained(
            **source, config=config, dtype=dtype, attn_implementation="eager"
        )
        tokenizer = tokenizer or AutoTokenizer.from_pretrained(**source)
    hf_model.name_or_path = str(path)
    return hf_model.eval(), tokenizer


def read_config(path: Path) -> Any:
    """The transformers configuration that the file's header amounts to; no weights are read."""
    from transformers import AutoConfig

    with explained(str(path)):
        config = AutoConfig.from_pretrained(**_source(path))
        config.architectures = [architecture(config)]
        check_decoder_only(config, str(path))
    return config


def _source(path: Path) -> dict[str, Any]:
    return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name, "trust_remote_code": False}


def check_file(path: Path) -> None:
    """Raise BasinsError unless `path` is a file that starts as a .gguf does."""
    if not path.is_file():
        raise BasinsError(f"There is no file {path} (looked from {Path.cwd()}). Is the path spelt right?")
    with open(path, "rb") as file:
        start = file.read(len(MAGIC))
    if start != MAGIC:
        raise BasinsError(
            f"{path} is not a .gguf file: it starts with {start!r} instead of {MAGIC!r}. Is the download complete? A "
            "file of a git-lfs repository is a short text until `git lfs pull`."
        )


def architecture(config: Any) -> str:
    """The model class that transformers builds for the configuration.

    transformers reads no architecture from some .gguf files (Gemma 3), and TransformerLens chooses its adapter by it.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if config.architectures:
        return config.architectures[0]
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise BasinsError(
            f"The .gguf file holds a {config.model_type} model, for which transformers has no language model class."
        )
    return MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type]
