"""What is installed, what it runs on, and how a model's blocks can be re-run. The CLI prints it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from typing import Any

import torch

from basins import pocket
from basins.corpus import tokenize
from basins.lens import as_found, n_layers
from basins.selfcheck import CheckedPath, SelfCheck
from basins.settings import versions

# What each extra is for and the packages it brings, by import name.
EXTRAS: dict[str, dict[str, str]] = {
    "view": {"matplotlib": "matplotlib", "circuitsvis": "circuitsvis"},
    "experiments": {
        "scipy": "scipy",
        "statsmodels": "statsmodels",
        "sklearn": "scikit-learn",
        "nltk": "nltk",
        "datasets": "datasets",
    },
    "gguf": {"gguf": "gguf"},
    "cluster": {"ray": "ray"},
    "notebook": {"ipykernel": "ipykernel", "nbclient": "nbclient"},
}
CHECKED_TOKENS = 64


def installed() -> dict[str, str]:
    """Versions of what every score depends on."""
    from basins import __version__

    found = {"basins": __version__} | versions()
    found.pop("compression-basins", None)  # the same, where it is installed
    return found


def devices() -> dict[str, str]:
    """What models can run on here."""
    found = {"cpu": f"{os.cpu_count()} cores, {torch.get_num_threads()} threads in PyTorch"}
    for i in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(i)
        found[f"cuda:{i}"] = f"{about.name}, {about.total_memory / 2**30:.0f} GiB"
    if torch.backends.mps.is_available():
        found["mps"] = "only when asked for: it is known to give wrong results"
    return found


def faiss_build() -> str:
    try:
        import faiss
    except ImportError as error:
        return f'cannot be imported ({error}). pip install "faiss-cpu", or pass index="exact"'
    gpus = faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0
    kind = f"{gpus} GPUs" if gpus else "CPU"
    return f"{faiss.__version__}, {kind}, {faiss.omp_get_max_threads()} threads, {faiss.get_compile_options().strip()}"


def extras() -> dict[str, str]:
    """Each optional package's version, or the command that installs it."""
    found = {}
    for extra, packages in EXTRAS.items():
        for module, package in packages.items():
            if importlib.util.find_spec(module) is None:
                found[package] = f'missing: pip install "compression-basins[{extra}]"'
            else:
                found[package] = importlib.metadata.version(package)
    return found


def check_replay(model: Any) -> dict[int, CheckedPath]:
    """For every block, which way of re-running it agrees with the model's own forward pass, and why others do not."""
    if getattr(model, "tokenizer", None) is not None:
        length = min(CHECKED_TOKENS, getattr(model.cfg, "n_ctx", None) or CHECKED_TOKENS)
        batch = tokenize(model, pocket.demo_text()[:1], max_length=length, long_texts="truncate")
        tokens, mask = batch.tokens, batch.attention_mask
    else:
        tokens = torch.arange(CHECKED_TOKENS)[None] % int(model.cfg.d_vocab)
        mask = torch.ones_like(tokens)
    with as_found(model):
        return SelfCheck(model, seed=0).paths(tokens, mask, tuple(range(n_layers(model))))
