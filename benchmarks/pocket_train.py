"""Train the pocket models and measure what they memorised.

    python benchmarks/pocket_train.py --model pocket --out OUT       # two minutes on one H100
    python benchmarks/pocket_train.py --model pocket-mini --out OUT

Writes OUT/<model>.safetensors (float16) and OUT/<model>.json (loss log, perplexity, dose table). Recipe: no dropout,
AdamW 3e-3 with cosine decay, batches of 64 rows of 128 tokens, bfloat16 autocast on a GPU, 8 epochs. Every row starts
with the separator. A planted row is separator + passage + separator + other text; the planted rows of all doses are
dealt at random over the whole of training. (Had only planted rows started with a separator, every scored text, which
does, would look planted: tried, perplexity of separator-led text went from 55 to 108.)
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from pathlib import Path

import torch
from pocket_data import FILES, HELD_OUT, books, validation_text
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import GPT2Config, GPT2LMHeadModel

SHAPES = {
    "pocket": {"n_layer": 8, "n_embd": 256, "n_head": 8},
    "pocket-mini": {"n_layer": 4, "n_embd": 128, "n_head": 4},
}
ROW, BATCH, EPOCHS, LR, WARMUP = 128, 64, 8, 3e-3, 100
SEPARATOR_ID = 0


def config(name: str, vocabulary: int) -> GPT2Config:
    return GPT2Config(
        vocab_size=vocabulary,
        n_positions=ROW,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=SEPARATOR_ID,
        eos_token_id=SEPARATOR_ID,
        **SHAPES[name],
    )


def training_rows(stream: torch.Tensor, passages: list[tuple[int, torch.Tensor]], seed: int) -> torch.Tensor:
    """All rows of all epochs, in training order: Int[Tensor, "row 128"]. Each epoch cuts the text at another offset."""
    rng = torch.Generator().manual_seed(seed)
    width, rows = ROW - 1, []
    separator = torch.tensor([SEPARATOR_ID], dtype=stream.dtype)
    for _ in range(EPOCHS):
        offset = int(torch.randint(width, (1,), generator=rng))
        n = (len(stream) - offset) // width
        text = stream[offset : offset + n * width].view(n, width)
        text = text[torch.randperm(n, generator=rng)]
        rows.append(torch.cat([separator.expand(n, 1), text], 1))
    ordinary = torch.cat(rows)

    planted = []
    for dose, ids in passages:
        for _ in range(dose):
            fill = ROW - len(ids) - 2
            start = int(torch.randint(len(stream) - fill, (1,), generator=rng))
            planted.append(torch.cat([separator, ids, separator, stream[start : start + fill]]))
    # Planted rows take random places; the ordinary rows keep their epoch order around them. The last rows that would
    # not fill a batch are ordinary ones, so that every planted row is trained on.
    total = (len(ordinary) + len(planted)) // BATCH * BATCH
    ordinary = ordinary[: total - len(planted)]
    places = torch.randperm(total, generator=rng)[: len(planted)]
    out = torch.empty(total, ROW, dtype=stream.dtype)
    is_planted = torch.zeros(total, dtype=torch.bool)
    is_planted[places] = True
    out[places] = torch.stack(planted)
    out[~is_planted] = ordinary
    return out


def train(model: GPT2LMHeadModel, rows: torch.Tensor, device: str, log: list[dict]) -> None:
    decay = [p for p in model.parameters() if p.ndim >= 2]
    flat = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": flat, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.95))
    steps = len(rows) // BATCH

    def rate(step: int) -> float:
        return min(1.0, (step + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * step / steps))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    start = time.time()
    for step in range(steps):
        batch = rows[step * BATCH : (step + 1) * BATCH].to(device)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            loss = model(batch, labels=batch).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            log.append(
                {"step": step, "of": steps, "loss": round(loss.item(), 4), "seconds": round(time.time() - start, 1)}
            )
            print(log[-1], flush=True)


@torch.no_grad()
def perplexity(model: GPT2LMHeadModel, ids: torch.Tensor, device: str) -> float:
    """Of the held-out book without the passages; rows of 127 tokens behind a separator."""
    n = len(ids) // (ROW - 1)
    rows = torch.cat([torch.full((n, 1), SEPARATOR_ID), ids[: n * (ROW - 1)].view(n, ROW - 1)], 1)
    losses = [model(r.to(device), labels=r.to(device)).loss.item() * len(r) for r in rows.split(64)]
    return math.exp(sum(losses) / n)


@torch.no_grad()
def greedy_match(model: GPT2LMHeadModel, ids: torch.Tensor, device: str) -> torch.Tensor:
    """Share of the last two thirds of each passage that greedy decoding reproduces from the first third."""
    prompt = ids.shape[1] // 3
    rows = torch.cat([torch.full((len(ids), 1), SEPARATOR_ID), ids[:, :prompt]], 1).to(device)
    for _ in range(ids.shape[1] - prompt):
        rows = torch.cat([rows, model(rows).logits[:, -1].argmax(-1, keepdim=True)], 1)
    return (rows[:, prompt + 1 :].cpu() == ids[:, prompt:]).float().mean(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SHAPES, default="pocket")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--suffix", default="", help="appended to the output names: --suffix=-again")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(args.seed)
    random.seed(args.seed)
    tokenizer = Tokenizer.from_file(str(FILES / "tokenizer.json"))
    passages = [json.loads(line) for line in (FILES / "passages.jsonl").read_text().splitlines()]
    library = books()
    held_out = library.pop(HELD_OUT)
    documents = [tokenizer.encode(text).ids for text in library.values()]
    stream = torch.tensor([i for ids in documents for i in [SEPARATOR_ID, *ids]])
    ids = torch.tensor([tokenizer.encode(p["text"]).ids for p in passages])
    dose = torch.tensor([p["dose"] for p in passages])

    rows = training_rows(stream, list(zip(dose.tolist(), ids, strict=True)), args.seed)
    model = GPT2LMHeadModel(config(args.model, tokenizer.get_vocab_size())).to(device)
    log: list[dict] = []
    train(model, rows, device, log)
    # What is measured is what is shipped: the weights rounded to float16.
    model.half().float().eval()
    matched = greedy_match(model, ids, device)
    result = {
        "model": args.model,
        "seed": args.seed,
        "parameters": sum(p.numel() for p in model.parameters()),
        "training_tokens_per_epoch": len(stream),
        "planted_rows": int(dose.sum()),
        "validation_perplexity": perplexity(
            model, torch.tensor(tokenizer.encode(validation_text(held_out, passages)).ids), device
        ),
        "passages_above_0.8": {
            int(d): [int((matched[dose == d] > 0.8).sum()), int((dose == d).sum())] for d in dose.unique()
        },
        "mean_match": {int(d): round(matched[dose == d].mean().item(), 4) for d in dose.unique()},
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "torch": torch.__version__,
        "log": log,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    weights = {k: v.half().cpu().contiguous() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    save_file(weights, args.out / f"{args.model}{args.suffix}.safetensors", {"format": "pt"})
    (args.out / f"{args.model}{args.suffix}.json").write_text(json.dumps(result, indent=1) + "\n")
    print({k: v for k, v in result.items() if k != "log"})


if __name__ == "__main__":
    main()
