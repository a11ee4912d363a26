"""One run on three targets, and a person at the terminal."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest

from tests.runner.targets.modal.conftest import ROOT, Lab, train_here

STEPS = ("max_steps=150", "checkpoint_every=10", "eval_every=50")


def test_a_run_begun_on_the_host_goes_on_in_the_cloud_and_is_finished_here(
    lab: Lab, tmp_path: Path
) -> None:
    unbroken = tmp_path / "unbroken"
    shutil.copytree(lab.checkout, unbroken)
    train_here(unbroken, *STEPS)
    begin_here_and_go_on_there(lab)
    # What `docker compose up` runs inside, without the container.
    train_here(lab.checkout, *STEPS)
    here = lab.checkout / "volumes" / "checkpoints" / "tiny"
    ours, theirs = (
        folder / "step_00000150" / "model.safetensors"
        for folder in (here, unbroken / "volumes" / "checkpoints" / "tiny")
    )
    assert ours.read_bytes() == theirs.read_bytes()
    record = json.loads((here / "run.json").read_text())
    assert [attempt["launch"].get("target") for attempt in record["attempts"]] == [
        "host",
        "cloud",
        None,
    ]
    rows = map(json.loads, (here / "metrics.jsonl").read_text().splitlines())
    assert [row["step"] for row in rows if row["kind"] == "train"] == list(range(1, 151))
    the_newer_goes_there_first(lab)


def the_newer_goes_there_first(lab: Lab) -> None:
    """The run that is finished here does not go on from its older checkpoint in the cloud; once it is there, it does on
    the machine that it had in the cloud."""
    _, err = lab.run("resume", "tiny", "--target", "cloud", "-y", status=2)
    assert "is at step 150 here" in err
    assert "`runner push checkpoints tiny`" in err
    lab.run("push", "checkpoints", "tiny", "-y")
    _, err = lab.run("resume", "tiny", "--target", "cloud", "--dry-run")
    assert "no GPU" in err
    _, err = lab.run("resume", "tiny", "--target", "cloud", "--dry-run", "--gpu", "L4:2")
    assert "2 x L4" in err


def begin_here_and_go_on_there(lab: Lab) -> None:
    """The run `tiny`: begun on the host, stopped; pushed, taken up in the cloud, stopped; pulled."""
    lab.hold_at(40)
    here = lab.checkout / "volumes" / "checkpoints" / "tiny"
    host = lab.start("host", "tiny", *STEPS, "--device", "cpu", OMP_NUM_THREADS="1")
    lab.modal.wait_until(lambda: '"step": 30,' in _text(here / "metrics.jsonl"), 60)
    host.send_signal(signal.SIGTERM)
    host.communicate(timeout=60)
    assert host.returncode == 101

    _, err = lab.run("resume", "tiny", "--target", "cloud", "-y", status=1)
    assert "runner push checkpoints tiny" in err
    lab.run("push", "checkpoints", "tiny", "-y")
    lab.hold_at(100)
    cloud = lab.start("resume", "tiny", "--target", "cloud", "-y", "--device", "cpu")
    lab.wait_for_step(80)
    lab.run("pull", "checkpoints", "tiny", "-y")
    for line in (("resume", "tiny", "--target", "host"), ("host", "tiny", *STEPS)):
        _, err = lab.run(*line, "--dry-run", status=1)
        assert "run 'tiny' is at work in the cloud; `runner stop tiny` first" in err
    cloud.send_signal(signal.SIGINT)
    assert cloud.wait(60) == 101, cloud.communicate()

    lab.run("pull", "checkpoints", "tiny", "-y")


def test_a_run_of_the_cloud_is_pulled_and_sampled_from_here(lab: Lab) -> None:
    lab.train("--device", "cpu", "max_steps=10")
    lab.run("pull", "checkpoints", "tiny", "-y")
    out, _ = lab.run(
        "host", "sample", "--name", "tiny", "--device", "cpu", "prompt=the ", OMP_NUM_THREADS="1"
    )
    assert out.startswith("the ")


@pytest.mark.parametrize(
    ("answer", "status", "reason"), [("y", 101, "stopped"), ("n", 130, "finished")]
)
def test_ctrl_c_on_a_terminal_asks(lab: Lab, answer: str, status: int, reason: str) -> None:
    go = lab.hold_at(25)
    words = [
        "-c",
        "from runner.cli import main; main()",
        "cloud",
        "tiny",
        "--device",
        "cpu",
        "max_steps=150",
    ]
    person = pexpect.spawn(
        sys.executable, words, cwd=str(lab.checkout), env=lab.environ, timeout=60
    )
    person.expect("at most. Start it?")
    person.sendline("y")
    lab.wait_for_step(10)
    person.sendintr()
    person.expect(r"Stop run 'tiny'\?.*\[y/N\]: ")
    if answer == "n":  # what it prints meanwhile is not for a terminal that was left
        go.touch()
        lab.wait_for_step(60)
    person.sendline(answer)
    person.expect(pexpect.EOF)
    person.close()
    assert person.exitstatus == status
    if answer == "n":
        words = "left; the run goes on. `runner logs tiny --follow` shows it, `runner stop tiny` ends it"
        assert person.before.decode().splitlines() == ["n", words]
    go.touch()
    lab.modal.wait_until(lambda: lab.ledger()["status"] is not None, 60)
    assert [attempt["reason"] for attempt in lab.ledger()["attempts"]] == [reason]


def test_without_an_account_nothing_waits_for_modal(lab: Lab) -> None:
    code = """
import sys
from click.testing import CliRunner
from runner.cli import main
for words in (["--help"], ["host", "tiny", "--dry-run"], ["runs"], ["cloud", "--help"]):
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, (words, result.output)
print([name for name in ("modal", "torch") if name in sys.modules])
"""
    environ = {name: value for name, value in lab.environ.items() if not name.startswith("MODAL_")}
    out = subprocess.run(
        [sys.executable, "-c", code],
        cwd=lab.checkout,
        env=environ,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert out.strip() == "[]"


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def test_what_runs_before_the_job_needs_nothing_but_modal() -> None:
    code = """
import sys
import modal
before = set(sys.modules)
import runner.targets.modal.entrypoint
foreign = {name.partition(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)
print(sorted(foreign))
"""
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert out.strip() == "['runner']"
