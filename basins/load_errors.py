"""Why a model could not be loaded, in words: the exceptions of transformers and the hub client -> one BasinsError."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from basins.errors import BasinsError

DECODERS = "decoder-only language models (GPT-2, Llama, Gemma, Qwen, Mistral, ...)"
WITHOUT_HUB = 'a local Hugging Face folder, a .gguf file, a loaded transformers model, "pocket" (ships with basins)'

# What files, the hub client and the readers raise, and what TransformerLens raises on a shape that it did not expect.
KNOWN = (
    OSError,
    ValueError,
    ImportError,
    LookupError,
    RuntimeError,
    AttributeError,
    AssertionError,
    TypeError,
    StrictDataclassError,
    SafetensorError,
    struct.error,
)


@contextmanager
def explained(source: str) -> Iterator[None]:
    """Turn the failures of loading `source` that a user can do something about into a BasinsError."""
    try:
        yield
    except BasinsError:
        raise
    except KNOWN as error:
        raise BasinsError(_explanation(source, error)) from error


def check_decoder_only(config: Any, source: str, model_class: str | None = None) -> None:
    """Raise BasinsError for the configuration of an encoder-decoder, an encoder or a model that writes no text."""
    from transformers.models.auto import modeling_auto as auto

    named = [model_class] if model_class else config.architectures or []
    architecture = named[0] if named else config.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise BasinsError(
            f"{source} is an encoder-decoder ({architecture}): it has two residual streams and basins scores one. "
            f"Possible: {DECODERS}."
        )
    masked = config.model_type in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if masked and not getattr(config, "is_decoder", False):
        raise BasinsError(
            f"{source} is an encoder ({architecture}): its tokens see what comes after them, and re-running a block "
            f"needs a causal model. Possible: {DECODERS}."
        )
    if any(name.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")) for name in named):
        return
    # The stored weights of another head on a language model still hold the language model.
    if model_class or config.model_type not in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise BasinsError(
            f"{source} ({architecture}) is not a language model. Possible: {DECODERS}, in transformers what "
            "AutoModelForCausalLM loads."
        )


def _explanation(source: str, error: BaseException) -> str:
    chain = list(_chain(error))
    kinds = {cls.__name__ for link in chain for cls in type(link).__mro__}
    text = " ".join(str(link) for link in chain)
    first_line = str(error).strip().partition("\n")[0]

    if "trust_remote_code" in text:
        return (
            f"{source} needs Python code from its own repository (trust_remote_code), and basins never runs that. "
            "Possible: an architecture that is part of transformers. If you have read the code and trust it, load the "
            "model yourself with transformers and pass it: basins.load_model(model, tokenizer=tokenizer)."
        )
    if "GatedRepoError" in kinds or "trying to access a gated repo" in text:
        return (
            f"{source} is a gated repository: its owner lets in only accounts that accepted the terms. Accept them on "
            "the model's page on the hub, then log in with `hf auth login` or set HF_TOKEN to a token of that account."
        )
    if kinds & {"RepositoryNotFoundError", "HFValidationError"} or "not a valid model identifier" in text:
        return (
            f"{source!r} is neither a folder here nor a model on the Hugging Face hub. Is it spelt right, with its "
            'owner ("openai-community/gpt2")? A private repository needs `hf auth login` or HF_TOKEN.'
        )
    unreachable = kinds & {"LocalEntryNotFoundError", "ConnectionError", "ConnectError"} or "couldn't connect" in text
    if "OfflineModeIsEnabled" in kinds or (unreachable and _offline()):
        return (
            f"{source} is not in the local Hugging Face cache, and HF_HUB_OFFLINE forbids downloading it. Unset "
            f"HF_HUB_OFFLINE, or download the model once while online. Possible without the hub: {WITHOUT_HUB}."
        )
    if unreachable:
        return (
            f"{source} is not in the local Hugging Face cache, and the hub could not be reached. Is this machine "
            f"connected to a network, or does it need a proxy (HTTPS_PROXY)? Possible without the hub: {WITHOUT_HUB}."
        )
    if any(s in text for s in ("supported architecture", "Unsupported architecture", "not currently supported")):
        return (
            f"{source}: this version of TransformerLens has no adapter for the architecture ({_names(text)}). "
            f"Possible: {DECODERS}; newer versions of transformer-lens know more."
        )
    if "does not recognize this architecture" in text:
        return f"{source}: {first_line} pip install --upgrade transformers may help."
    if "unpack_from requires" in text or "cannot reshape array" in text or "deserializing header" in text:
        return f"{source} ends too early or is damaged ({first_line}). Is the download complete?"
    if "tokenizer" in first_line.lower():
        return (
            f"{source} holds no tokenizer that can be loaded. Pass one: basins.load_model(source, "
            "tokenizer=AutoTokenizer.from_pretrained(...))."
        )
    if "have a file named config.json" in text or "have a `model_type` key" in text:
        return (
            f"{source} has no config.json that names a model type, so it is not a model in the Hugging Face format. "
            "If it holds .gguf files, download one and pass its path."
        )
    if "no file named" in first_line:
        return f"{source} has a config.json but no weights ({first_line}) Is the download complete?"
    return f"{source} could not be loaded: {type(error).__name__}: {first_line}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _names(text: str) -> str:
    """The configuration's architecture names out of TransformerLens' message, which may list every adapter it has."""
    patterns = r"Config architectures: \[(.*?)\]|Unsupported architecture: (\w+)|(\w+) is not currently supported"
    found = re.search(patterns, text)
    return (found[1] or found[2] or found[3]).replace("'", "") if found else "unknown"


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)
