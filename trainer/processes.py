"""One process or several that learn together, as `torchrun` starts them.

Several share the folders of the settings. Rank 0 leads: it alone talks to servers and writes files; the others follow
its decisions, learn their share, and are told what went wrong anywhere, so that none waits for ever.
"""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from schemas.errors import ContractError
from trainer import ranks

T = TypeVar("T")

# Longer than any cycle, and any pause between two, in which the others wait for the leader. A process that dies
# is not noticed by this, but by torchrun and by its closed connections, within seconds.
LONGEST_WAIT = timedelta(days=7)


@dataclass(frozen=True)
class Processes:
    """The rank of this process among `count`. What is said below of all must be called by all, in the same order."""

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
        said: list[T] = [value]
        dist.broadcast_object_list(said, src=0, device=torch.device("cpu"))
        return said[0]

    def led(self, do: Callable[[], T]) -> T:
        """What the leader alone does: its result, or the exception it ended with, in every process."""
        if self.count == 1:
            return do()
        made, error = _outcome(do) if self.leads else (None, None)
        told: tuple[Any, Exception | None] = self.agree((made, _portable(error)))
        if told[1] is not None:
            raise error or told[1]
        result: T = told[0]
        return result

    def leader_first(self, do: Callable[[], T]) -> T:
        """What every process does, the others when the leader is through: they find what it left in a cache."""
        made: list[T] = []
        self.led(lambda: made.extend([do()]))
        return made[0] if made else do()

    def each(self, do: Callable[[], T], alike: Callable[[T], object]) -> T:
        """What every process does for itself: its result, or in every process the exception that ended one of them.

        alike: of a result, what must be equal in all. Raises ContractError where it is not.
        """
        if self.count == 1:
            return do()
        result, error = _outcome(do)
        outcomes: list[Any] = [None] * self.count
        dist.all_gather_object(outcomes, (None if error else alike(result), _portable(error)))
        if told := next((told for _, told in outcomes if told is not None), None):
            raise error or told
        if any(seen != outcomes[0][0] for seen, _ in outcomes):
            raise ContractError(
                f"the {self.count} processes do not work on the same: {[seen for seen, _ in outcomes]}",
                "let trainer.data and trainer.releases be folders that all of them share",
            )
        return result


def _outcome(do: Callable[[], T]) -> tuple[T, None] | tuple[Any, Exception]:
    try:
        return do(), None
    except Exception as error:  # whatever it is: the others must not wait for this process
        return None, error


def _portable(error: Exception | None) -> Exception | None:
    """The error, or its text where it is of a kind that cannot be sent."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    except Exception:
        return RuntimeError(repr(error))
    return error


@contextmanager
def processes(threads: int) -> Iterator[Processes]:
    """Join the processes that `torchrun` started, NCCL on GPUs and gloo on CPUs; alone without it.

    threads: of this machine, for learning; its processes share them.
    """
    torch.set_num_threads(max(1, threads // ranks.on_this_host()))
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", ranks.place_on_this_host()) if on_gpu else torch.device("cpu")
    if ranks.count() == 1:
        yield Processes(0, 1, device)
        return
    if on_gpu:
        torch.cuda.set_device(device)
    # DistributedDataParallel imports it. Imported while there is a group, it holds that for ever, and threads of gloo
    # that outlive Python abort the process now and then.
    importlib.import_module("torch._dynamo")
    # Decisions go over gloo in any case: whoever waits for them keeps no GPU busy.
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=LONGEST_WAIT)
    try:
        yield Processes(dist.get_rank(), dist.get_world_size(), device)
    finally:
        dist.destroy_process_group()
