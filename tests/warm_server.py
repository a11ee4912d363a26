"""The process from which the jobs of `warm_process` are forked.

    python -m tests.warm_server SOCKET

SOCKET is the number of an inherited descriptor. Each message is JSON with a job's command and
environment, and has three descriptors: stdout, stderr, and a pipe for the process id and then the
exit status. A job is a fork that leaves the loop and runs the end of this file, so the interpreter
handles tracebacks, SystemExit, threads and atexit as it does for `python -m`. The server ends with
the socket.
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

MAX_MESSAGE_BYTES = 1 << 17
NUMBER_BYTES = 4  # a process id or an exit status

# Everything that a trainer imports, partly late: the metrics import tensorboard.
PRELOADED = (
    *("model.attempt", "serving.sample", "serving.evaluate", "corpus.prepare"),
    *("torch.profiler", "torch.utils.tensorboard", "plotext", "yaml"),
)


def serve(control: socket.socket) -> list[str]:
    """Fork a job for each message. Return only in a fork, with its command."""
    ends: dict[int, int] = {}  # process id of a job: its pipe
    # The terminal's Ctrl-C is for the tests and the jobs.
    changed = {signal.SIGINT: signal.SIG_IGN, signal.SIGCHLD: lambda *_: None}
    before = {number: signal.signal(number, handler) for number, handler in changed.items()}
    child_ended, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    while True:
        ready, _, _ = select.select([control, child_ended], [], [])
        if child_ended in ready:
            os.read(child_ended, MAX_MESSAGE_BYTES)
            _tell_ends(ends)
        if control not in ready:
            continue
        message, descriptors, _, _ = socket.recv_fds(control, MAX_MESSAGE_BYTES, 3)
        if not message:
            os._exit(0)
        if (process := os.fork()) == 0:
            break
        for descriptor in descriptors[:2]:
            os.close(descriptor)
        ends[process] = descriptors[2]
        os.write(descriptors[2], process.to_bytes(NUMBER_BYTES, "big", signed=True))
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
        with suppress(BrokenPipeError):  # the test no longer waits
            os.write(
                ends[process],
                os.waitstatus_to_exitcode(status).to_bytes(NUMBER_BYTES, "big", signed=True),
            )
        os.close(ends.pop(process))


if __name__ == "__main__":
    for module in PRELOADED:
        import_module(module)
    assert len(os.listdir("/proc/self/task")) == 1, (
        "a fork would have one of several threads, and the locks of all"
    )
    gc.collect()
    gc.freeze()  # else each job's last garbage collection copies every shared page: 1.0 s
    import numpy
    import torch

    flag, what, *words = serve(socket.socket(fileno=int(sys.argv[1])))
    torch.seed()  # else code without a seed would do the same in all jobs
    numpy.random.seed()
    sys.argv = [flag, *words]
    if flag == "-m":
        sys.modules.pop(what, None)  # runpy warns if the module has been imported
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        exec(
            compile(what, "<string>", "exec"),
            {"__name__": "__main__", "__builtins__": __builtins__},
        )
