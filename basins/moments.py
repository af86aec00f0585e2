"""What is alive together in each stage of a call: its temporaries, and what is there throughout."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from basins import costs
from basins.costs import Tensors
from basins.errors import BasinsError
from basins.indexes import uses_half
from basins.jobs import Job
from basins.lens import block_device
from basins.memory import Budget, Memory, in_words
from basins.settings import ScorerSettings
from basins.shapes import shape_of


@dataclass(frozen=True)
class Moment:
    """One stage at its worst, in bytes by name: on the device, and in main memory beside a GPU.

    `temporary`: of the device's bytes, what the stage itself makes and drops.
    """

    stage: str
    device: Tensors
    host: Tensors
    temporary: int

    @property
    def device_bytes(self) -> int:
        return int(sum(self.device.values()))

    @property
    def host_bytes(self) -> int:
        return int(sum(self.host.values()))


def moments(job: Job) -> tuple[Moment, ...]:
    """In the order in which they come, at the last of the layers: by then the results of all others are there."""
    weights = {"weights": float(job.shape.weight_bytes)}
    recorded, results = costs.recorded(job), costs.results(job)
    before = {name: n_bytes * (job.layers - 1) / job.layers for name, n_bytes in results.items()}
    one, two = {"layer L": job.states_bytes}, {"layers L and L+1": 2 * job.states_bytes}
    if job.on_disk:
        one, two = {}, {}

    found = []

    def moment(
        stage: str, own: Tensors, states: Tensors, copies: int, kept: Tensors, host: Tensors | None = None
    ) -> None:
        device = weights | recorded | kept | own
        temporary = int(sum(own.values()))
        if job.on_cpu:
            found.append(Moment(stage, device | states, {}, temporary))
        elif job.states_on_gpu:
            found.append(Moment(stage, device | states, host or {}, temporary))
        else:
            there = {"copies of layer L": copies * job.states_bytes} if copies else {}
            found.append(Moment(stage, device | there, states | (host or {}), temporary))

    moment("recording how blocks are called", costs.recording(job), one, 0, {})
    moment("self-check", costs.self_check(job), one, 0, {})
    # A look-up has the next layer before it searches; a GPU has a copy of the layer in the loop and one in the search.
    while_searching = one if job.rerun else two
    for stage, tensors in costs.search(job):
        moment(stage, tensors, while_searching, 2, before)
    moment("counting distinct states", costs.distinct(job), while_searching, 2, results)
    if job.projects_ahead:
        moment("projecting ahead", costs.ahead(job), two, 3, results)
    if job.rerun:
        moment("neighbours through the block", costs.patched(job), two, 3, results)
    moment("looking up", costs.looked_up(job), two, 2, results)
    stacked = {f"{name}, stacked": n_bytes for name, n_bytes in results.items()} | costs.scores(job)
    # Not temporaries: they are what the caller gets.
    moment("putting results together", {}, two, 0, results, results | stacked)
    if job.on_cpu:
        last = found.pop()
        found.append(Moment(last.stage, last.device | stacked, {}, 0))
    return tuple(found)


def check_budget(job: Job) -> None:
    """Raise BasinsError where the temporaries of a call cannot be as small as its budget."""
    assert job.budget is not None

    def needed(n_bytes: int) -> Moment:
        return max(moments(replace(job, budget=Budget(n_bytes))), key=lambda moment: moment.temporary)

    given = enough = job.budget.n_bytes
    worst = needed(given)
    if worst.temporary <= given:
        return
    while needed(enough).temporary > enough:
        enough = int(enough * 1.05) + 1
    raise BasinsError(
        f"memory_budget={given} bytes ({in_words(given)}) is too small: the temporaries of {job.n:,} tokens in "
        f"sequences of {job.length} take {in_words(worst.temporary)} at the least ({worst.stage}). Pass at least "
        f"{enough} ({in_words(enough)}), or fewer tokens at a time, shorter sequences, or batch_size=1."
    )


def memory_of_call(model: Any, shape: tuple[int, int] | None, settings: ScorerSettings) -> Memory:
    """Of scoring that many sequences and positions (None: of nothing yet) with a loaded model.

    Raises BasinsError where the settings' budget is too small for it.
    """
    device, given = block_device(model, 0), settings.memory_budget
    memory = Memory.of(given, device)
    if given is not None and shape is not None:
        half = uses_half(settings, shape[0] * shape[1], device)
        check_budget(Job(shape_of(model), *shape, settings, device, memory.budget, half=half))
    return memory
