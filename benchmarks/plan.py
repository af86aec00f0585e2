"""Is `basins plan` right about memory? What it predicts beside what a call of `score_tokens` then takes.

Each case runs in a process of its own, where the plan is made before the model is there, from its configuration alone.

On a CPU the whole process is compared: its peak of resident memory from the call's beginning to its end, weights and
libraries included, against the resident memory that the libraries had before the model was made plus what the plan adds
(the larger part is often weights and libraries; the note has the same without the libraries). The peak is the kernel's
own (VmHWM, which Linux lets a process set back), so the making of the model does not count.

On a GPU: `torch.cuda.max_memory_allocated` over the call, weights included, against the plan's bytes on the device.

`agreement` in the row is predicted / measured; `seconds` is the one call, and the note says what the plan estimated.
Models have random weights; "gpt2" is GPT-2 small's shape, with all 12 layers, of which the first few are scored.

    OMP_NUM_THREADS=1 python benchmarks/plan.py
    python benchmarks/plan.py --device cuda
    python benchmarks/plan.py --cases pocket:2048:rerun:0 gpt2:4096:lookup:2
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from measured import CSV, append, device_name

LENGTH, K = 128, 15
# model : tokens : method : first layers that are scored (0: all)
CASES = {
    "cpu": [
        *["pocket:2048:rerun:0", "pocket:16384:rerun:2", "pocket:16384:lookup:0"],
        *["gpt2:4096:rerun:2", "gpt2:4096:lookup:2", "gpt2:16384:rerun:2", "gpt2:16384:lookup:2"],
        "qwen:4096:rerun:2",
    ],
    "cuda": [
        *["pocket:16384:rerun:0", "pocket:131072:rerun:0", "pocket:131072:lookup:0"],
        *["gpt2:4096:rerun:0", "gpt2:16384:rerun:0", "gpt2:16384:lookup:0", "gpt2:131072:rerun:2"],
        *["gpt2:131072:lookup:2", "llama:16384:rerun:2", "llama:65536:lookup:2"],
    ],
}


# Architecture and sizes: GPT-2 small; four layers of Qwen 2 0.5B, whose logits would be larger than all else; Llama 3.2
# 1B.
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", {}),
    "qwen": ("Qwen2", {"vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 4,
                       "num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True}),
    "llama": ("Llama", {"vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
                        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
                        "tie_word_embeddings": True}),
}  # fmt: skip


def config_of(name: str) -> Any:
    import transformers

    from basins import pocket

    if name in pocket.NAMES:
        return pocket.config(name)
    kind, sizes = SHAPES[name]
    config: Any = getattr(transformers, f"{kind}Config")(**sizes)
    config.architectures = ["GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM"]
    return config


def peak_resident(reset: bool = False) -> int:
    """Bytes; `reset`: the peak counts from now on."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024


def one_case(name: str, n_tokens: int, method: str, n_scored: int, device: torch.device) -> dict[str, Any]:
    import transformers

    import basins
    from basins.planning import plan
    from basins.shapes import shape_of_config

    config = config_of(name)
    layers = range(n_scored) if n_scored else None
    asked = {"k": K, "method": method}
    planned = plan(shape_of_config(config, name), n_tokens, length=LENGTH, layers=layers, device=device, **asked)
    torch.manual_seed(0)
    hf_model = getattr(transformers, config.architectures[0])._from_config(config, attn_implementation="eager").eval()
    model = basins.load_model(hf_model, device=device)
    tokens = torch.randint(config.vocab_size, (n_tokens // LENGTH, LENGTH))
    scorer = basins.BasinScorer(model, **asked)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        start = time.perf_counter()
        scores = scorer.score_tokens(tokens, layers=layers)
        measured, predicted = torch.cuda.max_memory_allocated(device), planned.device_bytes
        note = f"host predicted {planned.host_bytes / 1e9:.3g} GB"
    else:
        peak_resident(reset=True)
        start = time.perf_counter()
        scores = scorer.score_tokens(tokens, layers=layers)
        measured, predicted = peak_resident(), planned.process_bytes
        without = planned.device_bytes / (measured - planned.libraries_bytes)
        note = f"libraries {planned.libraries_bytes / 1e9:.3g} GB, without them {without:.3g}"
    seconds = time.perf_counter() - start
    return {
        "name": "plan, peak memory",
        "implementation": f"{name}, {method}, {len(scores.layers)} layers",
        "tokens": n_tokens,
        "queries": n_tokens * len(scores.layers),
        "k": K,
        "d_model": planned.shape.d_model,
        "dtype": "float32",
        "seconds_p50": seconds,
        "repeats": 1,
        "peak_gb": measured / 1e9,
        "agreement": predicted / measured,
        "note": f"predicted {predicted / 1e9:.4g} GB ({planned.worst.stage}); {note}; predicted "
        f"{planned.seconds:.3g} s at {planned.rate / 1e12:.3g} TFLOP/s",
        "device": device_name(device),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cases", nargs="*", help="model:tokens:method:layers; model is pocket, gpt2, qwen or llama")
    parser.add_argument("--commit", default=None, help="where there is no git")
    parser.add_argument("--csv", type=Path, default=CSV)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    device = torch.device(args.device)
    if args.one:
        name, n_tokens, method, layers = args.one.split(":")
        print(json.dumps(one_case(name, int(n_tokens), method, int(layers), device)))
        return
    for case in args.cases or CASES[device.type]:
        command = [sys.executable, __file__, "--device", args.device, "--one", case]
        found = subprocess.run(command, capture_output=True, text=True)
        if found.returncode:
            raise SystemExit(f"{case} failed:\n{found.stderr[-3000:]}")
        row = json.loads(found.stdout.splitlines()[-1])
        print(
            f"{case:28} {row['peak_gb']:8.3f} GB  predicted / measured {row['agreement']:.3f}  {row['note']}",
            flush=True,
        )
        append([row], args.csv, args.commit)


if __name__ == "__main__":
    main()
