"""A user's command in a folder, on Modal."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.runner.launch.test_pipeline import PIPELINE
from tests.runner.nanogpt_folder import make_folder
from tests.runner.targets.modal.conftest import CloudFixture

PERSIST = ("--persist", "out=checkpoints", "--persist", "data=data")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "nano")


def test_commands_share_persisted_paths(cloud: CloudFixture, folder: Path) -> None:
    words = ("cloud", "-y", "--dir", "../nano", *PERSIST)
    out, _ = cloud.run(*words, "--", "python", "data/letters/prepare.py")
    assert out == "prepared\n"
    assert (cloud.volume("data") / "nano" / "data" / "letters" / "train.bin").is_file()
    out, err = cloud.run(*words, "--gpu", "T4", "--", "python", "train.py", "config/short.py")
    assert "model: model of the folder" in out
    assert "iter 5: loss" in out
    assert "done" in err
    assert (cloud.volume("checkpoints") / "nano" / "out" / "ckpt.pt").read_text() == "5"
    folder_of_run = cloud.run_folder("nano-train")
    assert "iter 5: loss" in (folder_of_run / "log.txt").read_text()
    record = json.loads((folder_of_run / "run.json").read_text())
    assert (record["job"], record["status"], len(record["attempts"])) == ("command", "finished", 1)
    assert record["command"] == ["python", "train.py", "config/short.py"]
    assert [task["gpu"] for task in cloud.modal.tasks()] == ["", "T4"]
    assert json.loads(cloud.run("status", "nano-train", "--json")[0])["status"] == "finished"
    assert not (folder / "out").exists()
    cloud.run("pull", "checkpoints", "nano")
    cloud.run("pull", "checkpoints", "nano-train")
    checkpoints = cloud.checkout / "volumes" / "checkpoints"
    assert (checkpoints / "nano" / "out" / "ckpt.pt").read_text() == "5"
    assert "iter 5: loss" in (checkpoints / "nano-train" / "log.txt").read_text()
    assert cloud.run("logs", "nano-train", "--tail", "1")[0].startswith(("iter 5", "done"))


def test_preempted_command_resumes_from_its_persisted_files(
    strict_cloud: CloudFixture, folder: Path
) -> None:
    cloud = strict_cloud
    (folder / ".gitignore").write_text("*.pt\n")
    (folder / "data" / "letters" / "train.bin").write_text("shipped")
    resume = ("--resume-with", "--init_from=resume", "--resume-if", "out/ckpt.pt")
    words = ("cloud", "-y", "--dir", "../nano", *PERSIST, *resume, "--", "python", "train.py")
    process = cloud.start(*words, "--max_iters=40", "--pause=0.25")
    cloud.modal.wait_until(lambda: "iter 3:" in cloud.modal.log(), 60)
    cloud.modal.preempt()
    out, _ = cloud.finish(process)
    assert [attempt["reason"] for attempt in cloud.ledger("nano-train")["attempts"]] == [
        "preempted",
        "finished",
    ]
    (line,) = [line for line in out.splitlines() if line.startswith("resuming at")]
    assert int(line.split()[-1]) >= 3
    assert (cloud.volume("checkpoints") / "nano" / "out" / "ckpt.pt").read_text() == "40"
    record = json.loads((cloud.run_folder("nano-train") / "run.json").read_text())
    assert [attempt["reason"] for attempt in record["attempts"]] == ["SIGTERM", "finished"]
    # The uploaded files of a persisted path are next to it.
    assert (
        cloud.volume("data") / "nano" / "data" / "letters" / "train.bin"
    ).read_text() == "shipped"


def test_failed_command_uses_no_retry_and_can_be_resumed(cloud: CloudFixture, folder: Path) -> None:
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
    _, err = cloud.run(*words, status=100)
    assert "exit status 7" in err
    assert cloud.modal.calls()[0]["retries"] == [0]
    assert json.loads(cloud.run("status", "r", "--json")[0])["status"] == "failed"
    _, err = cloud.run("resume", "r", "-y", status=100)
    assert "its attempt 2" in err
    assert len(json.loads((cloud.run_folder("r") / "run.json").read_text())["attempts"]) == 2


def test_setup_layer_is_built_once(cloud: CloudFixture, folder: Path) -> None:
    (folder / "requirements.txt").write_text("six\n")
    words = ("cloud", "-y", "--dir", "../nano", "--setup", "echo more")
    _, err = cloud.run(*words, "--", "python", "-c", "print(1)")
    assert "setup" in err
    assert "pip install -r requirements.txt\n" in err
    assert "extends the image first" in err
    built = [command for build in cloud.modal.builds for command in build.commands]
    assert any("pip install -r requirements.txt" in command for command in built)
    assert any(command.endswith("echo more") for command in built)
    count = len(cloud.modal.builds)
    (folder / "train.py").write_text("print('edited')")
    out, err = cloud.run(*words, "--", "python", "train.py")
    assert out == "edited\n"
    assert "extends the image" not in err
    assert len(cloud.modal.builds) == count
    (folder / "requirements.txt").write_text("six>=1\n")
    _, err = cloud.run(*words, "--dry-run", "--", "python", "train.py")
    assert "extends the image first" in err


def test_plan_lists_uploads_without_ignored_files(cloud: CloudFixture, folder: Path) -> None:
    (folder / ".gitignore").write_text("/big/\n")
    (folder / "big").mkdir()
    with (folder / "big" / "tokens.bin").open("wb") as file:
        file.truncate(3_000_000_000)
    words = ("cloud", "-y", "--dir", "../nano")
    _, err = cloud.run(*words, "--dry-run", "--", "ls")
    assert "uploads " in err
    assert re.search(r"5 files, \d kB", err)
    assert "are lost when it ends" in err
    persisting = cloud.run(*words, *PERSIST, "--dry-run", "--", "ls")[1]
    assert "are lost when it ends" not in persisting
    out, _ = cloud.run(*words, "--", "ls")
    assert out.split() == ["config", "data", "model.py", "train.py"]
    (folder / ".gitignore").write_text("*\n")
    assert "has no files to upload" in cloud.run(*words, "--dry-run", "--", "ls", status=2)[1]


def test_pipeline_rents_a_machine_per_stage_and_asks_once(
    cloud: CloudFixture, folder: Path
) -> None:
    (cloud.checkout / "letters.yaml").write_text(
        PIPELINE.replace("    gpu: T4", "    gpu: T4\n    max_cost: 2")
    )
    words = ("cloud", "pipeline", "letters.yaml", "train.args=--max_iters=3")
    _, err = cloud.run(*words, status=2)
    assert "prepare: This costs" in err
    assert "train: This costs $0.8" in err
    assert "$2.00 at most" in err
    out, err = cloud.run(*words, "-y")
    assert out.startswith("prepared")
    assert out.endswith("iter 3: loss 1.0\n3")
    assert [task["gpu"] for task in cloud.modal.tasks()] == ["", "T4", ""]
    out, err = cloud.run(*words, "-y")
    assert out == "3"
    assert "train: skipped: it finished, and its outputs exist" in err


def test_metrics_and_several_machines(cloud: CloudFixture, folder: Path) -> None:
    program = "echo rank-$NODE_RANK-{rank} of $PET_NNODES at ${MASTER_ADDR:+$MASTER_PORT} loss=1.5"
    words = ("cloud", "-y", "--dir", "../nano", "--metric", r"loss=loss=([\d.]+)", "--name", "r")
    wide = ("--gpu", "H100:8", "--nodes", "2")
    _, err = cloud.run(*words, *wide, "--dry-run", "--", "torchrun", "--standalone", "x", status=2)
    assert "with --nodes remove it" in err
    out, err = cloud.run(*words, *wide, "--", "bash", "-c", program)
    assert {line for line in out.splitlines() if "rank" in line} == {
        f"rank-{rank}-{rank} of 2 at 29500 loss=1.5" for rank in range(2)
    }
    assert re.search(r"metrics +loss\n", err)
    (run,) = json.loads(cloud.run("runs", "--json")[0])
    assert (run["step"], run["loss"]) == (1, 1.5)
    launch = cloud.modal.calls()[0]
    assert launch
