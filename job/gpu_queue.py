"""The GPUs of one machine: a run takes some, and others wait for them in a queue.

    GPU_TICKET='{...}' python -m job.gpu_queue QUEUE python -m model.train ...

waits for the GPUs that the ticket needs, sets CUDA_VISIBLE_DEVICES and becomes the command. Tickets
are files in the folder QUEUE, which all processes and containers of the machine see. The process,
and then the command, holds a lock on its file; the kernel releases it when that process ends.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import IO
from uuid import uuid4

from job.exit_status import ExitStatus
from job.metrics import query_gpus
from job.typed_json import read_json

TICKET_VARIABLE = "GPU_TICKET"
DEVICES_VARIABLE = "CUDA_VISIBLE_DEVICES"
POLL_INTERVAL_S = 0.2
WHOLE_MACHINE = "all"  # in place of a GPU, for queued runs without one


class GpuAccess(StrEnum):
    """The choice of a launch whose GPUs other runs are using; without one it is refused."""

    QUEUE = "queue"
    SHARE = "share"


@dataclass(frozen=True)
class Ticket:
    """A run that has GPUs or waits for them."""

    run: str
    folder: str  # of the run on the machine, which distinguishes the runs of two checkouts
    gpus: int  # of the machine
    needs: int | None = None  # None: all visible ones
    access: GpuAccess | None = None
    group: str = ""  # the sweep, whose trials share their GPUs
    visible: tuple[str, ...] = ()
    taken: tuple[str, ...] = ()  # () while it waits
    order: float = 0.0  # the lowest one is first

    def enqueued(self, visible: Iterable[str]) -> Ticket:
        """Return the ticket as the last one in the queue, for the GPUs of `visible_gpus`."""
        return replace(self, visible=(*visible,) or (WHOLE_MACHINE,), order=time.time())


def visible_gpus(count: int, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the visible ones of ``count`` GPUs: index -> name in CUDA_VISIBLE_DEVICES.

    The name can be the index or the start of a UUID, so that two runs may name one GPU in two ways.
    A MIG slice has no index. nvidia-smi numbers equal GPUs as CUDA does.
    """
    devices = environ.get(DEVICES_VARIABLE)
    names = [*map(str, range(count))] if devices is None else devices.replace(" ", "").split(",")
    uuids = {}
    if any(name.startswith("GPU-") for name in names):
        uuids = dict(line.partition(", ")[::2] for line in query_gpus("index,uuid", environ))
    gpus_by_index = {}
    for name in names if count else ():
        if name not in ("", "-1"):
            index = next((index for index, uuid in uuids.items() if uuid.startswith(name)), name)
            gpus_by_index[index] = name
    return gpus_by_index


def ahead_of(ticket: Ticket, tickets: Sequence[Ticket]) -> list[Ticket]:
    """Return the runs that have GPUs which the ticket could use, or waited for them earlier."""
    return [
        other
        for other in tickets
        if (other.taken or other.order < ticket.order)
        and {*ticket.visible} & {*(other.taken or other.visible)}
        and not (ticket.group and ticket.group == other.group)
    ]


def choose_gpus(ticket: Ticket, ahead: Sequence[Ticket]) -> tuple[str, ...]:
    """Return the GPUs for the ticket; () if too few are free.

    GPUs that an earlier run waits for are not free, so a run for many GPUs is never overtaken.
    """
    busy = {gpu for other in ahead for gpu in other.taken or other.visible}
    free = [gpu for gpu in ticket.visible if gpu not in busy]
    count = min(ticket.needs or len(ticket.visible), len(ticket.visible))
    if len(free) < count and ticket.access != GpuAccess.SHARE:
        return ()
    return tuple([*free, *(gpu for gpu in ticket.visible if gpu in busy)][:count])


def busy_message(holder: Ticket) -> str:
    """Return the error for a launch on GPUs of the run ``holder``."""
    state = f"uses GPU {', '.join(holder.taken)}" if holder.taken else "waits for the GPUs"
    share = "--share uses the same GPUs at the same time"
    return f"run '{holder.run}' {state}; --queue waits for it, {share}"


