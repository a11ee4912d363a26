"""Endings of a run of a user's train(): finished, failed or stopped; and harmless errors."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import subprocess
from pathlib import Path

import pytest

from experiment.run import LoggedStream, as_result
from tests.experiment.conftest import Workspace
from tests.waiting import wait_for

RETURNS = """\
def train(output_dir=".", lr: float = 1e-3, fail: bool = False):
    print("training with", lr)
    if fail:
        raise ValueError("as requested")
    return {"loss": 2 * lr, "steps": 3}
"""

WAITS = """\
import sys, time
from experiment import should_stop
def train(output_dir="."):
    while True:
        time.sleep(0.01)
        POLL
        print("waiting", flush=True)
    return {"done": 1}
"""
POLL = "if should_stop(): return {'half': 1}"

TRAINS = """\
import os, signal
from experiment import TBLogger, load_checkpoint, save_checkpoint
def train(output_dir=".", steps: int = 6, kill_at: str = ""):
    log = TBLogger(output_dir, "train")
    found = load_checkpoint(output_dir, config={"steps": steps})
    for step in range(found.step + 1 if found else 1, steps + 1):
        log.log(step, loss=1 / step)
        if os.environ.get("KILL") == f"log {step}":
            os.kill(os.getpid(), signal.SIGKILL)
        if step % 3 == 0:
            save_checkpoint(output_dir, step, config={"steps": steps})
        if os.environ.get("KILL") == f"checkpoint {step}":
            os.kill(os.getpid(), signal.SIGKILL)
    return {"steps": steps}
