"""How many fine-tuned passages a model then recites, and in what time.

    OMP_NUM_THREADS=2 python benchmarks/finetuning.py                # pocket-mini: all settings below
    python benchmarks/finetuning.py --model MODEL --learning-rate 1e-4

Trains on a random half of the 100 bundled quotes: once with 64 exposures each, once with 1, 4, 16 and 64 dealt at
random. Appends a row for each epoch, group and number of exposures to benchmarks/finetuning.csv. `reproduced` is the
share of passages of which greedy continuation from the first third gives more than 80% of the other tokens; `match` the
mean share of right tokens; `loss` the mean over the tokens, nats; `seconds` training alone; `weights` the first digits
of the sha256 of all weights, the same for the same seed.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import subprocess
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch

import basins
from basins.controlled import randomize
from basins.corpus import TokenBatch, tokenize
from basins.finetuning import finetune
from basins.losses import token_losses
from basins.quotes import quotes, unrelated

CSV = Path(__file__).with_suffix(".csv")
SETTINGS = {"64 each": (64,), "mixed": (1, 4, 16, 64)}
EPOCHS = (0, 16, 64)
PROMPT, REPRODUCED = 1 / 3, 0.8


@torch.no_grad()
def greedy_match(model: Any, batch: TokenBatch) -> torch.Tensor:
    """Share of the tokens after the first third of each passage that plain greedy decoding gives."""
    lengths, found = batch.attention_mask.sum(1), batch.tokens.clone()
    prompts = 1 + ((lengths - 1) * PROMPT).long()  # behind the separator
    for place in range(int(prompts.min()), found.shape[1]):
        rows = ((prompts <= place) & (place < lengths)).nonzero()[:, 0]
        found[rows, place] = model(found[rows, :place], return_type="logits")[:, -1].argmax(-1)
    places = torch.arange(found.shape[1])
    asked = (places >= prompts[:, None]) & (places < lengths[:, None])
    return ((found == batch.tokens) & asked).sum(1) / asked.sum(1)


def weights_hash(model: Any) -> str:
    digest = hashlib.sha256()
    for _, parameter in sorted(model.named_parameters(), key=lambda item: item[0]):
        digest.update(parameter.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def measure(source: str, name: str, options: dict[str, Any], seed: int) -> list[dict[str, Any]]:
    model = basins.load_model(source)
    texts = [quote.text for quote in (*quotes(), *unrelated())]
    batch = tokenize(model, texts)
    assignment = randomize(len(quotes()), seed, exposures=SETTINGS[name])
    about = assignment.to_frame(len(unrelated()))
    rows, seconds = [], 0.0
    plan = {"exposures": tuple(about["exposures"]), "checkpoints": EPOCHS, "seed": seed, **options}
    started = time.perf_counter()
    for checkpoint in finetune(model, batch.tokens, batch.attention_mask, **plan):
        seconds += time.perf_counter() - started
        about["match"] = greedy_match(checkpoint.model, batch).numpy()
        about["loss"] = token_losses(checkpoint.model, batch.tokens, batch.attention_mask).nanmean(1).numpy()
        for (group, exposures), part in about.groupby(["group", "exposures"]):
            row = {"model": source, "setting": name, "epoch": checkpoint.epoch, "group": group, "exposures": exposures}
            row |= {"passages": len(part), "reproduced": f"{(part['match'] > REPRODUCED).mean():.3f}"}
            row |= {"match": f"{part['match'].mean():.3f}", "loss": f"{part['loss'].mean():.3f}"}
            rows.append(row | {"seconds": f"{seconds:.1f}", "weights": weights_hash(checkpoint.model)})
            print(rows[-1], flush=True)
        started = time.perf_counter()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    about_run = {"seed": seed, "threads": torch.get_num_threads(), "torch": torch.__version__, "commit": commit}
    said = {
        "learning_rate": options.get("learning_rate", "default"),
        "batch_size": options.get("batch_size", "default"),
    }
    return [row | said | about_run | {"date": date.today().isoformat()} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pocket-mini")
    parser.add_argument("--setting", choices=SETTINGS, help="one of them only")
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    options = {name: value for name in ("learning_rate", "batch_size") if (value := getattr(args, name)) is not None}
    for name in [args.setting] if args.setting else SETTINGS:
        rows = measure(args.model, name, options, args.seed)
        new = not CSV.exists()
        with open(CSV, "a", newline="") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
