"""One run on several targets, and Ctrl-C on a terminal."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest

from tests.runner.targets.modal.conftest import ROOT, CloudFixture, train_here

STEPS = ("max_steps=150", "checkpoint_every=10", "eval_every=50")


def test_run_moves_from_host_to_modal_and_back(cloud: CloudFixture, tmp_path: Path) -> None:
    unbroken = tmp_path / "unbroken"
    shutil.copytree(cloud.checkout, unbroken)
    train_here(unbroken, *STEPS)
    move_to_modal_and_back(cloud)
    # The command of `docker compose up`, without the container.
    train_here(cloud.checkout, *STEPS)
    run = cloud.checkout / "volumes" / "checkpoints" / "tiny"
    moved, uninterrupted = (
        folder / "step_00000150" / "model.safetensors"
        for folder in (run, unbroken / "volumes" / "checkpoints" / "tiny")
    )
    assert moved.read_bytes() == uninterrupted.read_bytes()
    record = json.loads((run / "run.json").read_text())
    targets = [attempt["launch"].get("target") for attempt in record["attempts"]]
    assert targets == ["host", "cloud", None]
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    assert [row["step"] for row in rows if row["kind"] == "train"] == list(range(1, 151))
    words = ("--name", "tiny", "--device", "cpu", "prompt=the ")
    assert cloud.run("host", "sample", *words, OMP_NUM_THREADS="1")[0].startswith("the ")
    check_newer_checkpoint_is_required(cloud)


def check_newer_checkpoint_is_required(cloud: CloudFixture) -> None:
    """Check that a run finished on the host is not resumed from an older checkpoint on Modal."""
    _, err = cloud.run("resume", "tiny", "--target", "cloud", "-y", status=2)
    assert "is at step 150 on " in err
    assert "`runner push checkpoints tiny`" in err
    cloud.run("push", "checkpoints", "tiny", "-y")
    _, err = cloud.run("resume", "tiny", "--target", "cloud", "--dry-run")
    assert "no GPU" in err
    _, err = cloud.run("resume", "tiny", "--target", "cloud", "--dry-run", "--gpu", "L4:2")
    assert "2 x L4" in err


def move_to_modal_and_back(cloud: CloudFixture) -> None:
    """Train and stop `tiny` on the host, push it, resume and stop it on Modal, pull it."""
    cloud.hold_at(40)
    run = cloud.checkout / "volumes" / "checkpoints" / "tiny"
    host = cloud.start("host", "tiny", *STEPS, "--device", "cpu", OMP_NUM_THREADS="1")
    cloud.modal.wait_until(lambda: '"step": 30,' in _text(run / "metrics.jsonl"), 60)
    host.send_signal(signal.SIGTERM)
    host.communicate(timeout=60)
    assert host.returncode == 101

    _, err = cloud.run("resume", "tiny", "--target", "cloud", "-y", status=1)
    assert "runner push checkpoints tiny" in err
    cloud.run("push", "checkpoints", "tiny", "-y")
    cloud.hold_at(100)
    resumed = cloud.start("resume", "tiny", "--target", "cloud", "-y", "--device", "cpu")
    cloud.wait_for_step(80)
    cloud.run("pull", "checkpoints", "tiny", "-y")
    for line in (("resume", "tiny", "--target", "host"), ("host", "tiny", *STEPS)):
        _, err = cloud.run(*line, "--dry-run", status=1)
        assert "run 'tiny' is running on cloud; stop it first: `runner stop tiny`" in err
    resumed.send_signal(signal.SIGINT)
    assert resumed.wait(60) == 101, resumed.communicate()

    cloud.run("pull", "checkpoints", "tiny", "-y")


@pytest.mark.parametrize(
    ("answer", "status", "reason"), [("y", 101, "stopped"), ("n", 130, "finished")]
)
def test_ctrl_c_on_a_terminal_asks(
    light_cloud: CloudFixture, answer: str, status: int, reason: str
) -> None:
    cloud = light_cloud
    go = cloud.hold_at(25)
    words = ["-c", "from runner.cli import main; main()"]
    words += ["cloud", "tiny", "--device", "cpu", "max_steps=150"]
    person = pexpect.spawn(
        sys.executable, words, cwd=str(cloud.checkout), env=cloud.environ, timeout=60
    )
    person.expect("at most. Start it?")
    person.sendline("y")
    cloud.wait_for_step(10)
    person.sendintr()
    person.expect(r"Stop run 'tiny'\?.*\[y/N\]: ")
    if answer == "n":  # its output no longer goes to this terminal
        go.touch()
        cloud.wait_for_step(60)
    person.sendline(answer)
    person.expect(pexpect.EOF)
    person.close()
    assert person.exitstatus == status
    if answer == "n":
        message = (
            "detached; the run continues. Follow it with `runner logs tiny --follow`, "
            "stop it with `runner stop tiny`"
        )
        assert person.before.decode().splitlines() == ["n", message]
    go.touch()
    cloud.modal.wait_until(lambda: cloud.ledger()["status"] is not None, 60)
    assert [attempt["reason"] for attempt in cloud.ledger()["attempts"]] == [reason]


def test_commands_without_an_account_do_not_import_modal(cloud: CloudFixture) -> None:
    code = """
import sys
from click.testing import CliRunner
from runner.cli import main
for words in (["--help"], ["host", "tiny", "--dry-run"], ["runs"], ["cloud", "--help"]):
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, (words, result.output)
print([name for name in ("modal", "torch") if name in sys.modules])
"""
    environ = {
        name: value for name, value in cloud.environ.items() if not name.startswith("MODAL_")
    }
    out = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cloud.checkout,
        env=environ,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert out.strip() == "[]"


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def test_entrypoint_imports_the_standard_library_and_modal_only() -> None:
    code = """
import sys
import modal
before = set(sys.modules)
import runner.targets.modal.entrypoint
names = {name.partition(".")[0] for name in set(sys.modules) - before}
foreign = names - set(sys.stdlib_module_names)
print(sorted(foreign))
"""
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert out.strip() == "['job', 'runner']"