"""


class TestFinished:
    def test_returned_dict_is_the_result(self, workspace: Workspace) -> None:
        workspace.write("mine.py", RETURNS)
        out, err = workspace.run("mine.py", "lr=0.5", "--name", "first")
        assert out == "training with 0.5\n"
        assert "run 'first' finished: loss=1 steps=3" in err
        record = workspace.record("first")
        assert record["result"] == {"loss": 1.0, "steps": 3}
        assert record["arguments"] == {"lr": 0.5, "fail": False}
        assert (record["status"], record["job"]) == ("finished", "experiment")
        assert "training with 0.5" in workspace.log("first")

    def test_finished_run_is_shown_and_not_run_again(self, workspace: Workspace) -> None:
        path = workspace.write("mine.py", RETURNS)
        workspace.run("mine.py", "lr=0.5")
        out, err = workspace.run("mine.py", "lr=0.5", "--json")
        assert json.loads(out)["result"]["loss"] == 1.0
        assert "already finished: loss=1 steps=3" in err
        assert len(workspace.record("mine")["attempts"]) == 1
        path.write_text(RETURNS + "# edited\n")
        assert "the file has changed since" in workspace.run("mine.py", "lr=0.5")[1]

    def test_different_parameters_under_the_same_name_are_refused(
        self, workspace: Workspace
    ) -> None:
        workspace.write("mine.py", RETURNS)
        workspace.run("mine.py", "lr=0.5")
        _, err = workspace.run("mine.py", "lr=0.25", status=1)
        assert "lr: 0.5 → 0.25" in err
        assert "--name NEW-NAME" in err
        workspace.write("other.py", RETURNS)
        _, err = workspace.run("other.py", "lr=0.5", "--name", "mine", status=1)
        assert "file: mine.py → other.py" in err

    @pytest.mark.parametrize(
        ("returned", "kept"),
        [
            ("None", {}),
            ("3.5", {"result": 3.5}),
            ("{'a': float('nan'), 'b': [1, (2,)]}", {"a": "nan", "b": [1, [2]]}),
            ("{'a': object}", {"a": "<class 'object'>"}),
        ],
    )
    def test_result_that_json_cannot_represent_is_kept_as_text(
        self, workspace: Workspace, returned: str, kept: object
    ) -> None:
        workspace.write("mine.py", f"def train(output_dir='.'):\n    return {returned}\n")
        workspace.run("mine.py")
        assert workspace.record("mine")["result"] == kept

    def test_modules_next_to_the_file_may_have_names_of_our_packages(
        self, workspace: Workspace
    ) -> None:
        workspace.write("model.py", "WIDTH = 7\n")
        workspace.write("job.py", "NAME = 'theirs'\n")
        workspace.write(
            "mine.py",
            "import job, model\nfrom experiment import TBLogger, save_checkpoint\n"
            "def train(output_dir='.'):\n"
            "    TBLogger(output_dir).log(1, loss=1.0)\n"
            "    save_checkpoint(output_dir, 1, config={})\n"
            "    return {'width': model.WIDTH, 'name': job.NAME}\n",
        )
        workspace.run("mine.py")
        assert workspace.record("mine")["result"] == {"width": 7, "name": "theirs"}
        assert (workspace.run_folder("mine") / "latest").read_text() == "step_00000001\n"


class TestFailed:
    def test_exception_is_a_failed_run_with_its_traceback_in_the_log(
        self, workspace: Workspace
    ) -> None:
        workspace.write("mine.py", RETURNS)
        _, err = workspace.run("mine.py", "fail=yes", status=100)
        record = workspace.record("mine")
        assert record["status"] == "failed"
        assert record["attempts"][0]["reason"] == "ValueError: as requested"
        log = workspace.log("mine")
        assert 'raise ValueError("as requested")' in log
        assert "experiment/run.py" not in log  # the traceback starts in the user's file
        assert "ValueError: as requested" in err

    @pytest.mark.parametrize("can_record", [True, False])
    def test_full_disk_is_an_error_of_one_line(
        self, workspace: Workspace, can_record: bool
    ) -> None:
        workspace.write(
            "mine.py",
            "import errno, os\nfrom job.run_record import RunRecord\n"
            "def refuse(*_):\n"
            "    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), 'metrics.jsonl')\n"
            "def train(output_dir='.'):\n"
            f"    {'pass' if can_record else 'RunRecord.write = refuse'}\n"
            "    refuse()\n",
        )
        _, err = workspace.run("mine.py", status=100)
        assert "Traceback" not in err
        assert "error: the experiment failed: metrics.jsonl: no space left on device" in err
        assert (workspace.record("mine")["status"] == "failed") == can_record

    def test_finished_run_that_cannot_be_recorded_is_not_reported_as_finished(
        self, workspace: Workspace
    ) -> None:
        workspace.write(
            "mine.py",
            "import errno, os\nfrom job.run_record import RunRecord\n"
            "def refuse(*_):\n    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))\n"
            "def train(output_dir='.'):\n    RunRecord.write = refuse\n",
        )
        _, err = workspace.run("mine.py", status=100)
        assert "Traceback" not in err
        assert " finished: " not in err


class TestStopped:
    @pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
    @pytest.mark.parametrize("polls", [True, False])
    def test_stopped_run_is_unfinished(
        self, workspace: Workspace, polls: bool, which: signal.Signals
    ) -> None:
        workspace.write("mine.py", WAITS.replace("POLL", POLL if polls else "pass"))
        process = workspace.start("mine.py")
        wait_for(lambda: "waiting" in workspace.log("mine"))
        process.send_signal(which)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 101, err
        record = workspace.record("mine")
        assert record["status"] == "unfinished"
        assert record["attempts"][0]["reason"] == which.name
        assert record["result"] == {}
        assert ("before the file called should_stop()" in err) == (not polls)

    def test_second_ctrl_c_interrupts_a_file_that_polls_too_rarely(
        self, workspace: Workspace
    ) -> None:
        workspace.write(
            "mine.py",
            "import time\nfrom experiment import should_stop\ndef train(output_dir='.'):\n"
            "    should_stop()\n    print('waiting', flush=True)\n    time.sleep(100)\n",
        )
        process = workspace.start("mine.py")
        wait_for(lambda: "waiting" in workspace.log("mine"))
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.5)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 101, err
        assert workspace.record("mine")["status"] == "unfinished"

    @pytest.mark.parametrize("moment", ["log 5", "checkpoint 3", "checkpoint 6"])
    def test_killed_and_resumed_run_equals_the_unbroken_one(
        self, workspace: Workspace, moment: str
    ) -> None:
        workspace.write("mine.py", TRAINS)
        workspace.run("mine.py", "--name", "unbroken")
        killed = workspace.start("mine.py", "--name", "killed", env={"KILL": moment})
        killed.communicate(timeout=60)
        assert killed.returncode == -signal.SIGKILL
        workspace.run("mine.py", "--name", "killed")
        folders = [workspace.run_folder(name) for name in ("unbroken", "killed")]
        metrics = [(folder / "metrics.jsonl").read_text() for folder in folders]
        assert metrics[0] == metrics[1]
        names = [sorted(path.name for path in folder.iterdir()) for folder in folders]
        assert names[0] == names[1]
        records = [workspace.record(name) for name in ("unbroken", "killed")]
        for key in ("status", "step", "max_steps", "train_loss", "result"):
            assert records[0][key] == records[1][key], key
        assert len(records[1]["attempts"]) == 2


class TestStreams:
    """Errors of the output streams do not end a run."""

    PRINTS = "def train(output_dir='.'):\n    for _ in range(3000):\n        print('x' * 80)\n"

    def test_reader_that_closes_the_pipe(self, workspace: Workspace) -> None:
        workspace.write("mine.py", self.PRINTS)
        process = workspace.start("mine.py")
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        process.stderr.close()
        assert process.wait(timeout=60) == 0
        assert workspace.record("mine")["status"] == "finished"
        assert workspace.log("mine").count("x" * 80) == 3000

    def test_closed_terminal(self, workspace: Workspace) -> None:
        """Writes fail with EIO; without SIGHUP, as under nohup, the run continues."""
        workspace.write(
            "mine.py",
            "import pathlib, time\ndef train(output_dir='.'):\n    print('ready')\n"
            "    while not pathlib.Path('closed').exists():\n        time.sleep(0.01)\n"
            "    print('after')\n",
        )
        controller, terminal = pty.openpty()
        process = workspace.start("mine.py", stdin=terminal, stdout=terminal, stderr=terminal)
        os.close(terminal)
        wait_for(lambda: "ready" in workspace.log("mine"))
        os.close(controller)
        workspace.write("closed", "")
        assert process.wait(timeout=60) == 0
        assert workspace.record("mine")["status"] == "finished"
        assert "after" in workspace.log("mine")

    @pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
    def test_encoding_that_lacks_a_character(self, workspace: Workspace, encoding: str) -> None:
        workspace.write("mine.py", "def train(output_dir='.'):\n    print('naïve 日本')\n")
        out, _ = workspace.run("mine.py", env={"PYTHONIOENCODING": encoding}, errors="replace")
        assert r"\u65e5" in out
        assert "naïve 日本" in workspace.log("mine")

    def test_full_disk_under_the_log(self) -> None:
        shown = io.StringIO()
        stream = LoggedStream(shown, Path("/dev/full"))
        stream.write("one\ntwo")
        stream.close()
        assert shown.getvalue() == "one\ntwo"

    def test_progress_bar_is_logged_once(self, tmp_path: Path) -> None:
        stream = LoggedStream(io.StringIO(), tmp_path / "log.txt")
        stream.write("10%\r50%\r100%\n")
        stream.close()
        assert (tmp_path / "log.txt").read_text().endswith(" 100%\n")


def test_a_result_that_is_nested_too_deeply_is_kept_as_text(
    capsys: pytest.CaptureFixture[str],
) -> None:
    cycle: dict[str, object] = {"score": 1}
    cycle["self"] = cycle
    deep: object = 1
    for _ in range(5000):
        deep = [deep]
    result = json.loads(json.dumps(as_result({"cycle": cycle, "deep": deep})))
    assert result["cycle"]["self"]["score"] == 1
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 2
    assert all("is nested too deeply, saved as text" in line for line in warnings)
