"""One process or several that learn together, as `torchrun` starts them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """The rank of this process among `count`. Rank 0 leads: it alone talks to servers and writes files."""

    rank: int
    count: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this process is rank 0."""
        return self.rank == 0

    def total(self, amount: Tensor) -> Tensor:
        """The sum of a scalar over all processes."""
        if self.count > 1:
            dist.all_reduce(amount)
        return amount

    def agree(self, value: T) -> T:
        """The leader's value, in every process: what they decide by must not differ in the last bit."""
        if self.count == 1:
            return value
        said = [value]
        dist.broadcast_object_list(said, src=0, device=self.device if self.device.type == "cuda" else None)
        return said[0]

    def meet(self) -> None:
        """Wait until all processes are here."""
        if self.count > 1:
            dist.barrier()


@contextmanager
def processes() -> Iterator[Processes]:
    """Join the processes that `torchrun` started, NCCL on GPUs and gloo on CPUs; alone without it."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", local) if on_gpu else torch.device("cpu")
    if count == 1:
        yield Processes(0, 1, device)
        return
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield Processes(dist.get_rank(), count, device)
    finally:
        dist.destroy_process_group()
