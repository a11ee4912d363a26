"""One process or many: what torchrun says of this process, and the few words they exchange."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType

import torch
import torch.distributed as dist
from torch import Tensor

# Rank 0 may prepare a large dataset while the others wait for it.
PATIENCE = timedelta(hours=4)


@dataclass(frozen=True)
class World:
    """This process among all: ``rank`` of ``size``, ``local_rank`` on its machine."""

    rank: int = 0
    local_rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            dist.barrier()

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean over all processes, in place."""
        return self.sum(tensor).div_(self.size) if self.size > 1 else tensor


@contextmanager
def world(device_type: str) -> Iterator[World]:
    """Join the processes that torchrun started; alone where it did not."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World()
        return
    local_rank = int(os.environ["LOCAL_RANK"])
    if device_type == "cuda":
        torch.cuda.set_device(local_rank)
    # gloo carries the words between the processes, nccl the gradients on GPUs.
    dist.init_process_group("cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo", timeout=PATIENCE)
    yield World(dist.get_rank(), local_rank, size)
    # Not behind an error: NCCL's end waits for every process, and the others wait in an exchange with the one that failed.
    dist.destroy_process_group()


class StopSignal:
    """SIGTERM and SIGINT as a question asked once a step: has anyone been told to stop?

    With several processes the answer travels one step behind, so that asking never waits:
    each step starts an exchange and reads that of the step before. All read the same answer.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.received: signal.Signals | None = None
        self._exchange: tuple[Tensor, dist.Work] | None = None

    @contextmanager
    def listening(self) -> Iterator[StopSignal]:
        """Take SIGTERM and SIGINT while the block runs; a second SIGINT interrupts at once."""
        before = {s: signal.signal(s, self._receive) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield self
            if self._exchange is not None:  # a process that ends while one is under way is aborted by gloo
                self._exchange[1].wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received == signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)

    def asked(self) -> bool:
        """Whether to stop before the next step; the same answer in every process."""
        if self.world.size == 1:
            return self.received is not None
        answer = False
        if self._exchange is not None:
            flag, work = self._exchange
            work.wait()
            answer = bool(flag.item())
        flag = torch.tensor([1 if self.received is not None else 0])
        work = dist.all_reduce(flag, async_op=True)
        assert work is not None
        self._exchange = (flag, work)
        return answer
