"""Write weights, and the scores that TransformerLens 4 gives for them, where the other environments can compare them.

python tests/compat/make_reference.py FOLDER
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

from cases import ATTRIBUTIONS, MODELS, SETTINGS, TINY, attribute, score
from safetensors.torch import save_file
from tiny_models import tiny_hf_model, tiny_model

import basins


def main(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in TINY:
        # Tied tensors are written twice: safetensors refuses shared memory.
        state = {key: tensor.clone().contiguous() for key, tensor in tiny_hf_model(name).state_dict().items()}
        save_file(state, folder / f"{name}.safetensors")
    for name in MODELS:
        model = tiny_model(name) if name in TINY else basins.load_model(name)
        for title, settings in SETTINGS.items():
            score(model, settings).save(folder / f"{name}-{title}")
        for method in ATTRIBUTIONS:
            attribute(model, method).save(folder / f"{name}-{method}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
