"""Tests of `runner shell` in a sandbox of the stand-in."""

from __future__ import annotations

import os
import signal
import sys

import pexpect
import pytest

from runner.errors import RunnerError
from runner.pricing.prices import BUILT_IN
from runner.targets.modal.sandbox import parse_shell_gpus, shell_price
from tests.runner.targets.modal.conftest import CloudFixture

PROGRAM = ["-c", "from runner.cli import main; main()"]


def open_shell(
    cloud: CloudFixture, *words: str, size: tuple[int, int] = (30, 100)
) -> pexpect.spawn[str]:
    return pexpect.spawn(
        sys.executable,
        [*PROGRAM, "shell", *words],
        cwd=str(cloud.checkout),
        env={**cloud.environ, "TERM": "xterm", "PS1": "> ", "WANDB_API_KEY": "hush" * 4},
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
    assert cloud.modal.appeared("hush" * 4) == []
    made = [
        r.message for r in cloud.modal.recorded() if r.rpc in ("SandboxCreate", "SandboxCreateV2")
    ]
    assert made[0].definition.resources.gpu_config.gpu_type == "H100"
    assert list(made[0].definition.secret_ids) == []


def test_idle_shell_ends(cloud: CloudFixture) -> None:
    shell = open_shell(cloud, "--target", "cloud", "-y", "--idle", "0.02")
    shell.expect("auto-logout")
    shell.expect(pexpect.EOF)
    assert sandbox_has_ended(cloud)


def test_closed_terminal_ends_the_sandbox(cloud: CloudFixture) -> None:
    shell = open_shell(cloud, "--target", "cloud", "-y")
    shell.sendline("echo rea''dy")
    shell.expect("ready")
    os.kill(shell.pid, signal.SIGHUP)
    shell.expect(pexpect.EOF)
    cloud.modal.wait_until(lambda: sandbox_has_ended(cloud))


def test_command_keeps_its_streams_and_status(cloud: CloudFixture) -> None:
    out, _ = cloud.run(
        "shell",
        "--target",
        "cloud",
        "-y",
        "bash",
        "-c",
        "pwd; echo oops >&2; cat; exit 3",
        status=3,
    )
    assert out == "/workspace\n"
    assert sandbox_has_ended(cloud)


def test_without_a_terminal_the_error_names_the_command(cloud: CloudFixture) -> None:
    _, err = cloud.run("shell", "--gpu", "L4", "nvidia-smi", status=2)
    assert "`runner shell --gpu L4 nvidia-smi -y`" not in err  # it would be the command's own -y
    assert "`runner shell -y --gpu L4 nvidia-smi`" in err
    _, err = cloud.run("shell", "--gpu", "L4", status=2)
    assert "needs a terminal" in err


def test_gpu_option_and_price() -> None:
    assert parse_shell_gpus("h100:2").modal_names() == ["H100:2"]
    with pytest.raises(RunnerError, match="did you mean 'H100'"):
        parse_shell_gpus("h10")
    with pytest.raises(RunnerError, match="one GPU type"):
        parse_shell_gpus("H100,A100")
    assert shell_price(parse_shell_gpus("H100"), BUILT_IN) == pytest.approx(
        3.95 + 3 * (4 * 0.0000131 + 16 * 0.00000222) * 3600
    )
