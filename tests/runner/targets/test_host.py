"""The target host, with real processes and signals."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pexpect
import pytest

from job.files import exclusive_lock
from job.run_record import read_record
from runner.console import CliContext
from runner.runs.store import read_exit, read_launch, write_exit, write_launch
from runner.signals import SignalForwarder
from runner.target import LaunchHandle
from runner.targets import process
from runner.targets.compose import ComposeTarget
from runner.targets.host import HostTarget
from runner.targets.process import identity_of, is_alive, machine_name
from tests.runner.conftest import ROOT
from tests.waiting import wait_for

# Stops like the trainer: at SIGINT and SIGTERM it writes a checkpoint and exits with 101.
STOPS_ON_SIGNAL = """
import os, signal, sys, time
from pathlib import Path
folder = Path(os.environ["CHECKPOINTS_PATH"]) / sys.argv[sys.argv.index("--name") + 1]
folder.mkdir(parents=True, exist_ok=True)
stopped = False
def stop(number, frame):
    global stopped
    stopped = True
    with open(folder / "signals", "a") as file:
        file.write(f"{number}\\n")
    (folder / "latest").write_text("step_00000007")
signal.signal(signal.SIGINT, stop)
signal.signal(signal.SIGTERM, stop)
(folder / "log.txt").write_text("step 1\\n")
(folder / "ready").touch()
while not stopped:  # signal.pause() would miss an earlier signal
    time.sleep(0.01)
time.sleep(0.2)  # a second signal would be recorded too
sys.exit(101)
"""

IGNORES_SIGNALS = STOPS_ON_SIGNAL.replace("sys.exit(101)", "while True: signal.pause()")

# Two processes under torchrun: each records its signals, the first one writes the record.
TORCHRUN_JOB = """
import json, os, signal, sys, time
from pathlib import Path
folder = Path(os.environ["CHECKPOINTS_PATH"]) / sys.argv[sys.argv.index("--name") + 1]
started, rank, stopped = time.time(), os.environ["RANK"], False
def stop(number, frame):
    global stopped
    stopped = True
    with open(folder / f"signals{rank}", "a") as file:
        file.write(f"{number}\\n")
signal.signal(signal.SIGINT, stop)
(folder / f"ready{rank}").touch()
while not stopped:
    time.sleep(0.01)
time.sleep(0.2)
attempt = {"started": started, "ended": time.time(), "launch": {"target": "host"}}
record = {"name": "quickstart", "status": "unfinished", "attempts": [attempt]}
if rank == "0":
    (folder / "run.json").write_text(json.dumps(record))
