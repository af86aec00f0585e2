"""Where the states of a corpus are kept between layers: on the GPU, in memory, or in mapped files."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from basins.errors import BasinsError
from basins.memory import free_on_gpu

# States larger than this go to a memory-mapped temporary file.
MEMORY_BUDGET = 4 * 2**30
HOST = torch.device("cpu")
# What states may take of a GPU's free memory: as much again is needed to search among them and to re-run their blocks.
SHARE_OF_GPU = 0.25


@dataclass
class StateStore:
    """States of several layers in memory, or in one memory-mapped file each when they outgrow the budget.

    On a GPU if they are computed there and leave room enough: then no layer travels to the host and back.
    """

    batch: int
    pos: int
    d_model: int
    dtype: torch.dtype
    n_stored: int
    budget: int = MEMORY_BUDGET
    device: torch.device = HOST
    tensors: dict[int, Tensor] = field(default_factory=dict)
    # Outputs of blocks whose way into the next layer is hooked: there the two differ.
    unhooked: dict[int, Tensor] = field(default_factory=dict)
    _folder: tempfile.TemporaryDirectory | None = None

    def __post_init__(self) -> None:
        """`device`: where the states are computed."""
        if self.size > SHARE_OF_GPU * free_on_gpu(self.device):
            self.device = HOST

    @property
    def shape(self) -> tuple[int, int]:
        return self.batch, self.pos

    @property
    def size(self) -> int:
        """Of all layers that are kept at a time, in bytes."""
        return self.n_stored * self.batch * self.pos * self.d_model * torch.finfo(self.dtype).bits // 8

    @property
    def on_disk(self) -> bool:
        return self.device.type == "cpu" and self.size > self.budget

    def create(self, layer: int) -> Float[Tensor, "batch pos d_model"]:
        """Room for one layer's states, zeros."""
        self.tensors[layer] = self._room(f"layer-{layer}")
        return self.tensors[layer]

    def create_unhooked(self, layer: int) -> Float[Tensor, "batch pos d_model"]:
        self.unhooked[layer] = self._room(f"outputs-{layer}")
        return self.unhooked[layer]

    def _room(self, name: str) -> Float[Tensor, "batch pos d_model"]:
        shape = (self.batch, self.pos, self.d_model)
        if not self.on_disk:
            return torch.zeros(shape, dtype=self.dtype, device=self.device)
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="basins-states-")
        path = Path(self._folder.name) / name
        n = self.batch * self.pos * self.d_model
        size = n * torch.finfo(self.dtype).bits // 8
        try:
            with open(path, "wb") as file:
                # Taken now: a disk that fills up under a mapped file kills the process.
                os.posix_fallocate(file.fileno(), 0, size) if hasattr(os, "posix_fallocate") else file.truncate(size)
        except OSError as error:
            path.unlink(missing_ok=True)
            raise BasinsError(
                f"{size / 2**30:.2f} GiB of states do not fit into {self._folder.name} ({error}). Point TMPDIR to a "
                "disk with more room, raise memory_budget, or score fewer texts at a time."
            ) from error
        mapped = torch.from_file(str(path), shared=True, size=n, dtype=self.dtype)
        return mapped.view(shape)

    def drop(self, layer: int) -> None:
        self.tensors.pop(layer, None)
        if self._folder is not None:
            (Path(self._folder.name) / f"layer-{layer}").unlink(missing_ok=True)

    def layer(self, layer: int) -> Float[Tensor, "batch pos d_model"]:
        return self.tensors[layer]

    def outputs(self, layer: int) -> Float[Tensor, "batch pos d_model"] | None:
        return self.unhooked.get(layer, self.tensors.get(layer + 1))
