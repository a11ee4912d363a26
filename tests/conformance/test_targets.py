"""Behavior of every target. A new target is done when it passes this file."""

import json
import os
import signal
import time
from pathlib import Path

from job.exit_status import ExitStatus
from tests.conformance.conftest import WAIT_S, TargetFixture

CPU = ("--device", "cpu")
# Waits at a step for a stop: even on a slow machine, the signal reaches a running job.
HOLD_AT_STEP = """\
import time
def after_step(step, stop):
    while step == STEP and not stop.received:
        time.sleep(0.02)
"""
NO_DELAY = "def after_step(step, stop): pass\n"
SECRET = "not-to-be-shown-anywhere"


def set_hook(bench: TargetFixture, hook: str) -> None:
    """Set the step hook of runs that start later."""
    (bench.checkout / "step_hook.py").write_text(hook)


def test_run_is_followed_stopped_killed_and_resumed_with_the_same_bits(
    bench: TargetFixture,
) -> None:
    set_hook(bench, NO_DELAY)
    out, err = bench.launch("tiny", "--name", "whole", *CPU)
    assert "step 60/60" in out + err
    assert bench.state("whole")["status"] == "finished"
    assert "starting run 'whole'" in bench.run("logs", "whole")[0]

    set_hook(bench, HOLD_AT_STEP.replace("STEP", "15"))
    out, _ = bench.launch("tiny", "--name", "broken", "--detach", *CPU)
    assert out.strip().endswith("broken")
    follower = bench.start("logs", "broken", "--follow")
    bench.wait_for_checkpoint("broken", 10)
    assert bench.state("broken")["status"] == "running"
    assert bench.run("shell", "broken", "--", "echo", "inside")[0].split() == ["inside"]
    bench.launch(
        "tiny", "--name", "broken", *CPU, status=ExitStatus.ERROR
    )  # refused: the run is active
    bench.run("stop", "broken")
    assert bench.state("broken")["status"] == "unfinished"
    followed, _ = follower.communicate(timeout=WAIT_S)
    assert "checkpoint of step" in followed  # the follower saw the end

    set_hook(bench, HOLD_AT_STEP.replace("STEP", "35"))
    bench.run("resume", "broken", "--detach", "-y")
    bench.wait_for_checkpoint("broken", 30)
    bench.run("stop", "broken", "--force")
    assert bench.state("broken")["status"] in ("lost", "unfinished", "failed")

    set_hook(bench, NO_DELAY)
    bench.run("resume", "broken", "-y")
    state = bench.state("broken")
    assert (state["status"], state["attempts"]) == ("finished", 3)
    assert bench.weights("broken") == bench.weights("whole")


def test_a_signal_to_the_follower_stops_the_run_with_a_checkpoint(bench: TargetFixture) -> None:
    set_hook(bench, HOLD_AT_STEP.replace("STEP", "15"))
    process = bench.start(*bench.words, "tiny", "--name", "signaled", "-y", *CPU)
    bench.wait_for_checkpoint("signaled", 10)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=WAIT_S)
    assert process.returncode == ExitStatus.UNFINISHED, out + err
    assert (bench.folder("signaled") / "latest").is_file()


def test_exit_statuses_secrets_and_persisted_paths(bench: TargetFixture, tmp_path: Path) -> None:
    bench.launch("tiny", "lr=fast", "--name", "typo", status=ExitStatus.USAGE)
    folder = tmp_path / "tool"
    folder.mkdir()
    (folder / "tool.py").write_text(
        "import os, pathlib, sys\n"
        "out = pathlib.Path('out'); out.mkdir(exist_ok=True)\n"
        "seen = out / 'attempts'; n = len(seen.read_text()) if seen.exists() else 0\n"
        "seen.write_text('x' * (n + 1))\n"
        "print('attempt', n + 1, 'secret', os.environ.get('WANDB_API_KEY'), flush=True)\n"
        "sys.exit(7 if n == 0 else 0)\n"
    )
    bench.environ["WANDB_API_KEY"] = SECRET
    words = ("--dir", str(folder), "--persist", "out=checkpoints", "--name", "tool")
    command = ("--", "python", "tool.py")
    first, err = bench.run(*bench.words, *words, "-y", *command, status=ExitStatus.JOB_FAILED)
    assert "attempt 1" in first + err
    failed = json.loads((bench.folder("tool") / "run.json").read_text())
    assert failed["attempts"][-1]["reason"] == "exit status 7"
    second, err = bench.run(*bench.words, *words, "-y", *command)
    assert "attempt 2" in second + err
    words = ("--dir", str(folder), "--env", "GREETING=hello", "-y")
    script = 'import os; print(os.environ["GREETING"], os.listdir()); raise SystemExit(9)'
    command = ("--", "python", "-c", script)
    shown, err = bench.run("shell", "--target", bench.name, *words, *command, status=9)
    assert "hello" in shown + err
    assert "tool.py" in shown + err
    plan, _ = bench.launch("tiny", "wandb_project=p", "--name", "plan", "--dry-run", "--json")
    assert '"WANDB_API_KEY"' in plan
    record = (bench.folder("tool") / "run.json").read_text()
    if bench.name not in ("host", "local"):  # a job on this machine has the user's keys
        assert SECRET not in first + second
    assert SECRET not in plan + record
    del bench.environ["WANDB_API_KEY"]


def test_an_interrupted_transfer_continues(bench: TargetFixture, tmp_path: Path) -> None:
    if not bench.has_remote_volumes:
        return  # the volumes are local folders; nothing is copied
    content = os.urandom(30_000_000)
    (tmp_path / "noise.bin").write_bytes(content)
    words = ("data", str(tmp_path / "noise.bin"), "--target", bench.name, "-y")
    process = bench.start("push", *words)
    time.sleep(1.5)  # at some point of the transfer
    process.kill()
    process.communicate()
    bench.run("push", *words)
    pull = ("pull", "data", "noise.bin", "--target", bench.name, "--dest", str(tmp_path / "back"))
    process = bench.start(*pull)
    time.sleep(1.5)
    process.kill()
    process.communicate()
    bench.run(*pull)
    assert (tmp_path / "back" / "noise.bin").read_bytes() == content