def live_tickets(queue: Path) -> list[Ticket]:
    """Return the runs that have GPUs, then those that wait for some, in their order."""
    try:
        with _exclusive(queue):
            return [ticket for _, ticket in _read(queue)]
    except OSError:  # no run has used it, it is another user's, or its file system has no locks
        return []


def move_first(queue: Path, run: str) -> bool:
    """Move a waiting run to the front; return False if no such run waits."""
    with _exclusive(queue):
        waiting = [item for item in _read(queue) if not item[1].taken]
        for path, ticket in waiting:
            if ticket.run == run:
                _write(path, replace(ticket, order=waiting[0][1].order - 1.0))
                return True
    return False


@contextmanager
def _exclusive(queue: Path) -> Iterator[None]:
    with (queue / "lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _read(queue: Path) -> list[tuple[Path, Ticket]]:
    """Return the tickets of live processes, and delete the others."""
    entries = []
    for path in queue.glob("*.json"):
        with path.open(encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                path.unlink()
            except BlockingIOError:
                with suppress(ValueError):
                    entries.append((path, read_json(Ticket, file.read())))
    return sorted(entries, key=lambda item: (not item[1].taken, item[1].order))


def _write(path: Path, ticket: Ticket) -> None:
    # In place: a lock belongs to the file, and would not move to one that replaces it.
    path.write_text(json.dumps(asdict(ticket)), encoding="utf-8")


def take_gpus(queue: Path, ticket: Ticket) -> tuple[tuple[str, ...], IO[str]]:
    """Wait for the ticket's GPUs; return them and the file whose lock holds them.

    Raises SystemExit with the reason if the ticket must not wait.
    """
    queue.mkdir(parents=True, exist_ok=True)
    path, announced = queue / f"{ticket.run}-{uuid4().hex[:8]}.json", ""
    with _exclusive(queue):
        file = path.open("x", encoding="utf-8")
        fcntl.flock(file, fcntl.LOCK_EX)
        _write(path, ticket)
    while True:
        with _exclusive(queue):
            ticket = read_json(Ticket, path.read_bytes())  # `runner queue --first` moves it
            ahead = ahead_of(ticket, [other for at, other in _read(queue) if at != path])
            if gpus := choose_gpus(ticket, ahead):
                _write(path, replace(ticket, taken=gpus))
                return gpus, file
        if ticket.access is None:
            raise SystemExit(f"error: {busy_message(ahead[0])}")
        names = ", ".join(other.run for other in ahead)
        if names != announced:
            with suppress(OSError):  # the terminal was closed
                print(f"waiting in the queue behind {names}", file=sys.stderr, flush=True)
        announced = names
        time.sleep(POLL_INTERVAL_S)


def main() -> None:
    """Wait for the GPUs and become the command."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(ExitStatus.INTERRUPTED))
    signal.signal(signal.SIGINT, lambda *_: sys.exit(ExitStatus.INTERRUPTED))
    queue, command = Path(sys.argv[1]), sys.argv[2:]
    ticket = read_json(Ticket, os.environ.pop(TICKET_VARIABLE))
    names = visible_gpus(ticket.gpus, os.environ)
    ticket = ticket.enqueued(names)
    if ticket.visible != (WHOLE_MACHINE,) or ticket.access == GpuAccess.QUEUE:
        try:
            gpus, file = take_gpus(queue, ticket)
        except OSError as error:  # another user's folder, or a file system without locks
            problem = f"can't use the queue {queue}: {error.strerror}"
            if ticket.access == GpuAccess.QUEUE and not ticket.group:
                raise SystemExit(f"error: {problem}; without --queue, the run starts now") from None
            with suppress(OSError):
                print(f"warning: {problem}; other runs may use the same GPUs", file=sys.stderr)
        else:
            os.set_inheritable(file.fileno(), True)  # the command inherits and holds the lock
            if gpus != (WHOLE_MACHINE,):
                os.environ[DEVICES_VARIABLE] = ",".join(names.get(gpu, gpu) for gpu in gpus)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
