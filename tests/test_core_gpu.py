"""The re-run core on a GPU: the same numbers as packed replay, and what each precision costs in accuracy."""

from __future__ import annotations

import copy

import pytest
import torch
from test_core import CORES, relative_error
from test_precision import switches
from test_rerun import PADDINGS, padded, patches_and_positions, some_tokens
from tiny_models import N_LAYERS, tiny_hf_model

import basins
from basins import BasinScorer
from basins.block_calls import record_calls
from basins.lens import as_found, n_layers
from basins.patched_attention import attend, attend_in_steps, kernel_refusal, random_operands
from basins.precision import matmul_precision
from basins.rerun import Replay

pytestmark = pytest.mark.gpu


SHAPES = {
    "one head": {"n_heads": 1, "n_kv": 1, "d_head": 16, "n_patches": 1, "pos": 1},
    "grouped": {"n_heads": 6, "n_kv": 2, "d_head": 64, "n_patches": 130, "pos": 100},
    "long": {"n_heads": 2, "n_kv": 2, "d_head": 32, "n_patches": 65, "pos": 257},
}


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize(("dtype", "most"), [("float32", 1e-5), ("tf32", 2e-3), ("bfloat16", 2e-2)])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_kernel_is_the_steps_in_float64(shape, dtype, most, cut):
    assert kernel_refusal(torch.cuda.current_device()) is None
    operands = list(random_operands(torch.device("cuda"), **SHAPES[shape]))
    if cut:  # no patch stands in the second half: views of the keys, values and mask
        pos = max(1, SHAPES[shape]["pos"] // 2)
        operands[3:6] = operands[3][..., :pos], operands[4][:, :, :pos], operands[5][..., :pos]
        operands[6] = operands[6].clamp_max(pos - 1)
    right = attend_in_steps(*(x.double() if x.is_floating_point() else x for x in operands), 0.2, None, None)
    if dtype == "bfloat16":
        operands[:5] = (x.bfloat16() for x in operands[:5])
    with matmul_precision("tf32" if dtype == "tf32" else "float32", torch.device("cuda"), torch.float32):
        found = attend(*operands, 0.2)
    assert found.isfinite().all()
    assert relative_error(found.double(), right) < most


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("name", CORES)
def test_core_is_packed_replay(name, padding):
    model, tokens, mask = basins.load_model(tiny_hf_model(name), device="cuda"), some_tokens(), padded(padding)
    layers = range(n_layers(model))
    with as_found(model):
        calls, states = record_calls(model, tokens, mask, layers, layers)
        for layer in layers:
            _, patches, positions = patches_and_positions(mask.cuda(), states[layer])
            run = [Replay(model, path, calls[layer], states[layer], mask) for path in ("core", "packed")]
            core, packed = (replay.outputs(patches, positions.cuda()) for replay in run)
            assert relative_error(core, packed) < 1e-5


@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize(
    ("precision", "least", "most"), [("float32", 0, 1e-5), ("tf32", 1e-6, 2e-3), ("bfloat16", 1e-4, 0.1)]
)
def test_errors_of_the_precisions(precision, least, most, tf32):
    """Whatever the user's own TF32 switch says, which is as it was afterwards."""
    hf_model, tokens = tiny_hf_model("gpt2"), some_tokens()
    # The same weights: drawn in float64 they may be others.
    exact_model = basins.load_model(copy.deepcopy(hf_model).double(), device="cuda")
    model = basins.load_model(hf_model, device="cuda")
    exact = BasinScorer(exact_model, k=4).score_tokens(tokens)
    found = torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = tf32
        before = switches()
        scores = BasinScorer(model, k=4, precision=precision).score_tokens(tokens, layers=[0])
        assert switches() == before
    finally:
        torch.backends.cuda.matmul.allow_tf32 = found
    assert scores.settings["replay"] == {"core": 1}
    assert scores.settings["replay_precision"] == precision
    error = (scores.var_out[0].cpu() / exact.var_out[0].cpu()).log().abs().nan_to_num(0)
    assert least <= float(error.max()) < most


@pytest.mark.parametrize("name", CORES)
def test_scorer_takes_the_core(name):
    model = basins.load_model(tiny_hf_model(name), device="cuda")
    scores = BasinScorer(model, k=4).score_tokens(some_tokens(), padded("left"))
    assert scores.settings["replay"] == {"core": N_LAYERS}
