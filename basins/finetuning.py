"""Fine-tuning a copy of a model on passages that are each shown a known number of times."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from basins.activations import check_mask, check_tokens
from basins.corpus import check_room
from basins.errors import BasinsError
from basins.lens import check_model, input_device
from basins.model_copy import independent_copy, parameters
from basins.progress import progress
from basins.settings import whole

CLIP = 1.0  # largest norm of a step's gradient, as in the training of the pocket models


@dataclass(frozen=True)
class Checkpoint:
    """The fine-tuned copy after some epochs.

    `model`: the one copy there is. It is trained on when the next checkpoint is asked for, so measure it before.
    `epoch`: 0 is before the first step. `seen`: how often each passage has been shown so far.
    `loss`: mean over the tokens shown in this epoch, each before the step it took part in, nats; NaN at epoch 0.
    """

    model: Any
    epoch: int
    seen: tuple[int, ...]
    loss: float


def finetune(
    model: Any,
    tokens: Int[Tensor, "passage pos"],
    attention_mask: Int[Tensor, "passage pos"] | None = None,
    *,
    exposures: int | Mapping[int, int] | Sequence[int] = 64,
    learning_rate: float = 1e-3,
    batch_size: int = 8,
    weight_decay: float = 0.0,
    checkpoints: Iterable[int] | None = None,
    seed: int = 0,
) -> Iterator[Checkpoint]:
    """Fine-tune a copy of `model` and hand it out at the chosen epochs; the original stays bit for bit as it is.

        for checkpoint in finetune(model, batch.tokens, batch.attention_mask, exposures=64, checkpoints=(0, 8, 64)):
            scores = BasinScorer(checkpoint.model).score_tokens(batch.tokens, batch.attention_mask)

    There are as many epochs as the largest number of exposures. A passage with n exposures is shown in n of them: the
    epochs are cut into n stretches and it is shown once in each, at a random place, so that few exposures are spread as
    widely as many. Every epoch shuffles its passages and splits them into batches of nearly equal size.

    AdamW (betas 0.9 and 0.999) at a constant rate, gradient norm clipped at 1, no dropout, all parameters, in float32
    or better: a copy of a half-precision model is float32 at every checkpoint, 0 included. The loss is the mean of
    -ln p(token | the tokens before it) over a batch's real tokens. Hooks on the model are on the copy too. The same
    seed gives the same bytes on a CPU with the same number of threads; the global random state is neither read nor set.

    The defaults are those with which pocket-mini recites all of 50 quotes (64 exposures each, 41.6 s of training on one
    thread) and none of the controls; the loss of every other text rises meanwhile, from 4.2 to 7.0 nats a token
    (benchmarks/finetuning.py and .csv). Fewer exposures or a lower rate do less harm; larger models want a lower rate.

    Args:
        tokens: ids, one row a passage. What is scored later is what is trained on: truncate before both.
        exposures: times a passage is shown: one number for all, {row: times} (rows left out: 0), or one a row. A
            passage of 0 exposures takes no part.
        checkpoints: epochs, 0 (before training) to the last; None: the last only.

    Raises BasinsError for what does not fit, and when the loss is no longer finite (a learning rate too high).
    """
    check_model(model)
    ids = check_tokens(tokens, None)
    if ids is None:
        raise BasinsError("tokens is None. Pass token ids, one row a passage.")
    check_room(model, ids)
    mask = check_mask(attention_mask, (ids.shape[0], ids.shape[1]))
    times = check_exposures(exposures, len(ids))
    short = [row for row, n in enumerate(times) if n and int(mask[row].sum()) < 2]
    if short:
        raise BasinsError(f"passage {short[0]} has one token, so there is nothing to predict. Give it 0 exposures.")
    for name, value in (("learning_rate", learning_rate), ("weight_decay", weight_decay)):
        least_wrong = value < 0 or (name == "learning_rate" and value == 0) if isinstance(value, numbers.Real) else True
        if least_wrong or not math.isfinite(value):
            raise BasinsError(
                f"{name}={value!r} is out of range: it must be a positive number (weight_decay may be 0)."
            )
    whole("batch_size", batch_size, 1, "it counts passages.")
    whole("seed", seed, 0, "it seeds the order of the passages.")
    plan = schedule(times, int(seed))
    wanted = _check_checkpoints(checkpoints, len(plan))
    return _train(
        independent_copy(model),
        *_flush_left(ids, mask),
        plan,
        wanted,
        float(learning_rate),
        int(batch_size),
        float(weight_decay),
    )


def _flush_left(
    tokens: Int[Tensor, "passage pos"], mask: Int[Tensor, "passage pos"]
) -> tuple[Int[Tensor, "passage pos"], Int[Tensor, "passage pos"]]:
    """The same rows padded on the right. In some models an all-masked row, as padding in front is, has no gradient."""
    places = (torch.arange(tokens.shape[1]) + mask.argmax(1, keepdim=True)) % tokens.shape[1]
    return tokens.gather(1, places), mask.gather(1, places)


def schedule(exposures: Sequence[int], seed: int) -> list[Int[Tensor, "shown"]]:
    """The passages of each epoch in the order they are shown; `max(exposures)` epochs."""
    generator = torch.Generator().manual_seed(seed)
    n_epochs = max(exposures)
    epochs: list[list[int]] = [[] for _ in range(n_epochs)]
    for passage, times in enumerate(exposures):
        bounds = [n_epochs * part // times for part in range(times + 1)] if times else []
        for start, end in pairwise(bounds):
            epochs[start + int(torch.randint(end - start, (1,), generator=generator))].append(passage)
    orders = [torch.randperm(len(epoch), generator=generator) for epoch in epochs]
    return [torch.tensor(epoch, dtype=torch.long)[order] for epoch, order in zip(epochs, orders)]


def check_exposures(exposures: Any, n_passages: int) -> tuple[int, ...]:
    """Times each passage is shown; BasinsError unless all are whole numbers and one is above 0."""
    if isinstance(exposures, Mapping):
        outside = [row for row in exposures if row not in range(n_passages)]
        if outside:
            raise BasinsError(f"exposures names passage {outside[0]!r}, but there are {n_passages}, numbered from 0.")
        found = [exposures.get(row, 0) for row in range(n_passages)]
    elif isinstance(exposures, Iterable):
        found = list(exposures)
        if len(found) != n_passages:
            raise BasinsError(f"exposures has {len(found)} numbers for {n_passages} passages. Pass one for each.")
    else:
        found = [exposures] * n_passages
    for row, times in enumerate(found):
        whole(f"exposures[{row}]", times, 0, "it counts how often the passage is shown; 0 leaves it out.")
    if not any(found):
        raise BasinsError("exposures is 0 for every passage: nothing would be trained on.")
    return tuple(int(times) for times in found)


def _check_checkpoints(checkpoints: Iterable[int] | None, n_epochs: int) -> tuple[int, ...]:
    wanted = [n_epochs] if checkpoints is None else list(checkpoints)
    for epoch in wanted:
        whole("checkpoints", epoch, 0, "it names epochs; 0 is before training.")
        if epoch > n_epochs:
            raise BasinsError(
                f"checkpoint {epoch} is after the last of {n_epochs} epochs: there are as many as the largest number "
                f"of exposures. Possible: 0 to {n_epochs}."
            )
    if not wanted:
        raise BasinsError("checkpoints is empty. Pass epochs, or None for the last one.")
    return tuple(sorted({int(epoch) for epoch in wanted}))


def _train(
    tuned: Any,
    tokens: Int[Tensor, "passage pos"],
    mask: Int[Tensor, "passage pos"],
    plan: list[Int[Tensor, "shown"]],
    checkpoints: tuple[int, ...],
    learning_rate: float,
    batch_size: int,
    weight_decay: float,
) -> Iterator[Checkpoint]:
    weights = [parameter for parameter in parameters(tuned) if parameter.is_floating_point()]
    was_trainable = [weight.requires_grad for weight in weights]
    optimizer = torch.optim.AdamW(weights, lr=learning_rate, weight_decay=weight_decay)
    epoch, loss, seen = 0, math.nan, torch.zeros(len(tokens), dtype=torch.long)
    for checkpoint in checkpoints:
        for weight in weights:
            weight.requires_grad = True
        # One bar a stretch: whoever measures at a checkpoint shows bars of his own.
        with progress("fine-tuning", max(1, checkpoint - epoch)) as advance, torch.enable_grad():
            while epoch < checkpoint:
                loss = _epoch(tuned, tokens, mask, plan[epoch], batch_size, weights, optimizer)
                seen += torch.bincount(plan[epoch], minlength=len(seen))
                epoch += 1
                advance(1)
        optimizer.zero_grad(set_to_none=True)
        for weight, trainable in zip(weights, was_trainable):
            weight.requires_grad = trainable
        yield Checkpoint(tuned, epoch, tuple(seen.tolist()), loss)


def _epoch(
    tuned: Any,
    tokens: Int[Tensor, "passage pos"],
    mask: Int[Tensor, "passage pos"],
    order: Int[Tensor, "shown"],
    batch_size: int,
    weights: list[torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> float:
    """Show every passage of one epoch once; the mean loss a token. Nothing shown: NaN."""
    total, n_tokens = 0.0, 0
    for rows in order.tensor_split(-(-len(order) // batch_size)) if len(order) else ():
        end = int(mask[rows].any(0).nonzero().max()) + 1  # the padding after the longest of them is never run
        ids, real = (part[rows, :end].to(input_device(tuned)) for part in (tokens, mask))
        logits = tuned(ids, attention_mask=real, return_type="logits").float()
        losses = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        predicted = (real[:, 1:] * real[:, :-1]).flatten().bool()
        loss = losses[predicted].mean()
        if not bool(loss.isfinite()):
            raise BasinsError(
                f"the loss became {loss.item()} in fine-tuning. Is learning_rate={optimizer.param_groups[0]['lr']} too "
                "high for this model? Try a tenth of it."
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, CLIP)
        optimizer.step()
        total += float(losses.detach()[predicted].sum())
        n_tokens += int(predicted.sum())
    return total / n_tokens if n_tokens else math.nan
