"""`runner shell` in a sandbox of the stand-in."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pexpect
import pytest

from runner.errors import RunnerError
from runner.planning.gpus import BUILT_IN_PRICES
from runner.targets.modal.sandbox import parse_shell_gpus, shell_price
from tests.runner.targets.modal.conftest import CloudFixture, train_here

PROGRAM = ["-c", "from runner.cli import main; main()"]


def open_shell(
    cloud: CloudFixture, *words: str, size: tuple[int, int] = (30, 100)
) -> pexpect.spawn[str]:
    return pexpect.spawn(
        sys.executable,
        [*PROGRAM, "shell", *words],
        cwd=str(cloud.checkout),
        env={**cloud.environ, "TERM": "xterm", "PS1": "> ", "WANDB_API_KEY": "s3cret" * 4},
        dimensions=size,
        encoding="utf-8",
        timeout=60,
    )


def sandbox_has_ended(cloud: CloudFixture) -> bool:
    return bool(
        cloud.modal.recorded("SandboxTerminate") or cloud.modal.recorded("SandboxTerminateV2")
    )


def test_shell_has_code_volumes_a_resized_terminal_and_no_token(cloud: CloudFixture) -> None:
    shell = open_shell(cloud, "--gpu", "H100")
    shell.expect("a Modal sandbox with H100: about \\$4.* an hour")
    shell.expect("open it")
    shell.sendline("y")
    shell.sendline(
        "echo in-$PWD; ls -d model /vol/data /vol/checkpoints; stty size; "
        "echo marked > /vol/data/mark"
    )
    shell.expect("in-/workspace")
    shell.expect("30 100")
    shell.setwinsize(50, 150)
    shell.sendline("for i in 1 2 3 4 5 6 7 8 9; do sleep 0.3; stty size; done")
    shell.expect("50 150")
    shell.sendline("echo tokens-$(env | grep -c 'MODAL_TOKEN\\|WANDB'); echo TMOUT-$TMOUT")
    shell.expect("tokens-0")
    shell.expect("TMOUT-900")
    shell.sendline("exit 7")
    shell.expect(pexpect.EOF)
    shell.close()
    assert shell.exitstatus == 7
    assert (cloud.volume("data") / "mark").read_text() == "marked\n"
    assert sandbox_has_ended(cloud)
    assert cloud.modal.appeared("s3cret" * 4) == []
    made = [
        r.message for r in cloud.modal.recorded() if r.rpc in ("SandboxCreate", "SandboxCreateV2")
    ]
    assert made[0].definition.resources.gpu_config.gpu_type == "H100"


def test_idle_shell_ends(cloud: CloudFixture) -> None:
    shell = open_shell(cloud, "--target", "cloud", "-y", "--idle", "0.02")
    shell.expect("auto-logout")
    shell.expect(pexpect.EOF)
    assert sandbox_has_ended(cloud)


def test_a_shell_survives_its_client_and_the_same_line_attaches(
    cloud: CloudFixture, tmp_path: Path
) -> None:
    folder = tmp_path / "nano"
    folder.mkdir()
    (folder / "train.py").write_text("print('theirs')\n")
    line = ("--gpu", "H100", "-y", "--dir", "../nano", "--setup", "echo built")
    line += ("--persist", "out=checkpoints", "--env", "COLOR=red")
    shell = open_shell(cloud, *line)
    shell.sendline("mark=kept; echo $COLOR-$PWD; python train.py; echo 5 > out/five; ls")
    shell.expect("red-/\\S+/nano")
    shell.expect("theirs")
    shell.kill(signal.SIGKILL)
    builds = len(cloud.modal.builds)
    out, err = cloud.run("runs", "--json")
    (run,) = json.loads(out)
    assert "deprecated" not in err
    assert (run["job"], run["status"], run["gpu"]) == ("shell", "running", "H100")
    out, _ = cloud.run("shell", run["run"], "--", "cat", "/vol/checkpoints/nano/out/five")
    assert out == "5\n"
    shell = open_shell(cloud, *line)
    shell.expect("attaching to shell-")
    shell.sendline("clear; echo again-$mark")
    shell.expect("again-kept")
    assert not sandbox_has_ended(cloud)
    assert len(cloud.modal.builds) == builds
    shell.sendline("exit 7")
    shell.expect(pexpect.EOF)
    shell.close()
    assert shell.exitstatus == 7
    assert sandbox_has_ended(cloud)
    # The second shell of the same setup builds and installs nothing.
    out, _ = cloud.run("shell", *line, "--", "python", "train.py")
    assert out == "theirs\n"
    assert len(cloud.modal.builds) == builds


def open_runs(cloud: CloudFixture) -> list[str]:
    return [run["run"] for run in json.loads(cloud.run("runs", "--json")[0])]


def test_lost_shell_ends_and_an_open_one_can_be_stopped(cloud: CloudFixture) -> None:
    lost = open_shell(cloud, "--target", "cloud", "-y", "--idle", "0.2")
    lost.sendline("echo rea''dy; sleep 600")
    lost.expect("ready")
    os.kill(lost.pid, signal.SIGHUP)
    lost.expect(pexpect.EOF)
    cloud.modal.wait_until(lambda: not open_runs(cloud), 60)
    forgotten = open_shell(cloud, "--target", "cloud", "-y")
    forgotten.sendline("echo rea''dy")
    forgotten.expect("ready")
    (name,) = open_runs(cloud)
    assert "stopped" in cloud.run("stop", name)[1]
    assert not open_runs(cloud)


def test_command_keeps_its_streams_and_status(cloud: CloudFixture) -> None:
    script = "pwd; echo oops >&2; cat; exit 3"
    words = ("shell", "--target", "cloud", "-y", "--", "bash", "-c", script)
    out, _ = cloud.run(*words, status=3)
    assert out == "/workspace\n"
    assert sandbox_has_ended(cloud)


def test_errors_are_reported_before_a_machine_is_rented(cloud: CloudFixture) -> None:
    _, err = cloud.run("shell", "--gpu", "L4", "--", "nvidia-smi", status=2)
    assert "`runner shell -y --gpu L4 -- nvidia-smi`" in err
    _, err = cloud.run("shell", "--gpu", "L4", status=2)
    assert "needs a terminal" in err
    _, err = cloud.run("shell", "--gpu", "L4", "-y", "--seutp", "x", "--", "ls", status=2)
    assert "--seutp" in err
    _, err = cloud.run("shell", "python", "--", "-V", status=102)
    assert "no run 'python'" in err
    assert not [r for r in cloud.modal.recorded() if r.rpc.startswith("SandboxCreate")]


def test_a_shell_inside_a_training_answers_and_changes_nothing(cloud: CloudFixture) -> None:
    go, words = cloud.hold_at(25), ("--device", "cpu", "max_steps=40")
    process = cloud.start("cloud", "tiny", "-y", *words)
    cloud.modal.wait_until(lambda: "latest" in cloud.committed(), 200)
    program = "import os, sys; print(os.environ['CHECKPOINTS_PATH']); sys.exit(4)"
    out, _ = cloud.run("shell", "tiny", "--", "python", "-c", program, status=4)
    assert out == "/vol/checkpoints\n"
    go.touch()
    _, err = cloud.finish(process)
    train_here(cloud.checkout, *words)
    run = cloud.checkout / "volumes" / "checkpoints" / "tiny"
    step = (run / "latest").read_text().strip()
    assert cloud.weights() == (run / step / "model.safetensors").read_bytes()
    _, err = cloud.run("shell", "tiny", "--", "ls", status=2)
    assert "so it can't be entered; open a shell without a run: `runner shell`" in err


def test_gpu_option_and_price() -> None:
    assert parse_shell_gpus("h100:2").modal_names() == ["H100:2"]
    with pytest.raises(RunnerError, match="did you mean 'H100'"):
        parse_shell_gpus("h10")
    with pytest.raises(RunnerError, match="one GPU type"):
        parse_shell_gpus("H100,A100")
    assert shell_price(parse_shell_gpus("H100"), BUILT_IN_PRICES) == pytest.approx(
        3.95 + 3 * (4 * 0.0000131 + 16 * 0.00000222) * 3600
    )
