"""The rules of the queue for GPUs, and its tickets."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from job.gpu_queue import (
    GpuAccess,
    Ticket,
    ahead_of,
    choose_gpus,
    live_tickets,
    move_first,
    take_gpus,
    visible_gpus,
)

ROOT = Path(__file__).resolve().parents[2]

BOTH = Ticket("both", "/both", gpus=2, visible=("0", "1"), order=1.0)
ONE = Ticket("one", "/one", gpus=2, needs=1, visible=("0", "1"), order=2.0)


def chosen(ticket: Ticket, *others: Ticket) -> tuple[str, ...]:
    return choose_gpus(ticket, ahead_of(ticket, others))


class TestRules:
    def test_runs_for_one_gpu_get_different_ones(self) -> None:
        assert chosen(ONE) == ("0",)
        assert chosen(ONE, replace(BOTH, taken=("0",))) == ("1",)
        assert chosen(ONE, replace(BOTH, taken=("0", "1"))) == ()

    def test_a_run_for_many_gpus_is_not_overtaken(self) -> None:
        running = Ticket("running", "/running", gpus=2, taken=("0",))
        assert chosen(BOTH, running, ONE) == ()
        assert chosen(ONE, running, BOTH) == ()
        assert chosen(replace(ONE, order=0.5), running, BOTH) == ("1",)

    def test_a_run_waits_only_for_gpus_that_it_could_use(self) -> None:
        on_first = replace(BOTH, visible=("0",))
        assert chosen(replace(ONE, visible=("1",)), replace(on_first, taken=("0",))) == ("1",)
        assert chosen(replace(ONE, visible=("1",)), on_first) == ("1",)

    def test_trials_of_one_sweep_share_their_gpus(self) -> None:
        trial = replace(ONE, visible=("0",), group="sweep")
        assert chosen(trial, replace(trial, taken=("0",))) == ("0",)
        assert chosen(trial, replace(trial, taken=("0",), group="other")) == ()

    def test_share_prefers_free_gpus(self) -> None:
        shared = replace(ONE, access=GpuAccess.SHARE)
        assert chosen(shared, replace(BOTH, taken=("0",))) == ("1",)
        assert chosen(shared, replace(BOTH, taken=("0", "1"))) == ("0",)

    @pytest.mark.parametrize(
        ("gpus", "environ", "visible"),
        [
            (2, {}, ("0", "1")),
            (2, {"CUDA_VISIBLE_DEVICES": "1, 3"}, ("1", "3")),
            (2, {"CUDA_VISIBLE_DEVICES": ""}, ("all",)),
            (2, {"CUDA_VISIBLE_DEVICES": "-1"}, ("all",)),
            (0, {"CUDA_VISIBLE_DEVICES": "0"}, ("all",)),
        ],
    )
    def test_cuda_visible_devices_limits_the_choice(
        self, gpus: int, environ: dict[str, str], visible: tuple[str, ...]
    ) -> None:
        names = visible_gpus(gpus, environ)
        assert Ticket("r", "/r", gpus).enqueued(names).visible == visible


def start(queue: Path, ticket: Ticket, *command: str, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "job.gpu_queue", str(queue), *command],
        cwd=ROOT,
        env={**os.environ, "GPU_TICKET": json.dumps(asdict(ticket)), **variables},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


class TestProcess:
    def test_command_keeps_its_gpu_until_it_is_killed(self, tmp_path: Path) -> None:
        script = 'echo "$CUDA_VISIBLE_DEVICES $GPU_TICKET"; exec cat'
        with start(tmp_path, ONE, "sh", "-c", script, CUDA_VISIBLE_DEVICES="1") as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "1 \n"
            assert [ticket.taken for ticket in live_tickets(tmp_path)] == [("1",)]
            process.kill()
        assert live_tickets(tmp_path) == []
        assert not list(tmp_path.glob("*.json"))

    def test_second_run_is_refused(self, tmp_path: Path) -> None:
        _, file = take_gpus(tmp_path, ONE.enqueued(["0", "1"]))
        other = replace(ONE, run="other", gpus=1)
        with start(tmp_path, other, "echo", CUDA_VISIBLE_DEVICES="0") as process, file:
            out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (1, "")
        assert err == (
            "error: run 'one' uses GPU 0; --queue waits for it, "
            "--share uses the same GPUs at the same time\n"
        )

    def test_uuid_and_index_name_the_same_gpu(self, tmp_path: Path) -> None:
        tool = tmp_path / "bin" / "nvidia-smi"
        tool.parent.mkdir()
        calls = tmp_path / "calls"
        tool.write_text(f"#!/bin/sh\necho >>{calls}\necho '0, GPU-aa11'\necho '1, GPU-bb22'\n")
        tool.chmod(0o755)
        variables = {
            "PATH": f"{tool.parent}:{os.environ['PATH']}",
            "CUDA_VISIBLE_DEVICES": "GPU-bb",
        }
        queue, print_gpus = tmp_path / "queue", ("sh", "-c", 'echo "$CUDA_VISIBLE_DEVICES"')
        with start(queue, ONE, *print_gpus, **variables) as process:
            assert process.communicate(timeout=60)[0] == "GPU-bb\n"
        assert calls.read_text() == "\n"  # nvidia-smi can take seconds: once a launch
        _, file = take_gpus(queue, ONE.enqueued(["1"]))
        with start(queue, replace(ONE, run="other"), *print_gpus, **variables) as process, file:
            assert "run 'one' uses GPU 1" in process.communicate(timeout=60)[1]
        variables["CUDA_VISIBLE_DEVICES"] = "MIG-cc33"  # no index: a name of its own
        with start(queue, replace(ONE, run="slice"), *print_gpus, **variables) as process:
            assert process.communicate(timeout=60)[0] == "MIG-cc33\n"

    def test_without_visible_gpus_no_run_is_refused(self, tmp_path: Path) -> None:
        _, file = take_gpus(tmp_path, replace(ONE, gpus=0).enqueued([]))
        with start(tmp_path, ONE, "echo", "ran", CUDA_VISIBLE_DEVICES="") as process, file:
            assert process.communicate(timeout=60)[0] == "ran\n"

    @pytest.mark.parametrize(
        ("access", "group", "output"),
        [(None, "", "0\n"), (GpuAccess.QUEUE, "sweep", "0\n"), (GpuAccess.QUEUE, "", "")],
    )
    def test_unusable_queue_ends_only_runs_that_asked_for_it(
        self, tmp_path: Path, access: GpuAccess | None, group: str, output: str
    ) -> None:
        queue = tmp_path / "queue"
        queue.touch()  # instead of a file system without locks, or another user's folder
        ticket = replace(ONE, access=access, group=group)
        script = 'echo "$CUDA_VISIBLE_DEVICES"'
        with start(queue, ticket, "sh", "-c", script, CUDA_VISIBLE_DEVICES="0") as process:
            out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (0 if output else 1, output)
        assert f"can't use the queue {queue}: File exists; " in err
        assert live_tickets(queue) == []


class ClosedTerminal(io.StringIO):
    """A stream whose writes fail."""

    def write(self, text: str) -> int:
        raise OSError(errno.EIO, "Input/output error")


def test_a_closed_terminal_does_not_end_the_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, file = take_gpus(tmp_path, replace(ONE, gpus=1).enqueued(["0"]))
    monkeypatch.setattr("job.gpu_queue.time.sleep", lambda _: file.close())
    waiting = replace(ONE, run="other", gpus=1, access=GpuAccess.QUEUE).enqueued(["0"])
    monkeypatch.setattr("sys.stderr", ClosedTerminal())
    gpus, own = take_gpus(tmp_path, waiting)
    own.close()
    assert gpus == ("0",)


def test_only_a_waiting_run_can_move_to_the_front(tmp_path: Path) -> None:
    _, file = take_gpus(tmp_path, ONE.enqueued(["0", "1"]))
    with file:
        assert not move_first(tmp_path, "one")
        assert not move_first(tmp_path, "nothing")
