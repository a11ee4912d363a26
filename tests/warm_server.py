"""The process that the jobs of `warm_process` are forked from.

    python -m tests.warm_server SOCKET

SOCKET is the number of a descriptor that it inherits. Each message there is JSON, a job's command and its
environment, and brings three descriptors: stdout, stderr, and a pipe for its process id and then its exit
status. A job is a fork that leaves the loop and goes on to the end of this file, so that the interpreter does
with a traceback, with SystemExit, threads and atexit what it does for `python -m`. The server ends with the socket.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import select
import signal
import socket
import sys
from contextlib import suppress
from importlib import import_module

MESSAGE = 1 << 17  # bytes: an environment, and a line or a small program
NUMBER = 4  # bytes of what is told about a job

# What a trainer has imported by its end, half of it late: an optimizer imports dynamo, the metrics tensorboard.
PRELOADED = (
    *("model.train", "model.sample", "model.evaluate", "corpus.prepare"),
    *("torch._dynamo", "torch.profiler", "torch.utils.tensorboard", "plotext", "yaml"),
)


def serve(control: socket.socket) -> list[str]:
    """Comes back in a fork alone, with the command that it is to run."""
    ends: dict[int, int] = {}  # a job's process → its pipe
    # A terminal's Ctrl-C is for the tests and the jobs.
    changed = {signal.SIGINT: signal.SIG_IGN, signal.SIGCHLD: lambda *_: None}
    before = {number: signal.signal(number, handler) for number, handler in changed.items()}
    child_ended, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    while True:
        ready, _, _ = select.select([control, child_ended], [], [])
        if child_ended in ready:
            os.read(child_ended, MESSAGE)
            _tell_ends(ends)
        if control not in ready:
            continue
        message, descriptors, _, _ = socket.recv_fds(control, MESSAGE, 3)
        if not message:
            os._exit(0)
        if (process := os.fork()) == 0:
            break
        for descriptor in descriptors[:2]:
            os.close(descriptor)
        ends[process] = descriptors[2]
        os.write(descriptors[2], process.to_bytes(NUMBER, "big", signed=True))
    signal.set_wakeup_fd(-1)
    for number, handler in before.items():
        signal.signal(number, handler)
    for target, descriptor in enumerate(descriptors[:2], 1):
        os.dup2(descriptor, target)
    for descriptor in (*descriptors, *ends.values(), child_ended, wake):
        os.close(descriptor)
    control.close()
    job = json.loads(message)
    os.environ.clear()
    os.environ.update(job["environment"])
    return list(job["command"])


def _tell_ends(ends: dict[int, int]) -> None:
    while ends:
        process, status = os.waitpid(-1, os.WNOHANG)
        if process == 0:
            return
        with suppress(BrokenPipeError):  # nobody asks any more
            os.write(
                ends[process],
                os.waitstatus_to_exitcode(status).to_bytes(NUMBER, "big", signed=True),
            )
        os.close(ends.pop(process))


if __name__ == "__main__":
    for module in PRELOADED:
        import_module(module)
    assert len(os.listdir("/proc/self/task")) == 1, (
        "of several threads a fork has one, and the locks of all"
    )
    gc.collect()
    gc.freeze()  # else each job's last collection writes to every page that it shares with us: 1.0 s
    import numpy
    import torch

    flag, what, *words = serve(socket.socket(fileno=int(sys.argv[1])))
    torch.seed()  # else what forgets to set a seed would do the same in all jobs
    numpy.random.seed()
    sys.argv = [flag, *words]
    if flag == "-m":
        sys.modules.pop(what, None)  # __main__ is not the module that others import
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        exec(
            compile(what, "<string>", "exec"),
            {"__name__": "__main__", "__builtins__": __builtins__},
        )
