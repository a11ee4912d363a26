"""Any command in any folder, in the cloud."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.runner.launch.test_pipeline import PIPELINE
from tests.runner.nanogpt_folder import make_folder
from tests.runner.targets.modal.conftest import Lab

KEEPS = ("--persist", "out=checkpoints", "--persist", "data=data")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "nano")


def test_data_and_checkpoint_are_found_by_the_commands_after(lab: Lab, folder: Path) -> None:
    words = ("cloud", "-y", "--dir", "../nano", *KEEPS)
    out, _ = lab.run(*words, "--", "python", "data/letters/prepare.py")
    assert out == "prepared\n"
    assert (lab.volume("data") / "nano" / "data" / "letters" / "train.bin").is_file()
    out, err = lab.run(*words, "--gpu", "T4", "--", "python", "train.py", "config/short.py")
    assert "model: the folder's own" in out
    assert "iter 5: loss" in out
    assert "done" in err
    assert (lab.volume("checkpoints") / "nano" / "out" / "ckpt.pt").read_text() == "5"
    folder_of_run = lab.run_folder("nano-train")
    assert "iter 5: loss" in (folder_of_run / "log.txt").read_text()
    record = json.loads((folder_of_run / "run.json").read_text())
    assert (record["job"], record["status"], len(record["attempts"])) == ("command", "finished", 1)
    assert record["command"] == ["python", "train.py", "config/short.py"]
    assert [task["gpu"] for task in lab.modal.tasks()] == ["", "T4"]
    assert json.loads(lab.run("status", "nano-train", "--json")[0])["status"] == "finished"
    assert not (folder / "out").exists()
    lab.run("pull", "checkpoints", "nano")
    lab.run("pull", "checkpoints", "nano-train")
    here = lab.checkout / "volumes" / "checkpoints"
    assert (here / "nano" / "out" / "ckpt.pt").read_text() == "5"
    assert "iter 5: loss" in (here / "nano-train" / "log.txt").read_text()
    assert lab.run("logs", "nano-train", "--tail", "1")[0].startswith(("iter 5", "done"))


def test_after_a_preemption_it_goes_on_from_what_it_kept(strict_lab: Lab, folder: Path) -> None:
    lab = strict_lab
    (folder / ".gitignore").write_text("*.pt\n")
    (folder / "data" / "letters" / "train.bin").write_text("shipped")
    resume = ("--resume-with", "--init_from=resume", "--resume-if", "out/ckpt.pt")
    words = ("cloud", "-y", "--dir", "../nano", *KEEPS, *resume, "--", "python", "train.py")
    process = lab.start(*words, "--max_iters=40", "--pause=0.25")
    lab.modal.wait_until(lambda: "iter 3:" in lab.modal.log(), 60)
    lab.modal.preempt()
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, out + err
    assert [attempt["reason"] for attempt in lab.ledger("nano-train")["attempts"]] == [
        "preempted",
        "finished",
    ]
    (line,) = [line for line in out.splitlines() if line.startswith("resuming at")]
    assert int(line.split()[-1]) >= 3
    assert (lab.volume("checkpoints") / "nano" / "out" / "ckpt.pt").read_text() == "40"
    record = json.loads((lab.run_folder("nano-train") / "run.json").read_text())
    assert [attempt["reason"] for attempt in record["attempts"]] == ["SIGTERM", "finished"]
    # What the folder brings of a kept path lies beside what is kept.
    assert (lab.volume("data") / "nano" / "data" / "letters" / "train.bin").read_text() == "shipped"


def test_a_failure_burns_no_retry_and_resume_takes_it_up(lab: Lab, folder: Path) -> None:
    words = (
        "cloud",
        "-y",
        "--dir",
        "../nano",
        "--name",
        "r",
        "--",
        "python",
        "-c",
        "raise SystemExit(7)",
    )
    _, err = lab.run(*words, status=100)
    assert "exit status 7" in err
    assert lab.modal.calls()[0]["retries"] == [0]
    assert json.loads(lab.run("status", "r", "--json")[0])["status"] == "failed"
    _, err = lab.run("resume", "r", "-y", status=100)
    assert "its attempt 2" in err
    assert len(json.loads((lab.run_folder("r") / "run.json").read_text())["attempts"]) == 2


def test_setup_is_a_layer_that_is_built_once(lab: Lab, folder: Path) -> None:
    (folder / "requirements.txt").write_text("six\n")
    words = ("cloud", "-y", "--dir", "../nano", "--setup", "echo more")
    _, err = lab.run(*words, "--", "python", "-c", "print(1)")
    assert "setup" in err
    assert "pip install -r requirements.txt\n" in err
    assert "extends the image first" in err
    built = [command for build in lab.modal.builds for command in build.commands]
    assert any("pip install -r requirements.txt" in command for command in built)
    assert any(command.endswith("echo more") for command in built)
    count = len(lab.modal.builds)
    (folder / "train.py").write_text("print('edited')")
    out, err = lab.run(*words, "--", "python", "train.py")
    assert out == "edited\n"
    assert "extends the image" not in err
    assert len(lab.modal.builds) == count
    (folder / "requirements.txt").write_text("six>=1\n")
    _, err = lab.run(*words, "--dry-run", "--", "python", "train.py")
    assert "extends the image first" in err


def test_the_plan_says_what_goes_and_ships_nothing_that_is_ignored(lab: Lab, folder: Path) -> None:
    (folder / ".gitignore").write_text("/big/\n")
    (folder / "big").mkdir()
    with (folder / "big" / "tokens.bin").open("wb") as file:
        file.truncate(3_000_000_000)
    words = ("cloud", "-y", "--dir", "../nano")
    _, err = lab.run(*words, "--dry-run", "--", "ls")
    assert "uploads " in err
    assert re.search(r"5 files, \d kB", err)
    out, _ = lab.run(*words, "--", "ls")
    assert out.split() == ["config", "data", "model.py", "train.py"]
    (folder / ".gitignore").write_text("*\n")
    assert "nothing of" in lab.run(*words, "--dry-run", "--", "ls", status=2)[1]


def test_a_pipeline_gives_each_stage_its_machine_and_asks_once(lab: Lab, folder: Path) -> None:
    (lab.checkout / "letters.yaml").write_text(
        PIPELINE.replace("    gpu: T4", "    gpu: T4\n    max_cost: 2")
    )
    words = ("cloud", "pipeline", "letters.yaml", "train.args=--max_iters=3")
    _, err = lab.run(*words, status=2)
    assert "prepare: This costs" in err
    assert "train: This costs $0.8" in err
    assert "$2.00 at most" in err
    out, err = lab.run(*words, "-y")
    assert out.startswith("prepared")
    assert out.endswith("iter 3: loss 1.0\n3")
    assert [task["gpu"] for task in lab.modal.tasks()] == ["", "T4", ""]
    out, err = lab.run(*words, "-y")
    assert out == "3"
    assert "train: skipped: it finished, and its outputs are there" in err
