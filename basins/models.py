"""Any way of naming a decoder-only language model -> a TransformerLens model with raw, unprocessed weights."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from basins import gguf_files, pocket, wrap
from basins.errors import BasinsError, choose
from basins.load_errors import check_decoder_only, explained

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES = {
    str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64)
}
SOURCES = (
    'a Hugging Face hub id such as "gpt2", a local Hugging Face folder, a .gguf file, an already loaded transformers '
    'model, "pocket", "pocket-mini"'
)


def load_model(
    source: str | Path | PreTrainedModel,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Any:
    """Load a model for scoring.

    `source`: a hub id ("gpt2"), a local Hugging Face folder, a `.gguf` file, a loaded `transformers` model, or
    "pocket" / "pocket-mini" (shipped with basins, no network; a folder of that name is "./pocket"). Otherwise a folder
    wins over a hub id of the same name.

    `device`: None takes "cuda" if there is one, otherwise "cpu"; "mps" only when asked for (TransformerLens does not
    pick it either, for known wrong results). `dtype`: "float32" (what None means), "float16", "bfloat16", "float64" or
    the torch dtype. A loaded model is neither moved nor cast unless `device` or `dtype` is given, and then in place.

    `tokenizer`: used as it is (a copy of it) instead of the one that comes with the source. A loaded model without one
    can still score caches and token tensors, but no texts.

    Returns a TransformerLens model in eval mode whose weights are neither folded nor centred: a `TransformerBridge`
    (TransformerLens 3.9 and 4) or a `HookedTransformer` (2.18). A bridge wraps a loaded model *in place*: it replaces
    submodules of the model you passed and switches it to eager attention, so go on with the returned model only.

    Code from a model's repository is never run (`trust_remote_code` stays off). What cannot be loaded raises a
    BasinsError: no network, gated or missing repository, missing file, encoder or encoder-decoder, an architecture
    TransformerLens has no adapter for, an unknown dtype or device.
    """
    dtype, device = parse_dtype(dtype), parse_device(device)
    # Layers are made with random weights before the real ones are read: that must not cost the caller's random state.
    with torch.random.fork_rng(devices=[]), _bars_on_terminals_only():
        if isinstance(source, torch.nn.Module):
            return _wrap_loaded(source, tokenizer, device, dtype)
        if not isinstance(source, str | Path):
            raise BasinsError(f"source is of type {type(source).__name__}. Possible: {SOURCES}.")
        device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if source in pocket.NAMES:
            hf_model, own_tokenizer = pocket.load(str(source))
            return wrap.wrap_model(cast(hf_model, dtype).to(device), tokenizer or own_tokenizer, str(source))
        if str(source).lower().endswith(".gguf"):
            return _load_gguf(Path(source).expanduser(), tokenizer, device, dtype or torch.float32)
        return _load_named(source, tokenizer, device, dtype or torch.float32)


def parse_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """The torch dtype that "float32", torch.float32 or None mean; BasinsError for any other."""
    if dtype is None:
        return None
    return DTYPES[choose("dtype", str(dtype).removeprefix("torch."), DTYPES)]


def parse_device(device: str | torch.device | None) -> torch.device | None:
    """The torch device that "cpu", "cuda", "cuda:1" or "mps" mean, if this machine has it; BasinsError otherwise."""
    if device is None:
        return None
    try:
        parsed = torch.device(device)
        if parsed.type == "meta":
            raise RuntimeError("meta tensors hold no numbers")
        torch.empty(0, device=parsed)
    # What an absent backend raises differs: RuntimeError, AssertionError ("not compiled with"), NotImplementedError.
    except (RuntimeError, AssertionError, TypeError) as error:
        raise BasinsError(
            f"device={str(device)!r} cannot be used on this machine. Possible: {_devices()}. A GPU that is missing "
            "from this list needs a build of torch for it: see python -c 'import torch; print(torch.version.cuda)'."
        ) from error
    return parsed


def cast(hf_model: Any, dtype: torch.dtype | None) -> Any:
    """Cast the parameters in place. Buffers stay: rotary frequencies must not be rounded to half precision."""
    for parameter in hf_model.parameters() if dtype is not None else ():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    return hf_model


def _devices() -> str:
    found = ["'cpu'", *(f"'cuda:{i}'" for i in range(torch.cuda.device_count()))]
    return ", ".join([*found, "'mps'"] if torch.backends.mps.is_available() else found)


def _wrap_loaded(source: Any, tokenizer: Any, device: torch.device | None, dtype: torch.dtype | None) -> Any:
    from transformers import PreTrainedModel

    if hasattr(source, "run_with_cache"):
        raise BasinsError(
            f"source is a {type(source).__name__}, which is a TransformerLens model already: use it as it is, "
            "for example basins.BasinScorer(model)."
        )
    if not isinstance(source, PreTrainedModel):
        raise BasinsError(f"source is a {type(source).__name__}, not a transformers model. Possible: {SOURCES}.")
    model: Any = source
    name = getattr(model.config, "name_or_path", "") or type(model).__name__
    check_decoder_only(model.config, name, wrap.model_class(model))
    with explained(name):
        if device is not None:
            model = model.to(device)
        return wrap.wrap_model(cast(model, dtype).eval(), tokenizer, name)


def _load_gguf(path: Path, tokenizer: Any, device: torch.device, dtype: torch.dtype) -> Any:
    hf_model, own_tokenizer = gguf_files.load(path, dtype, tokenizer)
    with explained(str(path)):
        return wrap.wrap_model(hf_model.to(device), own_tokenizer, path.stem)


def _load_named(source: str | Path, tokenizer: Any, device: torch.device, dtype: torch.dtype) -> Any:
    from transformers import AutoConfig

    name = find_folder(source) or hub_id(source)
    with explained(name):
        check_decoder_only(AutoConfig.from_pretrained(name, trust_remote_code=False), name)
        return wrap.boot(name, tokenizer, device, dtype)


def find_folder(source: str | Path) -> str | None:
    """The local folder that `source` names, if it names one; BasinsError if it is there but holds no model."""
    path = Path(source).expanduser()
    if path.is_file():
        raise BasinsError(
            f"{source} is a file, and the only model files are .gguf. Is it part of a Hugging Face folder? Pass that."
        )
    if not path.is_dir():
        return None
    if not (path / "config.json").is_file():
        found = sorted(p.name for p in path.iterdir())
        ggufs = [f for f in found if f.endswith(".gguf")]
        hint = f"Did you mean {path / ggufs[0]}?" if ggufs else "Is it the folder that save_pretrained wrote?"
        raise BasinsError(
            f"The folder {source} holds no config.json, so it is not a Hugging Face model. It holds: "
            f"{', '.join(found[:8]) or 'nothing'}{', ...' if len(found) > 8 else ''}. {hint}"
        )
    return str(path)


def hub_id(source: str | Path) -> str:
    """`source`, unless it can only be a path: then it is one that does not exist."""
    text = str(source)
    if isinstance(source, Path) or text.startswith((".", "~", os.sep)) or text.count("/") > 1 or "\\" in text:
        raise BasinsError(f"The path {text} does not exist (looked from {Path.cwd()}). Possible: {SOURCES}.")
    if not text.strip():
        raise BasinsError(f"source is empty. Possible: {SOURCES}.")
    return text


@contextlib.contextmanager
def _bars_on_terminals_only() -> Iterator[None]:
    """Keep the progress bars of transformers and the hub client out of log files; all else on stderr passes."""
    if sys.stderr.isatty():
        yield
        return
    written = io.StringIO()
    try:
        with contextlib.redirect_stderr(written):
            yield
    finally:
        lines = re.split(r"[\r\n]+", written.getvalue())
        for line in lines:
            if line.strip() and not re.search(r"\|.*\[.*(it/s|s/it|B/s)", line):
                sys.stderr.write(line + "\n")
