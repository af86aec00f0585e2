"""The precision of the re-run: what it changes, what it does not, and PyTorch's switches as they were found."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from test_rerun import some_tokens
from tiny_models import N_LAYERS, tiny_model

from basins import BasinScorer, BasinsError
from basins.precision import effective_precision, matmul_precision

CUDA = torch.device("cuda")


def switches():
    state = {"autocast": torch.is_autocast_enabled("cpu")}
    for name in ("fp32_precision", "allow_tf32"):
        try:
            state[name] = getattr(torch.backends.cuda.matmul, name)
        except (AttributeError, RuntimeError) as reason:
            state[name] = type(reason).__name__
    return state


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize(
    ("precision", "device"),
    [("float32", "cuda"), ("tf32", "cuda"), ("float32", "cpu"), ("tf32", "cpu"), ("bfloat16", "cpu")],
)
def test_switches_are_as_found(precision, device, fails):
    """The switches are there without a GPU too."""
    before, inside = switches(), None
    try:
        with matmul_precision(precision, torch.device(device), torch.float32):
            inside = switches()
            if fails:
                raise KeyError
    except KeyError:
        pass
    assert switches() == before
    assert inside is not None
    if device == "cuda" and precision == "tf32" and hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        assert inside["fp32_precision"] == "tf32"
    if device == "cpu":
        assert inside["autocast"] == (precision == "bfloat16")


FOUND = """
import torch
from test_precision import CUDA, switches
from basins.precision import matmul_precision
{set}
before = switches()
for precision in ("float32", "tf32"):
    with matmul_precision(precision, CUDA, torch.float32):
        pass
    assert switches() == before, (precision, before, switches())

from test_rerun import some_tokens
from tiny_models import tiny_model
from basins import BasinScorer

# What comes out of it is the same, too: the model's own states are as the switch has them.
model = tiny_model("gpt2")
for path in ("core", "packed"):
    scores = BasinScorer(model, k=4, index="exact").score(model.run_with_cache(some_tokens())[1])
    assert {{search["searched_again"] for search in scores.settings["neighbor_search"].values()}} == {{0}}
    assert set(scores.settings["replay"]) == {{path}}, scores.settings["replay"]
    assert switches() == before, (precision, before, switches())
    import basins.selfcheck
    basins.selfcheck.has_known_parts = lambda model, layer: False
"""


@pytest.mark.parametrize(
    "how",
    [
        "torch.backends.cuda.matmul.allow_tf32 = True",
        "torch.set_float32_matmul_precision('medium')",
        "torch.set_float32_matmul_precision('highest')",
        "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
        "torch.backends.mkldnn.matmul.fp32_precision = 'bf16'",
        "torch.backends.fp32_precision = 'bf16'",
    ],
)
def test_whichever_switch_the_user_turned_is_as_found(how):
    """In a process of its own: PyTorch remembers which of its two ways was used."""
    if "fp32_precision" in how and not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        pytest.skip("this PyTorch has only the older switch")
    tests = str(__import__("pathlib").Path(__file__).parent)
    code = f"import sys; sys.path.insert(0, {tests!r})\n" + FOUND.format(set=how)
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("path", ["core", "packed"])
def test_bfloat16_changes_the_outputs_a_little_and_nothing_else(path, monkeypatch):
    if path == "packed":
        monkeypatch.setattr("basins.selfcheck.has_known_parts", lambda model, layer: False)
    model, tokens = tiny_model("gpt2"), some_tokens()
    exact = BasinScorer(model, k=4).score_tokens(tokens)
    low = BasinScorer(model, k=4, precision="bfloat16").score_tokens(tokens)
    assert low.settings["replay"] == {path: N_LAYERS}
    assert low.settings["replay_precision"] == low.settings["precision"] == "bfloat16"
    assert torch.equal(low.neighbor_ids, exact.neighbor_ids)
    # Packed replay reads the next layer off its own rows; the core leaves it to the model in any precision.
    assert torch.equal(low.var_in, exact.var_in) if path == "core" else torch.allclose(low.var_in, exact.var_in)
    assert low.var_out.dtype == torch.float32
    error = (low.var_out / exact.var_out).log().abs().nan_to_num(0)
    assert 1e-5 < float(error.max()) < 0.05


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_users_autocast_is_off_inside_and_on_afterwards(name):
    model, tokens = tiny_model(name), some_tokens()
    expected = BasinScorer(model, k=4).score_tokens(tokens)
    with torch.autocast("cpu", torch.bfloat16):
        found = BasinScorer(model, k=4).score_tokens(tokens)
        assert torch.is_autocast_enabled("cpu")
    assert torch.equal(found.neighbor_ids, expected.neighbor_ids)
    assert torch.equal(found.var_out, expected.var_out)
    assert found.settings["replay"] == expected.settings["replay"] == {"core": N_LAYERS}


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="this PyTorch has only the older switch")
def test_what_a_switch_inherits_it_goes_on_inheriting():
    """In a process of its own, see above."""
    code = """
import torch
from basins.precision import matmul_precision
torch.backends.fp32_precision = "bf16"
before = torch.backends.mkldnn.matmul.fp32_precision
with matmul_precision("float32", torch.device("cpu"), torch.float32):
    assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
assert torch.backends.mkldnn.matmul.fp32_precision == before
torch.backends.fp32_precision = "ieee"
assert torch.backends.mkldnn.matmul.fp32_precision != "bf16"
"""
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_the_next_layers_of_a_sweep_do_not_depend_on_the_precision():
    model, tokens = tiny_model("llama"), some_tokens()
    runs = [BasinScorer(model, k=4, precision=name).score_tokens(tokens) for name in ("float32", "bfloat16")]
    assert torch.equal(runs[0].neighbor_distances, runs[1].neighbor_distances)
    assert torch.equal(runs[0].lookup.var_out, runs[1].lookup.var_out)


def test_tf32_says_that_a_cpu_has_none():
    model, tokens = tiny_model("gpt2"), some_tokens()
    plain = BasinScorer(model, k=4).score_tokens(tokens)
    asked = BasinScorer(model, k=4, precision="tf32").score_tokens(tokens)
    assert torch.equal(plain.var_out.nan_to_num(), asked.var_out.nan_to_num())
    assert asked.settings["precision"] == "tf32"
    assert asked.settings["replay_precision"] == "float32: the cpu has no TF32"
    assert plain.settings["replay_precision"] == "float32"


def test_other_models_run_in_their_own_precision():
    model, tokens = tiny_model("gpt2", dtype=torch.float64), some_tokens()
    plain = BasinScorer(model, k=4).score_tokens(tokens)
    asked = BasinScorer(model, k=4, precision="bfloat16").score_tokens(tokens)
    assert torch.equal(plain.var_out.nan_to_num(), asked.var_out.nan_to_num())
    assert asked.settings["replay_precision"].startswith("float64: the model's own")
    assert effective_precision("tf32", CUDA, torch.float32) == "tf32"


def test_an_unknown_precision_is_refused():
    with pytest.raises(
        BasinsError, match=r"precision='half' is not an option\. Possible: 'float32', 'tf32', 'bfloat16'"
    ):
        BasinScorer(tiny_model("gpt2"), precision="half")