sys.exit(101)
"""


@pytest.fixture
def folder(checkout: Path) -> Path:
    return checkout / "volumes" / "checkpoints" / "quickstart"


class TestAttached:
    def test_stdout_of_the_job_is_passed_through(self, spawn, job) -> None:
        job("import sys; print('data'); print('talk', file=sys.stderr)")
        process = spawn("host")
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (0, "data\n")
        assert "talk" in err

    def test_arguments_and_environment_of_the_job(self, spawn, job, checkout) -> None:
        job(
            "import json, os, sys; print(json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]))"
        )
        process = spawn("host", "warm", "lr=1e-3", "--name", "mine", "--device", "cpu")
        out, _ = process.communicate(timeout=60)
        words, cwd, variables = json.loads(out)
        assert words == ["configs/warm.yaml", "lr=1e-3", "--name", "mine", "--device", "cpu"]
        assert cwd == str(checkout)
        assert variables["CHECKPOINTS_PATH"] == str(checkout / "volumes" / "checkpoints")
        assert json.loads(variables["RUN_LAUNCH"])["target"] == "host"

    def test_variables_set_the_volumes(self, spawn, job, tmp_path) -> None:
        job("import os; print(os.environ['DATA_PATH'])")
        out, _ = spawn("host", DATA_PATH=str(tmp_path / "d")).communicate(timeout=60)
        assert out == f"{tmp_path / 'd'}\n"

    def test_variables_set_the_caches(self, spawn, job, checkout, tmp_path) -> None:
        job("import os; print(os.environ['TIKTOKEN_CACHE_DIR'], os.environ['TRITON_CACHE_DIR'])")
        own = {"TIKTOKEN_CACHE_DIR": "words", "TRITON_CACHE_DIR": ""}
        out, _ = spawn("host", **own, CACHE_PATH=str(tmp_path)).communicate(timeout=60)
        assert out == f"{checkout / 'words'} {tmp_path / 'triton'}\n"

    def test_a_secret_of_dotenv_reaches_the_job_and_not_the_plan(
        self, spawn, job, checkout
    ) -> None:
        job("import os; print(os.environ.get('WANDB_API_KEY'))")
        (checkout / ".env").write_text("WANDB_API_KEY=s3cret\n")
        out, err = spawn("host", "wandb_project=p", WANDB_API_KEY="").communicate(timeout=60)
        assert out == "s3cret\n"
        assert "WANDB_API_KEY" in err
        assert "s3cret" not in err

    @pytest.mark.parametrize(
        ("code", "status"), [("1", 100), ("101", 101), ("2", 2), ("'words'", 100), ("0", 0)]
    )
    def test_exit_status(self, spawn, job, checkout, code: str, status: int) -> None:
        (checkout / "volumes" / "checkpoints" / "quickstart" / "step_00000010").mkdir(parents=True)
        job(f"import sys; sys.exit({code})")
        process = spawn("host")
        process.communicate(timeout=60)
        assert process.returncode == status

    @pytest.mark.parametrize("code", ["1", "2"])
    def test_a_job_that_fails_before_it_starts_leaves_no_run(
        self, spawn, job, checkout, code: str
    ) -> None:
        job(f"import sys; print('error: no such text', file=sys.stderr); sys.exit({code})")
        process = spawn("host")
        _, err = process.communicate(timeout=60)
        assert process.returncode == int(code)
        assert "error: no such text" in err
        assert "runner logs" not in err  # there are no logs
        assert ("the run did not start" in err) == (code == "1")
        assert not (checkout / "volumes" / "checkpoints" / "quickstart").exists()

    def test_a_run_whose_folder_was_deleted_counts_as_started(self, spawn, job, folder) -> None:
        job(
            "import shutil, sys, time\n"
            "from pathlib import Path\n"
            f"folder = Path({str(folder)!r})\n"
            "while not (folder / 'launch.json').exists():\n"
            "    time.sleep(0.01)\n"
            "shutil.rmtree(folder)\n"
            "sys.exit('error: there is no log.txt')\n"
        )
        process = spawn("host")
        _, err = process.communicate(timeout=60)
        assert process.returncode == 100
        assert "the run did not start" not in err
        assert "the job failed with exit status 1" in err

    @pytest.mark.parametrize("options", [[], ["--detach"]])
    def test_the_second_launch_of_one_moment_is_refused(self, spawn, job, folder, options) -> None:
        job("print('it runs')")
        folder.mkdir(parents=True)
        (folder / "output.txt").write_text("of the first")
        with exclusive_lock(folder):  # the first one is between its plan and its record
            process = spawn("host", *options)
            _, err = process.communicate(timeout=60)
        assert process.returncode == 1
        assert "run 'quickstart' is already starting on this machine" in err
        assert [path.name for path in folder.iterdir()] == ["output.txt"]
        assert (folder / "output.txt").read_text() == "of the first"

    def test_of_many_launches_of_one_moment_one_runs(self, spawn, job, checkout) -> None:
        job("import os; print('it runs', flush=True); os.read(os.open('end', os.O_RDONLY), 1)")
        os.mkfifo(checkout / "end")
        processes = [spawn("host") for _ in range(4)]
        wait_for(lambda: sum(process.poll() is None for process in processes) == 1)
        (checkout / "end").open("w").close()  # the job reads the end of the FIFO
        answers = [process.communicate(timeout=60) for process in processes]
        assert sorted(process.returncode for process in processes) == [0, 1, 1, 1]
        assert [out for out, _ in answers if out] == ["it runs\n"]
        assert sum("run 'quickstart' is already starting on" in err for _, err in answers) == 3

    def test_ctrl_c_during_imports_ends_the_job_without_a_traceback(
        self, spawn, job, checkout
    ) -> None:
        job("print('importing', flush=True)\nimport time; time.sleep(600)")
        shutil.copy(ROOT / "model" / "__init__.py", checkout / "model")
        process = spawn("host")
        assert process.stdout.readline() == "importing\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "Traceback" not in err
        assert not (checkout / "volumes" / "checkpoints" / "quickstart").exists()

    def test_a_killed_job_has_failed(self, spawn, job) -> None:
        job("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
        process = spawn("host")
        _, err = process.communicate(timeout=60)
        assert process.returncode == 100
        assert "often for lack of memory" in err


class TestSignals:
    @pytest.mark.parametrize(
        ("sent", "received"),
        [
            (signal.SIGINT, signal.SIGINT),
            (signal.SIGTERM, signal.SIGTERM),
            (signal.SIGHUP, signal.SIGTERM),
        ],
    )
    def test_the_first_signal_is_passed_on_once_and_waits_for_the_checkpoint(
        self, spawn, job, folder, sent, received
    ) -> None:
        job(STOPS_ON_SIGNAL)
        process = spawn("host")
        wait_for((folder / "ready").exists)
        process.send_signal(sent)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 101
        assert (folder / "signals").read_text() == f"{int(received)}\n"
        assert "run the same command again:\n  runner host" in err
        assert read_exit(folder) == 101

    def test_the_second_signal_kills_every_process_of_the_job(self, spawn, job, folder) -> None:
        child = "import subprocess; subprocess.Popen(['sleep', '600'])\n"
        job(child + IGNORES_SIGNALS)
        process = spawn("host")
        wait_for((folder / "ready").exists)
        launch = wait_for(lambda: read_launch(folder))
        process.send_signal(signal.SIGINT)
        wait_for((folder / "signals").exists)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "killing train" in err
        wait_for(lambda: not _group_lives(int(launch.id)))

    def test_a_closed_terminal_asks_the_job_to_stop(self, spawn, job, folder) -> None:
        job(STOPS_ON_SIGNAL)
        process = spawn("host")
        wait_for((folder / "ready").exists)
        process.stderr.close()  # the runner can't print its message
        process.send_signal(signal.SIGHUP)
        assert process.wait(timeout=60) == 101
        assert (folder / "signals").read_text() == f"{int(signal.SIGTERM)}\n"
        assert read_exit(folder) == 101

    def test_a_closed_terminal_does_not_kill_the_job_with_its_second_signal(self) -> None:
        calls: list[str] = []
        with SignalForwarder(lambda _: calls.append("stop"), lambda: calls.append("kill")):
            for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGINT):
                signal.raise_signal(number)
                calls.append(number.name)
        assert calls == ["stop", "SIGHUP", "SIGHUP", "kill", "SIGINT"]

    def test_a_ctrl_c_at_the_terminal_reaches_only_the_runner(self, spawn, job, folder) -> None:
        job(STOPS_ON_SIGNAL)
        process = spawn("host")
        wait_for((folder / "ready").exists)
        job_id = int(wait_for(lambda: read_launch(folder)).id)
        assert os.getsid(job_id) == job_id  # so the terminal signals only the runner
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)


@pytest.mark.parametrize("streams", [">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("words", ["host", "host --detach", "runs"])
def test_closed_streams_are_not_an_error(job, checkout, words: str, streams: str) -> None:
    """Daemons have closed streams; the next open file must not become stdout."""
    job("print('data'); import sys; print('talk', file=sys.stderr)")
    line = f"exec {sys.executable} -m runner {words} {streams}"
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", line], cwd=checkout, env=environ, timeout=60)
    assert done.returncode == 0


@pytest.mark.parametrize("words", ["", "--help", "runs", "runs --json"])
def test_output_to_a_full_disk_is_one_line(make_run, checkout, words: str) -> None:
    make_run("warm")
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "DOCKER_HOST": "unix:///none"}
    line = f"{sys.executable} -m runner {words} > /dev/full"
    done = subprocess.run(
        ["bash", "-c", line], cwd=checkout, env=environ, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    (error,) = done.stderr.splitlines()
    assert error.startswith("error: /dev/stdout: no space left on device")


def test_a_deleted_folder_is_one_line(tmp_path) -> None:
    (tmp_path / "gone").mkdir()
    line = f"cd {tmp_path}/gone && rmdir ../gone && exec {sys.executable} -m runner runs"
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", line], env=environ, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: the current folder was deleted")


def test_no_command_waits_for_a_fifo(spawn, checkout, tmp_path) -> None:
    """Each file that a user or another program may have made is opened without waiting."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "train.py").write_text("print(1)\n")
    modal_config, command = tmp_path / "modal.toml", ("--dir", str(folder), "--dry-run", "--")
    for path, words, status in (
        (checkout / ".env", ("host", "--dry-run"), 2),
        (checkout / ".env", ("doctor",), 1),
        (folder / ".gitignore", ("cloud", *command, "python", "train.py"), 1),
        (folder / ".dockerignore", ("cloud", *command, "python", "train.py"), 1),
        (folder / "own.py", ("host", *command, "python", "own.py"), 0),
        (folder / "own.py", ("host", "run", str(folder / "own.py"), "--dry-run"), 2),
        (checkout / "volumes/cache/remote_boxes", ("runs",), 0),
        (modal_config, ("runs",), 1),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(path)
        process = spawn(*words, MODAL_CONFIG_PATH=str(modal_config), DOCKER_HOST="unix:///none")
        _, err = process.communicate(timeout=60)
        path.unlink()
        assert process.returncode == status, (path, words, err)


def test_a_finished_run_without_checkpoints_is_an_error(spawn, make_run) -> None:
    folder = make_run("warm")
    process = spawn("host", "sample", "--name", "warm")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 102
    assert (
        "run 'warm' is finished, but its checkpoints were deleted; to train it again: "
        f"runner host {folder}/recipe.yaml --name warm-2" in err
    )


@pytest.mark.skipif(find_spec("torch") is None, reason="torch is not installed")
def test_torchrun_gets_one_signal_and_the_status_is_kept(spawn, job, folder) -> None:
    job(TORCHRUN_JOB)
    process = spawn("host", "--gpu", "2", "--device", "cpu")
    wait_for(lambda: (folder / "ready0").exists() and (folder / "ready1").exists(), seconds=60)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 101, out + err
    assert [(folder / f"signals{rank}").read_text() for rank in (0, 1)] == ["2\n", "2\n"]


def test_a_ctrl_c_between_start_and_follow_reaches_the_job(job, checkout, folder) -> None:
    job(STOPS_ON_SIGNAL)
    program = """
import os, signal, time
from runner.cli import main
from runner.targets import base
write = base.write_launch
def write_and_be_interrupted(folder, launch):
    while not (folder / "ready").exists():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)
    write(folder, launch)
base.write_launch = write_and_be_interrupted
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", program, "host"],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 101, done.stderr
    assert (folder / "signals").read_text() == "2\n"


@pytest.mark.skipif(shutil.which("ps") is None, reason="ps is not installed")
def test_on_a_mac_pid_and_start_time_identify_a_process(monkeypatch) -> None:
    """Time zone, language and machine name may differ from those at the launch."""
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(process, "identity_of", process._identity_from_ps)
    monkeypatch.setattr(process, "machine_name", lambda: "mac.office")
    monkeypatch.setenv("TZ", "XXX-14")
    began = process._identity_from_ps(os.getpid())
    monkeypatch.setenv("TZ", "YYY+11")
    started = LaunchHandle(
        "warm", "host", "train", str(os.getpid()), 1.0, location="mac.home", identity=began
    )
    assert is_alive(started)
    assert not is_alive(replace(started, identity="Sun Nov 22 01:17:32 2020"))
    monkeypatch.setattr(sys, "platform", "linux")
    assert not is_alive(started)


def test_a_signal_before_the_program_exists_reaches_it() -> None:
    def start() -> subprocess.Popen[bytes]:
        signal.raise_signal(signal.SIGTERM)
        return subprocess.Popen(["sleep", "60"])

    assert process._run(start, signal.SIGTERM) == 128 + signal.SIGTERM


class TestDetached:
    def test_detached_job_outlives_the_runner_and_is_found(self, spawn, job, folder) -> None:
        job(STOPS_ON_SIGNAL)
        process = spawn("host", "--detach")
        out, _ = process.communicate(timeout=60)
        assert (process.returncode, out) == (0, "quickstart\n")
        wait_for((folder / "ready").exists)
        launch = read_launch(folder)
        assert is_alive(launch)
        assert os.getsid(int(launch.id)) == int(launch.id)

        status = spawn("status", "quickstart", "--json")
        assert json.loads(status.communicate(timeout=60)[0])["alive"] is True
        again = spawn("host")
        _, err = again.communicate(timeout=60)
        assert again.returncode == 1
        assert "is already starting on host" in err

        stop = spawn("stop", "quickstart")
        _, err = stop.communicate(timeout=60)
        assert (stop.returncode, "stopped" in err) == (0, True)
        assert (folder / "signals").read_text() == "15\n"
        assert not is_alive(launch)
        assert read_exit(folder) == 101

    def test_logs_show_the_output_of_a_job_without_a_log(self, spawn, job, folder) -> None:
        job("raise RuntimeError('no such thing')")
        spawn("host", "--detach").communicate(timeout=60)
        wait_for(lambda: read_exit(folder) is not None)
        assert (
            "RuntimeError: no such thing" in spawn("logs", "quickstart").communicate(timeout=60)[0]
        )
        out, err = spawn("status", "quickstart").communicate(timeout=60)
        assert "failed" in out
        assert "RuntimeError: no such thing" in err

    def test_stop_force_kills_the_job(self, spawn, job, folder) -> None:
        job(IGNORES_SIGNALS)
        spawn("host", "--detach").communicate(timeout=60)
        wait_for((folder / "ready").exists)
        launch = read_launch(folder)
        assert spawn("stop", "quickstart", "--force").wait(timeout=60) == 0
        wait_for(lambda: not _group_lives(int(launch.id)))

    def test_logs_follow_ends_with_the_run(self, spawn, job, folder) -> None:
        job(STOPS_ON_SIGNAL)
        spawn("host", "--detach").communicate(timeout=60)
        wait_for((folder / "ready").exists)
        follower = spawn("logs", "quickstart", "--follow", "--tail", "5")
        assert follower.stdout.readline() == "step 1\n"
        with (folder / "log.txt").open("a") as log:
            log.write("step 2\n")
        assert follower.stdout.readline() == "step 2\n"
        spawn("stop", "quickstart").wait(timeout=60)
        assert follower.wait(timeout=60) == 0

    def test_the_output_of_a_detached_prepare_is_kept(self, spawn, checkout, job) -> None:
        job("")
        (checkout / "corpus" / "prepare.py").write_text("print('prepared')")
        out, _ = spawn("host", "prepare", "--detach").communicate(timeout=60)
        assert out == "prepare-letters\n"
        folder = checkout / "volumes" / "checkpoints" / "prepare-letters"
        wait_for(lambda: read_exit(folder) == 0)
        assert "prepared" in spawn("logs", "prepare-letters").communicate(timeout=60)[0]
        (state,) = json.loads(spawn("runs", "--json").communicate(timeout=60)[0])
        assert (state["job"], state["status"]) == ("prepare", "finished")


def test_missing_torch_shows_the_install_command(type_, cli, checkout) -> None:
    cli.targets["host"] = HostTarget(cli, checkout, has_module=lambda name: False)
    result = type_("runner host")
    assert result.exit_code == 1
    assert "train needs torch, which this Python lacks" in result.stderr
    assert f"{sys.executable} -m pip install " in result.stderr
    assert " torch==" in result.stderr
    assert not (checkout / "volumes").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("-- trane.py", "program 'trane.py' not found"),
        ("--env PATH=/nowhere -- git status", "program 'git' not found"),
        ("--device mps", "--device mps is the GPU of a Mac"),
        ("sample --name warm --device mps", "--device mps is the GPU of a Mac"),
        ("sample --name warm --device cuda", "--device cuda: host has no GPUs; remove --device"),
        ("export --name warm --push tiny", "--push tiny: expected OWNER/NAME"),
    ],
)
def test_a_launch_that_cannot_work_is_refused_before_its_plan(
    type_, cli, checkout, make_run, monkeypatch, words: str, message: str
) -> None:
    make_run("warm", step=10)
    cli.targets["host"] = HostTarget(cli, checkout)
    monkeypatch.setattr(sys, "platform", "linux")
    result = type_(f"runner host {words}")
    assert result.exit_code == 2
    assert message in result.stderr
    assert "actions" not in result.stderr  # of the plan


def test_a_reused_pid_is_not_the_job(checkout) -> None:
    pid, name = os.getpid(), machine_name()
    mine = LaunchHandle(
        "r", "host", "train", str(pid), 0.0, location=name, identity=identity_of(pid)
    )
    assert is_alive(mine)
    assert not is_alive(replace(mine, identity="1"))
    assert not is_alive(replace(mine, location="elsewhere"))


def test_stop_of_a_finished_run_does_nothing(type_, cli, checkout, make_run) -> None:
    make_run("warm", step=100)
    cli.targets["host"] = HostTarget(cli, checkout)
    result = type_("runner stop warm")
    assert (result.exit_code, "is not running (status: finished)" in result.stderr) == (0, True)
    assert read_record(checkout / "volumes" / "checkpoints" / "warm") is not None
    assert isinstance(cli, CliContext)


def _group_lives(group: int) -> bool:
    """Return True if the group has a process that is not a zombie."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
        except (OSError, ValueError):
            continue
        if int(its_group) == group and state not in "ZX":
            return True
    return False


def test_refused_second_start_does_not_hide_the_run(cli, checkout, type_, make_run) -> None:
    """Of two simultaneous starts, the refused one writes its launch and exit status last."""
    folder = make_run("warm", step=10, status="running")
    code = (
        "import fcntl, sys, time; file = open(sys.argv[1], 'a'); fcntl.flock(file, fcntl.LOCK_EX); "
        "print(flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", code, str(folder / "lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        (folder / "lock").write_text(f"process {holder.pid} on {socket.gethostname()}\n")
        refused = LaunchHandle(
            "warm", "host", "train", "1", time.time(), location=machine_name(), identity="refused"
        )
        write_launch(folder, refused)
        write_exit(folder, 1)
        cli.targets["host"] = HostTarget(cli, checkout)
        state = json.loads(type_("runner status warm --json").stdout)
        assert (state["alive"], state["status"]) == (True, "starting")
        assert type_("runner stop warm").exit_code == 0
        assert holder.wait(30) == -signal.SIGTERM
    assert json.loads(type_("runner status warm --json").stdout)["alive"] is False


class TestShell:
    def test_command_has_the_folder_and_persisted_paths(self, spawn, tmp_path, checkout) -> None:
        (tmp_path / "nano").mkdir()
        line = ("shell", "--target", "host", "--dir", "../nano", "--persist", "out=checkpoints")
        process = spawn(*line, "--env", "COLOR=red", "--", "bash", "-c", "echo $COLOR > out/x; pwd")
        assert process.communicate(timeout=60)[0] == f"{tmp_path / 'nano'}\n"
        place = checkout / "volumes" / "checkpoints" / "nano" / "out" / "x"
        assert place.read_text() == "red\n"
        assert json.loads(spawn("runs", "--json").communicate(timeout=60)[0]) == []

    def test_the_same_line_attaches_to_the_shell_of_a_lost_terminal(self, checkout) -> None:
        words = ["-c", "from runner.cli import main; main()", "shell", "--target", "host"]
        for mark in ("mark=kept", "echo again-$mark; exit 7"):
            shell = pexpect.spawn(
                sys.executable,
                words,
                cwd=str(checkout),
                env={**os.environ, "TERM": "xterm", "PYTHONPATH": str(ROOT), "PS1": "> "},
                encoding="utf-8",
                timeout=60,
            )
            shell.sendline(f"cd; {mark}; echo rea''dy")
            shell.expect("ready" if mark == "mark=kept" else "again-kept")
            if mark == "mark=kept":
                shell.kill(signal.SIGKILL)
                shell.close()
        shell.expect(pexpect.EOF)
        shell.close()
        assert shell.exitstatus == 7

    def test_program_next_to_an_active_run(self, spawn, job, folder) -> None:
        job(STOPS_ON_SIGNAL)
        process = spawn("host", "--env", "COLOR=red")
        wait_for((folder / "ready").exists, 60)
        line = ("shell", "quickstart", "--", "sh", "-c", "echo $COLOR $OUT_DIR; exit 3")
        inside = spawn(*line)
        assert inside.communicate(timeout=60)[0] == f"red {folder}\n"
        assert inside.returncode == 3
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)


@pytest.mark.parametrize("target", ["host", "local"])
def test_port_in_use_is_refused_in_the_plan(
    type_, cli, checkout, docker, make_run, target: str
) -> None:
    make_run("warm", step=100)
    cli.targets = {"host": HostTarget(cli, checkout), "local": ComposeTarget(cli, checkout)}
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        result = type_(f"runner {target} serve warm --port {port} --dry-run")
    assert result.exit_code == 2
    assert f"port {port} is already in use; choose another: `--port {port + 1}`" in result.stderr
    assert type_(f"runner {target} serve warm --port {port} --dry-run").exit_code == 0
