"""Bad settings, caches, tokens and masks: each is refused, and the message says what was given and what to do."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from block_models import model_of
from test_scorer import cached, tokens_and_mask

from basins import BasinScorer, BasinScores, BasinsError
from basins.settings import ScorerSettings


def refused(pattern):
    return pytest.raises(BasinsError, match=pattern)


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"k": 1}, r"k=1 is too small: it must be at least 2; with k=1 the variance of one neighbour is 0"),
        ({"k": 0}, r"k=0 is too small"),
        ({"k": -3}, r"k=-3 is too small"),
        ({"k": True}, r"k=True must be a whole number of at least 2"),
        ({"k": 5.0}, r"k=5.0 must be a whole number of at least 2"),
        ({"k": "15"}, r"k='15' must be a whole number"),
        ({"k": None}, r"k=None must be a whole number"),
        ({"method": "replay"}, r"method='replay' is not an option. Possible: 'rerun', 'lookup'\."),
        ({"method": None}, r"method=None is not an option. Possible: 'rerun', 'lookup'\."),
        ({"neighbors": "all"}, r"neighbors='all' .* Possible: 'same_layer', 'cross_sequence', 'same_token'\."),
        ({"metric": "dot"}, r"metric='dot' is not an option. Possible: 'euclidean', 'cosine'\."),
        (
            {"index": "hnsw"},
            r"index='hnsw' is not an option. Possible: 'auto', 'exact', 'half', 'faiss', 'faiss-ivf'\.",
        ),
        ({"index": ["exact"]}, r"index=\['exact'\] is not an option"),
        (
            {"dtype": "float16"},
            r"dtype='float16' is not an option. Possible: 'float32', 'float64'\. .*float32 or better",
        ),
        ({"dtype": torch.bfloat16}, r"dtype=torch.bfloat16 is not an option"),
        ({"normalize": 1}, r"normalize=1 is not an option. Possible: True, False\."),
        ({"include_self": "yes"}, r"include_self='yes' is not an option. Possible: True, False\."),
        ({"exclude_first": -1}, r"exclude_first=-1 is too small: it must be at least 0; it counts positions"),
        ({"exclude_first": True}, r"exclude_first=True must be a whole number"),
        ({"batch_size": 0}, r"batch_size=0 is too small: it must be at least 1; it counts sequences"),
        ({"batch_size": 2.5}, r"batch_size=2.5 must be a whole number"),
        ({"seed": -1}, r"seed=-1 is too small"),
        ({"seed": 0.5}, r"seed=0.5 must be a whole number"),
        ({"shrink": 0}, r"shrink=0 is out of range: it must be in \(0, 1\]"),
        ({"shrink": 1.5}, r"shrink=1.5 is out of range"),
        ({"shrink": float("nan")}, r"shrink=nan is out of range"),
        ({"shrink": True}, r"shrink=True is out of range"),
        (
            {"shrink": 0.5, "method": "lookup"},
            r'shrink=0.5 needs method="rerun": method="lookup" runs no block.*Pass shr',
        ),
        ({"eps": 0}, r"eps=0 is out of range: it must be positive, because V_out may be 0"),
        ({"eps": -1e-10}, r"eps=-1e-10 is out of range"),
        ({"eps": float("inf")}, r"eps=inf is out of range"),
        ({"eps": float("nan")}, r"eps=nan is out of range"),
        ({"eps": "small"}, r"eps='small' is out of range"),
    ],
    ids=str,
)
def test_settings(pocket_mini, options, pattern):
    with refused(pattern):
        BasinScorer(pocket_mini, **options)
    with refused(pattern):
        ScorerSettings(**options)


def test_settings_are_keyword_only(pocket_mini):
    with pytest.raises(TypeError):
        BasinScorer(pocket_mini, 15)  # pyright: ignore[reportCallIssue]
    with pytest.raises(TypeError, match="neighbours"):
        BasinScorer(pocket_mini, neighbours="same_layer")  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize(
    "options",
    [
        {"k": np.int64(3)},
        {"k": torch.tensor(3)},
        {"seed": np.int32(1), "exclude_first": np.int64(1), "batch_size": np.int64(2)},
        {"shrink": np.float64(0.5)},
        {"eps": np.float32(1e-10)},
        {"normalize": np.bool_(True)},
        {"dtype": np.dtype("float64")},
    ],
    ids=str,
)
def test_numbers_from_numpy_and_torch_score_and_save(pocket_mini, options, tmp_path):
    """What is accepted works to the end; what would not is refused at the start."""
    try:
        scorer = BasinScorer(pocket_mini, **{"k": 3, **options})
    except BasinsError:
        return
    folder = scorer.score_tokens(tokens_and_mask()[0]).save(tmp_path / "scores")
    assert BasinScores.load(folder).settings["k"] == 3


@pytest.mark.parametrize(
    ("model", "pattern"),
    [
        (
            object(),
            r"object is not a TransformerLens model \(it has no cfg, hook_dict, run_with_cache, run_with_hooks\)",
        ),
        (
            torch.nn.Linear(2, 2),
            r"Linear is not a TransformerLens model .*basins.load_model\(model, tokenizer=tokenizer\)",
        ),
        (None, r"NoneType is not a TransformerLens model"),
    ],
    ids=["object", "module", "none"],
)
def test_models(model, pattern):
    with refused(pattern):
        BasinScorer(model)


@pytest.mark.parametrize("kind", ["bridge of t5", "is_encoder_decoder", "no blocks"])
def test_models_without_one_residual_stream(kind):
    model = model_of(torch.eye(4), lambda x: x)
    if kind == "bridge of t5":
        model.encoder_blocks, model.decoder_blocks = model.blocks, torch.nn.ModuleList()
    elif kind == "is_encoder_decoder":
        model.cfg.is_encoder_decoder = True
    else:
        model = SimpleNamespace(cfg=model.cfg, hook_dict={}, run_with_cache=None, run_with_hooks=None)
    with refused(r"hand-made .*(is an encoder-decoder|has no list of blocks).* Possible: decoder-only language models"):
        BasinScorer(model)


@pytest.fixture
def batch(pocket_mini):
    tokens, mask = tokens_and_mask("right")
    return tokens, mask, dict(cached(pocket_mini, tokens, mask).items())


@pytest.mark.parametrize(
    ("cache", "pattern"),
    [
        (torch.zeros(2, 3, 128), r"a cache is needed, got Tensor. Pass the second value of model.run_with_cache"),
        ("a text", r"a cache is needed, got str.*texts go to score_texts\(\)"),
        (None, r"a cache is needed, got NoneType"),
        ({}, r"this cache holds no residual streams \(it holds nothing, \.\.\.\)"),
        (
            {"blocks.0.attn.hook_z": torch.zeros(1, 2, 3)},
            r"holds no residual streams \(it holds blocks.0.attn.hook_z, .*drop names_filter, or pass names_filter=",
        ),
        (
            {"blocks.0.hook_resid_pre": torch.zeros(2, 9, 512)},
            r'cache\["blocks.0.hook_resid_pre"\] has d_model=512 but the model has 128. Was the cache made with ano',
        ),
        (
            {"blocks.0.hook_resid_pre": torch.zeros(2, 9, 128), "blocks.11.hook_resid_pre": torch.zeros(2, 9, 128)},
            r"the cache has layer 11 but pocket-mini has 4 blocks. Was the cache made with another model\?",
        ),
        (
            {"blocks.0.hook_resid_pre": torch.zeros(2, 9, 128), "blocks.1.hook_resid_pre": torch.zeros(2, 8, 128)},
            r'cache\["blocks.1.hook_resid_pre"\] has shape \(2, 8, 128\) but other layers have \(2, 9\).*pos_slice',
        ),
    ],
    ids=["tensor", "text", "none", "empty", "filtered", "d_model", "layers", "shapes"],
)
def test_caches(pocket_mini, cache, pattern):
    with refused(pattern):
        BasinScorer(pocket_mini, k=3).score(cache)
    if not isinstance(cache, str):
        with refused(pattern.replace(r"score\(\)", r"(score|fit)\(\)")):
            BasinScorer(pocket_mini, k=3).fit(cache).score_tokens(tokens_and_mask()[0])


def test_a_real_cache_of_another_model(pocket_mini, tiny, pocket):
    tokens, mask = tokens_and_mask()
    with refused(r"has d_model=32 but the model has 128"):
        BasinScorer(pocket_mini, k=3).score(cached(tiny("gpt2"), tokens, mask))
    with refused(r"the cache has layer 7 but pocket-mini has 4 blocks"):
        BasinScorer(pocket_mini, k=3).fit(cached(pocket, tokens, mask))
    with refused(r"re-running block 0 on the cached states does not give the cached layer 1.*other weights"):
        BasinScorer(tiny("llama"), k=3).score(cached(tiny("gpt_neox"), tokens, mask))


def test_a_layer_that_is_not_in_the_cache(pocket_mini, batch):
    cache = {name: value for name, value in batch[2].items() if name.startswith(("blocks.0", "blocks.2"))}
    assert BasinScorer(pocket_mini, k=3).score(cache, layers=[0, 2], attention_mask=batch[1]).layers == (0, 2)
    for name in [name for name in cache if "post" in name]:
        del cache[name]
    with refused(r"layer=1 is not in the cache. Its residual streams are there for layers 0, 2: pass layers=\.\.\. "):
        BasinScorer(pocket_mini, k=3).score(cache)


@pytest.mark.parametrize(
    ("layers", "pattern"),
    [
        (4, r"layer=4 is out of range: this model has 4 blocks, numbered 0 to 3. For the last block pass layer=-1\."),
        (-5, r"layer=-5 is out of range"),
        ([0, 12], r"layer=12 is out of range"),
        ([], r"layers is empty. Pass transitions 0 to 3, or None for all of them"),
        (True, r"layer=True must be a whole number"),
        (1.0, r"layer=1.0 must be a whole number"),
        ("all", r"layers?='?a.* must be a whole number"),
    ],
    ids=str,
)
def test_layers(pocket_mini, batch, layers, pattern):
    with refused(pattern):
        BasinScorer(pocket_mini, k=3).score(batch[2], layers=layers)
    with refused(pattern):
        BasinScorer(pocket_mini, k=3).score_tokens(batch[0], layers=layers)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("method", ["rerun", "lookup"])
def test_states_that_are_not_finite(pocket_mini, batch, bad, method):
    tokens, mask, cache = batch
    cache["blocks.2.hook_resid_pre"] = cache["blocks.2.hook_resid_pre"].clone()
    cache["blocks.2.hook_resid_pre"][1, 4, 7] = cache["blocks.2.hook_resid_pre"][3, 0, 0] = bad
    pattern = r"layer 2 has NaN or infinite states at 2 of 32 tokens, the first at sequence 1, position 4\. .*bfloat16"
    with refused(pattern):
        BasinScorer(pocket_mini, k=3, method=method).score(cache, tokens, mask)
    with refused(pattern):
        BasinScorer(pocket_mini, k=3, method=method).fit(cache, tokens, mask).score_tokens(tokens, mask)
    assert BasinScorer(pocket_mini, k=3, method=method).score(cache, tokens, mask, layers=0).layers == (0,)


def test_a_block_that_overflows_in_a_sweep():
    """Float16 in the middle of a model: the block where it first shows is named."""
    model = model_of(torch.randn(12, 4), lambda x: x, lambda x: x * 1e30, lambda x: x * 1e30, lambda x: x)
    with refused(r"re-running block 1 gives NaN or infinite variances for 12 of 12 tokens"):
        BasinScorer(model, k=3).score_tokens(torch.arange(12)[None])


@pytest.mark.parametrize("method", ["rerun", "lookup"])
def test_outputs_that_are_not_finite(pocket_mini, batch, method):
    """The last layer is nobody's input, but it is looked up."""
    tokens, mask, cache = batch
    cache["blocks.3.hook_resid_post"] = cache["blocks.3.hook_resid_post"].clone()
    cache["blocks.3.hook_resid_post"][0, 2, 5] = float("nan")
    with refused(r"(layer 4|next layer|layer 3).*(NaN|infinite|off by)"):
        BasinScorer(pocket_mini, k=3, method=method).score(cache, tokens, mask)


def test_k_too_large(pocket_mini, batch):
    tokens, mask, cache = batch
    assert BasinScorer(pocket_mini, k=31).score(cache, tokens, mask).values.isfinite().sum() == 4 * 32
    with refused(r"k=32 needs at least 33 usable states and this call has 32 .*Pass a smaller k or more tokens"):
        BasinScorer(pocket_mini, k=32).score(cache, tokens, mask)
    with refused(r"k=30 needs at least 31 usable states and this call has 28 \(padding and the first 1 positions are"):
        BasinScorer(pocket_mini, k=30, exclude_first=1).score(cache, tokens, mask)
    with refused(r"k=33 needs at least 33 usable states and the bank has 32"):
        BasinScorer(pocket_mini, k=33).fit(cache, tokens, mask)
    assert BasinScorer(pocket_mini, k=32).fit(cache, tokens, mask).score_tokens(tokens[:1]).values.isfinite().all()
    with refused(r"no token has 29 neighbours under neighbors='cross_sequence': 32 usable tokens in 4 sequences"):
        BasinScorer(pocket_mini, k=29, neighbors="cross_sequence").score(cache, tokens, mask)
