"""What is alive together in each stage of a call: its temporaries, and what is there throughout."""

from __future__ import annotations

from dataclasses import dataclass

from basins import costs
from basins.costs import Job, Tensors


@dataclass(frozen=True)
class Moment:
    """One stage at its worst, in bytes by name: on the device, and in main memory beside a GPU."""

    stage: str
    device: Tensors
    host: Tensors

    @property
    def device_bytes(self) -> int:
        return int(sum(self.device.values()))

    @property
    def host_bytes(self) -> int:
        return int(sum(self.host.values()))


def moments(job: Job) -> tuple[Moment, ...]:
    """In the order in which they come, at the last of the layers: by then the results of all others are there."""
    weights = {"weights": float(job.shape.weight_bytes)}
    recorded, kept = costs.recorded(job), costs.results(job)
    before = {name: n_bytes * (job.layers - 1) / job.layers for name, n_bytes in kept.items()}
    one, two = {"layer L": job.states_bytes}, {"layers L and L+1": 2 * job.states_bytes}
    if job.on_disk:
        one, two = {}, {}

    found = []

    def moment(stage: str, states: Tensors, copies: int, *parts: Tensors, host: Tensors | None = None) -> None:
        device = dict(weights)
        for part in parts:
            device |= part
        if job.on_cpu:
            found.append(Moment(stage, device | states, {}))
        else:
            own = {"copies of layer L": copies * job.states_bytes} if copies else {}
            found.append(Moment(stage, device | own, states | (host or {})))

    moment("recording how blocks are called", one, 0, recorded, costs.forward_pass(job, job.sequences_at_once))
    moment("self-check", one, 0, recorded, costs.self_check(job))
    # A look-up has the next layer before it searches; a GPU has a copy of the layer in the loop and one in the search.
    while_searching = one if job.rerun else two
    for stage, tensors in costs.search(job):
        moment(stage, while_searching, 2, recorded, before, tensors)
    moment("counting distinct states", while_searching, 2, recorded, kept, costs.distinct(job))
    if job.projects_ahead:
        moment("projecting ahead", two, 3, recorded, kept, costs.ahead(job))
    if job.rerun:
        moment("neighbours through the block", two, 3, recorded, kept, costs.patched(job))
    moment("looking up", two, 2, recorded, kept, costs.looked_up(job))
    stacked = {f"{name}, stacked": n_bytes for name, n_bytes in kept.items()} | costs.scores(job)
    if job.on_cpu:
        moment("putting results together", two, 0, recorded, kept, stacked)
    else:
        moment("putting results together", two, 0, recorded, kept, host=kept | stacked)
    return tuple(found)
