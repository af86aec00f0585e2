"""`BasinScorer`: a model and its settings in, `BasinScores` out. Orchestration only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from basins.activations import CacheStates, States, check_finite, check_mask, check_tokens, embed_all_layers
from basins.attributed import Attribution
from basins.attribution import attribute
from basins.block_calls import dummy_tokens
from basins.corpus import TokenBatch, check_room, tokenize
from basins.decomposition import Decomposition, decompose
from basins.errors import BasinsError
from basins.fitted_bank import FittedBank
from basins.layer_loop import measure_layers
from basins.lens import as_found, check_layers, check_model, measuring_dtype, model_name
from basins.memory import Memory
from basins.moments import memory_of_call
from basins.neighbors import TokenTable, table_of
from basins.results import assemble, provenance
from basins.scores import BasinScores
from basins.selfcheck import SelfCheck
from basins.settings import ScorerSettings, whole
from basins.sources import CacheSource, Source, SweepSource, plan_batch, record_chunks
from basins.state_store import MEMORY_BUDGET


class BasinScorer:
    """Scores how much a model's blocks compress the neighbourhood of every token.

    For each token at each layer the k nearest states of the residual stream are put into the token's place and pushed
    through the next block, which is really re-run in the token's own context (`method="rerun"`), or their cached
    outputs are looked up (`"lookup"`). See `BasinScores` for what comes out.

    Args:
        model: a TransformerLens model (`basins.load_model`, a TransformerBridge or a HookedTransformer).
        k: neighbours a token, at least 2.
        method: "rerun" or "lookup".
        neighbors: "same_layer" (all tokens of the bank), "cross_sequence" (never the token's own sequence) or
            "same_token" (only the same token id; needs tokens).
        metric: "euclidean" or "cosine".
        normalize: True divides every state by its L2 norm before distances and variances are taken; what is pushed
            through the block stays as it is.
        include_self: True counts the token itself among its k neighbours, as some k-NN code does.
        exclude_first: leave the first n real positions of each sequence out, as neighbours and as queries.
        shrink: t in (0, 1]; neighbours x_j are moved to x + t (x_j - x) before the block is re-run; towards 0 the
            relative score tends to ln(tr S / tr J S J^T).
        eps: added to variances before logarithms.
        index: "auto", "exact" (torch), "half" (exact too: float16 products and a proof, for GPUs), "faiss" (exact),
            "faiss-ivf" (approximate, and the result says so).
        dtype: of distances and variances, "float32" or "float64"; None takes float64 for float64 models, else float32.
            Blocks run in the model's own dtype.
        precision: of the matrix products with which neighbours are re-run in a float32 model: "float32", "tf32" (GPUs
            only) or "bfloat16". The model's own states, distances and variances are as without it.
        batch_size: sequences in one forward pass or re-run; None plans it. Results do not depend on it.
        memory_budget: bytes that temporaries may take on the device, beside weights, states and results; None: half of
            what is free there, on a CPU at most 4 GiB. Results do not depend on it.
        seed: for every random choice.
    """

    def __init__(
        self,
        model: Any,
        *,
        k: int = 15,
        method: str = "rerun",
        neighbors: str = "same_layer",
        metric: str = "euclidean",
        normalize: bool = False,
        include_self: bool = False,
        exclude_first: int = 0,
        shrink: float = 1.0,
        eps: float = 1e-10,
        index: str = "auto",
        dtype: str | torch.dtype | None = None,
        precision: str = "float32",
        batch_size: int | None = None,
        memory_budget: int | None = None,
        seed: int = 0,
    ) -> None:
        check_model(model)
        self.model = model
        self.settings = ScorerSettings(
            k=k, method=method, neighbors=neighbors, metric=metric, normalize=normalize, include_self=include_self,
            exclude_first=exclude_first, shrink=shrink, eps=eps, index=index, dtype=dtype,  # type: ignore[arg-type]
            precision=precision, batch_size=batch_size, memory_budget=memory_budget, seed=seed,
        )  # fmt: skip
        self._bank: FittedBank | None = None
        self._self_check = SelfCheck(model, self.settings.seed)

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in self.settings.as_dict().items())
        return f"BasinScorer({model_name(self.model)}, {settings})"

    @property
    def dtype(self) -> torch.dtype:
        """In which distances and variances are computed."""
        if self.settings.dtype is not None:
            return getattr(torch, self.settings.dtype)
        return measuring_dtype(self.model)

    @property
    def fitted(self) -> bool:
        """Whether neighbours come from a reference bank."""
        return self._bank is not None

    def score(
        self,
        cache: Any,
        tokens: Int[Tensor, "batch pos"] | None = None,
        attention_mask: Int[Tensor, "batch pos"] | None = None,
        layers: int | Iterable[int] | None = None,
    ) -> BasinScores:
        """Score every token of a cache.

        Args:
            cache: holds `blocks.L.hook_resid_pre` (and `hook_resid_post`) of one run, as `run_with_cache` gives it.
            tokens: the ids the cache was made with; needed for `neighbors="same_token"` and for token labels.
            attention_mask: 1 for real tokens, 0 for padding, as it was passed to the model; None: no padding.
            layers: transitions to score; None: all.

        Raises BasinsError when the cache, the mask or the settings do not fit, or when re-running a block on the cached
        states does not give the cached next layer.
        """
        wanted = check_layers(self.model, layers)
        states = CacheStates(cache, self.model)
        ids = check_tokens(tokens, states.shape)
        mask = check_mask(attention_mask, states.shape)
        for layer in wanted:
            check_finite(states.layer(layer), mask.bool(), layer)
        memory = memory_of_call(self.model, states.shape, self.settings)

        def prepared() -> CacheSource:
            source = CacheSource(states, mask, self.model, self.dtype)
            if self.settings.method == "rerun":
                given = ids if ids is not None else dummy_tokens(self.model, *states.shape).cpu()
                source.paths = self._self_check.paths(given, mask, wanted, lambda layer, row: states.layer(layer)[row])
                source.chunks = record_chunks(self.model, given, mask, wanted, self.settings.batch_size)
            return source

        with as_found(self.model):
            source = memory.attempt(wanted[0], prepared)
            return self._score(source, ids, mask, wanted, None, memory)

    def score_texts(
        self,
        texts: str | Sequence[str] | TokenBatch,
        *,
        layers: int | Iterable[int] | None = None,
        max_length: int | None = None,
        long_texts: str = "error",
        prepend_bos: bool | None = None,
        memory_budget: int | None = None,
    ) -> BasinScores:
        """Score whole texts layer by layer, without a cache: memory is two layers of states, whatever the depth.

        Texts are tokenised as `model.to_tokens` does it (see `basins.corpus.tokenize`). A text longer than the context
        is an error unless `long_texts` is "truncate" or "split". States stay on the model's GPU if they fit there; of
        the host's memory they take `memory_budget` bytes at most (None: as much as the scorer's, or 4 GiB), and beyond
        that go to a mapped file.
        """
        if isinstance(texts, TokenBatch):
            batch = texts
        else:
            options = {"max_length": max_length, "long_texts": long_texts, "prepend_bos": prepend_bos}
            if not isinstance(texts, (str, Sequence)):
                raise BasinsError(f"texts must be a list of strings, got {type(texts).__name__}.")
            batch = tokenize(self.model, [texts] if isinstance(texts, str) else list(texts), **options)
        return self.score_tokens(
            batch.tokens,
            batch.attention_mask,
            layers=layers,
            memory_budget=memory_budget,
            tokenization=batch.tokenization | {"text_ids": list(batch.text_ids)},
        )

    def score_tokens(
        self,
        tokens: Int[Tensor, "batch pos"],
        attention_mask: Int[Tensor, "batch pos"] | None = None,
        *,
        layers: int | Iterable[int] | None = None,
        memory_budget: int | None = None,
        tokenization: dict[str, Any] | None = None,
    ) -> BasinScores:
        """`score_texts` of token ids."""
        wanted = check_layers(self.model, layers)
        ids = check_tokens(tokens, None)
        if ids is None:
            raise BasinsError("tokens is None. Pass token ids, one row a sequence; texts go to score_texts().")
        check_room(self.model, ids)
        mask = check_mask(attention_mask, (ids.shape[0], ids.shape[1]))
        if memory_budget is not None:
            whole("memory_budget", memory_budget, 0, "it counts bytes of states that stay in main memory.")
        memory = memory_of_call(self.model, (ids.shape[0], ids.shape[1]), self.settings)
        rerun, size = self.settings.method == "rerun", self.settings.batch_size
        given = [memory_budget, self.settings.memory_budget, MEMORY_BUDGET]
        budget = next(n_bytes for n_bytes in given if n_bytes is not None)

        def prepared() -> SweepSource:
            source = SweepSource(self.model, ids, mask, wanted, self.dtype, size, budget, rerun)
            source.paths = self._self_check.paths(ids, mask, tuple(range(wanted[0], wanted[-1] + 1)))
            return source

        with as_found(self.model):
            source = memory.attempt(wanted[0], prepared)
            return self._score(source, ids, mask, wanted, tokenization, memory)

    def fit(
        self,
        bank: Any,
        tokens: Int[Tensor, "batch pos"] | None = None,
        attention_mask: Int[Tensor, "batch pos"] | None = None,
        **tokenization: Any,
    ) -> BasinScorer:
        """From now on, look for neighbours in this reference bank: a cache, texts, or a TokenBatch. Returns self.

        Scored tokens are not in the bank, so nothing is left out as "the token itself" or as its own sequence. Keyword
        arguments for texts are those of `basins.corpus.tokenize`.
        """
        if isinstance(bank, (str, list, tuple)):
            bank = tokenize(self.model, [bank] if isinstance(bank, str) else list(bank), **tokenization)
        if isinstance(bank, TokenBatch):
            tokens, attention_mask = ids, real = bank.tokens, bank.attention_mask

            def embedded() -> States:
                size = self.settings.batch_size or plan_batch(self.model, ids.shape[1])
                return embed_all_layers(self.model, ids, real, size, self.dtype)

            with as_found(self.model):
                states: States = memory_of_call(self.model, None, self.settings).attempt(0, embedded)
        else:
            states = CacheStates(bank, self.model)
        mask = check_mask(attention_mask, states.shape)
        table = table_of(mask, check_tokens(tokens, states.shape), self.settings.exclude_first)
        self._enough(table, self.settings.k, "the bank")
        self._bank = FittedBank(states, table, {"sequences": states.shape[0], "states": int(table.usable.sum())})
        return self

    def attribute(
        self,
        tokens: Int[Tensor, "batch pos"],
        attention_mask: Int[Tensor, "batch pos"] | None = None,
        *,
        method: str,
        layers: int | Iterable[int] | None = None,
        **options: Any,
    ) -> Attribution:
        """How much every token matters; methods and their options are those of `basins.attribution.attribute`.

        Mean states are the fitted bank's, where `fit` was called.
        """
        own = {name: getattr(self.settings, name) for name in ("exclude_first", "batch_size", "seed")}
        own |= {"dtype": self.dtype, "bank_means": self._bank.means if self._bank is not None else None} | options
        return attribute(self.model, tokens, attention_mask, method=method, layers=layers, **own)

    def decompose(self, cache: Any, *given: Any, **options: Any) -> Decomposition:
        """Map or context? Takes `score`'s arguments, or token ids for the cache, and sample=64: `decomposition.py`."""
        return decompose(self.model, self.settings, cache, *given, dtype=self.dtype, fitted=self.fitted, **options)

    def _score(
        self,
        source: Source,
        tokens: Int[Tensor, "batch pos"] | None,
        mask: Int[Tensor, "batch pos"],
        wanted: tuple[int, ...],
        tokenization: dict[str, Any] | None,
        memory: Memory,
    ) -> BasinScores:
        table = table_of(mask, tokens, self.settings.exclude_first)
        if self._bank is None:
            self._enough(table, self.settings.k + 1, "this call")
        bank_table = table if self._bank is None else self._bank.table
        if self.settings.neighbors == "same_token" and (table.token is None or bank_table.token is None):
            whose = "the scored cache" if table.token is None else "the fitted bank"
            raise BasinsError(f'neighbors="same_token" needs the token ids of {whose}. Pass tokens=... with the cache.')
        measured = measure_layers(self.model, source, mask, table, self._bank, self.settings, wanted, memory)
        about = self._bank.about if self._bank is not None else None
        rerun = self.settings.method == "rerun"
        used = {layer: source.paths[layer] for layer in wanted if rerun}
        settings = provenance(self.model, self.settings, self.dtype, used, about, tokenization)
        settings["memory_halved_at"] = memory.halved_at
        return assemble(measured, table, mask, tokens, settings, self.model)

    def _enough(self, table: TokenTable, needed: int, where: str) -> None:
        usable = int(table.usable.sum())
        if usable < needed:
            raise BasinsError(
                f"k={self.settings.k} needs at least {needed} usable states and {where} has {usable} (padding and the "
                f"first {self.settings.exclude_first} positions are left out). Pass a smaller k or more tokens."
            )
