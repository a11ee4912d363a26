"""User commands as runs, with real processes and signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from job.health import running_runs
from job.paths import VolumePaths
from job.run_record import RunRecord, read_record
from job.user_command import resume
from job.user_command.persisted_paths import ensure_writable, seed_volume
from job.user_command.resume import FOLDER, CheckpointBackup, is_truncated
from tests.runner.nanogpt_folder import make_folder
from tests.waiting import wait_for

ROOT = Path(__file__).resolve().parents[3]

# Saves at SIGTERM and exits with 0, as many programs do.
SAVES_ON_SIGTERM = """
import os, signal, sys, time
def stop(number, frame):
    print("saved", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
time.sleep(600)
"""


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    return tmp_path / "volumes"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "nano")


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(volumes: Path, folder: Path) -> Iterator[Start]:
    """Return ``start("python", "x.py", options=[...])``, which runs a command as a run."""
    processes = []

    def begin(*command: str, options: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        set_by_the_image = VolumePaths.current().environment()
        environ = {
            name: value for name, value in os.environ.items() if name not in set_by_the_image
        }
        environ |= {"PYTHONPATH": str(ROOT), "RUN_LAUNCH": os.environ.get("RUN_LAUNCH", "{}")}
        environ |= {
            f"{name.upper()}_PATH": str(volumes / name) for name in ("data", "checkpoints", "cache")
        }
        environ["PATH"] = f"{Path(sys.executable).parent}:{environ['PATH']}"
        words = ["--name", "r", "--folder", str(folder), *options, "--", *command]
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "job.user_command.supervisor", *words],
            cwd=ROOT,
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        processes.append(process)
        return process

    yield begin
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture
def record(volumes: Path) -> Callable[[], RunRecord]:
    def read() -> RunRecord:
        found = read_record(volumes / "checkpoints" / "r")
        assert found is not None
        return found

    return read


def output_of(process: subprocess.Popen[str], status: int = 0) -> str:
    out, err = process.communicate(timeout=60)
    assert process.returncode == status, out + err
    return out


class TestEnd:
    def test_exit_status_is_that_of_the_command(self, start: Start, record, volumes: Path) -> None:
        output_of(
            start(
                "python", "-c", "import sys; print('a'); print('b', file=sys.stderr); sys.exit(3)"
            ),
            3,
        )
        assert (record().status, record().result, record().attempts[0].reason) == (
            "failed", {"exit_status": 3}, "exit status 3",
        )  # fmt: skip
        assert sorted((volumes / "checkpoints" / "r" / "log.txt").read_text().split()) == ["a", "b"]

    def test_error_names_the_variable_that_a_package_of_the_folder_needs(
        self, start: Start, folder: Path, record
    ) -> None:
        (folder / "config" / "go.py").write_text("import data.letters\nimport absent\n")
        output_of(start("python", "config/go.py"), 1)
        error = "exit status 1: ModuleNotFoundError: No module named"
        hint = "data is in the folder: run `env PYTHONPATH=. COMMAND`"
        assert record().attempts[0].reason == f"{error} 'data'; {hint}"
        output_of(start("env", "PYTHONPATH=.", "python", "config/go.py"), 1)
        assert record().attempts[1].reason == f"{error} 'absent'"

    def test_stdout_and_stderr_stay_separate(self, start: Start) -> None:
        process = start("python", "-c", "import sys; print('data'); print('talk', file=sys.stderr)")
        assert process.communicate(timeout=60) == ("data\n", "talk\n")

    def test_json_prints_only_the_record_on_stdout(self, start: Start) -> None:
        process = start("python", "-c", "print('data'); raise SystemExit(3)", options=("--json",))
        out, err = process.communicate(timeout=60)
        assert json.loads(out)["result"] == {"exit_status": 3}
        assert (process.returncode, err) == (3, "data\n")

    def test_lines_of_stdout_and_stderr_stay_whole_in_the_log(
        self, start: Start, volumes: Path
    ) -> None:
        program = """
import os, time
for text, pipe in (("a", 1), ("b", 2), ("\\n", 1), ("\\n", 2), ("no end", 2)):
    os.write(pipe, text.encode())
    time.sleep(0.05)
"""
        output_of(start("python", "-c", program))
        assert (volumes / "checkpoints" / "r" / "log.txt").read_text() == "a\nb\nno end"

    def test_unfinished_line_is_in_the_log(self, start: Start, volumes: Path) -> None:
        process = start(
            "python", "-c", "import time; print('.', end='', flush=True); time.sleep(600)"
        )
        log = volumes / "checkpoints" / "r" / "log.txt"
        wait_for(lambda: log.exists() and log.read_text() == ".")
        assert process.poll() is None

    def test_killed_by_a_signal(self, start: Start, record) -> None:
        output_of(start("python", "-c", "import os; os.kill(os.getpid(), 9)"), 137)
        assert record().status == "failed"

    def test_missing_program(self, start: Start, record) -> None:
        process = start("trane.py")
        _, err = process.communicate(timeout=60)
        assert (process.returncode, record().status) == (1, "failed")
        assert "program 'trane.py' not found" in err
        assert "use ./train.py or python train.py" in start("train.py").communicate(timeout=60)[1]

    def test_folder_of_a_training_is_refused(self, start: Start, record, volumes: Path) -> None:
        folder = volumes / "checkpoints" / "r"
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(
            json.dumps({"name": "r", "job": "train", "status": "finished"})
        )
        process = start("python", "-c", "print(1)")
        assert "run 'r' exists with job train;" in process.communicate(timeout=60)[1]
        assert (process.returncode, record().job, record().attempts) == (1, "train", [])

    @pytest.mark.parametrize("is_link", [False, True])
    def test_folder_with_a_damaged_record_is_refused(
        self, start: Start, volumes: Path, is_link: bool
    ) -> None:
        path = volumes / "checkpoints" / "r" / "run.json"
        path.parent.mkdir(parents=True)
        if is_link:
            path.symlink_to(path.name)  # to itself: `exists` is False
        else:
            path.write_text("{")
        process = start("python", "-c", "print(1)")
        assert "run.json is damaged" in process.communicate(timeout=60)[1]
        assert process.returncode == 1
        assert path.is_symlink() == is_link


class TestEnvironment:
    def test_packages_of_the_project_do_not_shadow_those_of_the_folder(self, start: Start) -> None:
        code = "import importlib.util as u; print(u.find_spec('job'), u.find_spec('model').origin)"
        job_module, model_module = output_of(start("python", "-S", "-c", code)).split()
        assert job_module == "None"
        assert model_module.endswith("nano/model.py")

    def test_environment_names_the_folders(self, start: Start, volumes: Path) -> None:
        names = ("OUT_DIR", "DATA_PATH", "TRITON_CACHE_DIR")
        code = f"import os; print(*(os.environ[name] for name in {names}))"
        out, data, cache = output_of(start("python", "-c", code)).split()
        assert out == str(volumes / "checkpoints" / "r")
        assert data == str(volumes / "data")
        assert cache.startswith(str(volumes / "cache"))


class TestSignals:
    def test_stopped_command_is_unfinished_even_with_status_0(self, start: Start, record) -> None:
        process = start("python", "-c", SAVES_ON_SIGTERM)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert output_of(process, 101) == "saved\n"
        assert (record().status, record().attempts[0].reason) == ("unfinished", "SIGTERM")

    def test_command_without_handlers_gets_signals(self, start: Start, record) -> None:
        process = start("python", "-c", "import time; print('ready', flush=True); time.sleep(600)")
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 101
        assert err.count("KeyboardInterrupt") == 1
        assert record().result == {"exit_status": 130}

    def test_child_processes_of_a_shell_end_too(self, start: Start, record) -> None:
        process = start(
            "bash",
            "-c",
            "python -c 'import time; print(1, flush=True); time.sleep(600)'; echo after",
        )
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert "after" not in output_of(process, 101)
        assert record().status == "unfinished"

    def test_run_is_active_while_the_command_runs(self, start: Start, volumes: Path) -> None:
        process = start("python", "-c", "import time; print(1, flush=True); time.sleep(600)")
        assert process.stdout is not None
        process.stdout.readline()
        assert list(running_runs(volumes / "checkpoints")) == ["r"]


class TestResume:
    WORDS = ("python", "train.py", "--max_iters=3")

    def test_later_attempts_get_the_resume_arguments_if_the_file_exists(
        self, start: Start, folder: Path
    ) -> None:
        options = ("--resume-with=--init_from=resume", "--resume-if=out/ckpt.pt")
        (folder / "data" / "letters" / "train.bin").write_text("x")
        assert "resuming" not in output_of(start(*self.WORDS, options=options))
        assert "resuming at 3" in output_of(start(*self.WORDS, options=options))
        (folder / "out" / "ckpt.pt").unlink()
        assert "resuming" not in output_of(start(*self.WORDS, options=options))

    def test_without_a_condition_any_written_file_counts(
        self, start: Start, folder: Path, volumes: Path
    ) -> None:
        persisted = volumes / "checkpoints" / "nano" / "out"
        options = ("--resume-with=--init_from=resume", f"--persist=out={persisted}")
        output_of(
            start(*self.WORDS, options=options), 1
        )  # without data it fails and writes nothing
        (folder / "data" / "letters" / "train.bin").write_text("x")
        assert "resuming" not in output_of(start(*self.WORDS, options=options))
        assert "resuming at 3" in output_of(start(*self.WORDS, options=options))
        assert (persisted / "ckpt.pt").read_text() == "3"

    def test_dangling_link_is_not_a_checkpoint(
        self, start: Start, folder: Path, volumes: Path
    ) -> None:
        persisted = volumes / "checkpoints" / "nano" / "out"
        persisted.mkdir(parents=True)
        (persisted / "latest").symlink_to("gone")  # like wandb's dangling link
        options = ("--resume-with=--init_from=resume", f"--persist=out={persisted}")
        (folder / "data" / "letters" / "train.bin").write_text("x")
        output_of(start("false", options=options), 1)
        assert "resuming" not in output_of(start(*self.WORDS, options=options))
        assert "resuming at 3" in output_of(start(*self.WORDS, options=options))

    def test_checkpoint_of_a_different_command_is_not_resumed(
        self, start: Start, folder: Path, record, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def launched(*words: str) -> None:
            monkeypatch.setenv("RUN_LAUNCH", json.dumps({"command": {"words": words}}))

        options = ("--resume-with=--init_from=resume", "--resume-if=out/ckpt.pt")
        (folder / "data" / "letters" / "train.bin").write_text("x")
        other, dies = (*self.WORDS, "--lr=2"), ("python", "-c", "raise SystemExit(1)")
        launched(*self.WORDS)
        output_of(start(*self.WORDS, options=options))
        os.utime(folder / "out" / "ckpt.pt", (1e9, 1e9))
        launched(*dies)
        output_of(start(*dies, options=options), 1)
        # It wrote nothing: the checkpoint is that of the first command.
        process = start(*dies, options=options)
        assert (
            "ckpt.pt is older than this run; starting without it"
            in process.communicate(timeout=60)[1]
        )
        launched(*other)
        assert "resuming" not in output_of(start(*other, options=options))
        assert "resuming at 3" in output_of(start(*other, options=options))


class TestPersistedPaths:
    def test_folder_with_files_of_the_user_is_kept_and_shared(
        self, start: Start, folder: Path, volumes: Path
    ) -> None:
        persisted = volumes / "data" / "nano"
        (persisted / "letters").mkdir(parents=True)
        (persisted / "letters" / "pulled.bin").write_text("from elsewhere")
        (persisted / "letters" / "meta.pkl").write_text("old")
        (folder / "data" / "letters" / "meta.pkl").write_text("mine")
        output_of(start("python", "-c", "", options=(f"--persist=data={persisted}",)))
        assert (persisted / "letters" / "meta.pkl").read_text() == "old"
        assert (folder / "data" / "letters" / "meta.pkl").read_text() == "mine"
        output_of(
            start("python", "data/letters/prepare.py", options=(f"--persist=data={persisted}",))
        )
        assert not (folder / "data").is_symlink()
        assert (folder / "data" / "letters" / "pulled.bin").read_text() == "from elsewhere"
        assert (persisted / "letters" / "train.bin").read_text() == "to be or not to be"
        assert (persisted / "letters" / "meta.pkl").read_text() != "old"

    def test_file_is_refused_and_kept(self, start: Start, folder: Path, volumes: Path) -> None:
        process = start("python", "-c", "", options=(f"--persist=train.py={volumes / 'x'}",))
        assert "train.py is a file" in process.communicate(timeout=60)[1]
        assert process.returncode == 1
        assert (folder / "train.py").read_text()

    def test_link_out_of_the_folder_is_refused(
        self, start: Start, folder: Path, tmp_path: Path
    ) -> None:
        (folder / "out").symlink_to(tmp_path)
        process = start("python", "-c", "", options=(f"--persist=out={tmp_path / 'x'}",))
        assert "links to" in process.communicate(timeout=60)[1]
        assert process.returncode == 1

    def test_link_of_an_ended_run_is_replaced_but_not_of_an_active_one(
        self, start: Start, folder: Path, volumes: Path
    ) -> None:
        first, second = (f"--persist=out={volumes}/checkpoints/{name}/out" for name in "ab")
        holding = start("sh", "-c", "echo a > out/a; exec sleep 600", options=(first,))
        wait_for(lambda: (folder / "out" / "a").exists())
        refused = start("true", options=("--name", "s", second))
        assert "which an active run uses; wait for its end" in refused.communicate(timeout=60)[1]
        assert refused.returncode == 1
        holding.terminate()
        assert holding.wait(60) == 101
        output_of(start("sh", "-c", "echo b > out/b", options=("--name", "s", second)))
        assert {path.name for path in (volumes / "checkpoints").glob("*/out/*")} == {"a", "b"}
        assert (folder / "out").resolve() == volumes / "checkpoints" / "b" / "out"

    def test_read_only_folder_is_copied(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert ensure_writable(folder, tmp_path / "copy") == folder
        monkeypatch.setattr(os, "access", lambda path, mode: False)  # as root, access is granted
        assert ensure_writable(folder, tmp_path / "copy") == tmp_path / "copy"
        assert (tmp_path / "copy" / "data" / "letters" / "prepare.py").is_file()
        assert ensure_writable(folder, None) == folder

    def test_newer_code_replaces_only_the_files_of_older_code(
        self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        source, kept = folder / "data", tmp_path / "kept"
        paths = ["letters/prepare.py", "letters/notes.txt"]
        (source / "letters" / "notes.txt").write_text("first")
        seed_volume(source, paths, kept)
        (kept / "letters" / "notes.txt").write_text("by the job")
        (kept / "letters" / "train.bin").write_text("by the job")
        for path in paths:
            (source / path).write_text("second")
        seed_volume(source, paths, kept)
        assert (kept / "letters" / "prepare.py").read_text() == "second"
        assert (kept / "letters" / "notes.txt").read_text() == "by the job"
        assert (kept / "letters" / "train.bin").read_text() == "by the job"
        assert "notes.txt was changed by the job and stays as it is" in capsys.readouterr().err


# Writes its checkpoint in place and slowly, as a zip that is complete only at its end.
SLOW_WRITER = """
import io, os, sys, time, zipfile
buffer = io.BytesIO()
with zipfile.ZipFile(buffer, "w") as archive:
    archive.writestr("weights", sys.argv[1])
content = buffer.getvalue()
os.makedirs("out", exist_ok=True)
with open("out/ckpt.pt", "wb", buffering=0) as file:
    file.write(content[:20])
    print("writing", flush=True)
    time.sleep(float(sys.argv[2]))
    file.write(content[20:])
print("written", flush=True)
time.sleep(600)
"""


def weights(path: Path) -> str:
    with zipfile.ZipFile(path) as archive:
        return archive.read("weights").decode()


class TestCheckpointBackup:
    OPTIONS = ("--resume-with=x", "--resume-if=out/ckpt.pt")

    def test_a_signal_waits_for_the_write(self, start: Start, folder: Path) -> None:
        process = start("python", "-c", SLOW_WRITER, "first", "1.0", options=self.OPTIONS)
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        process.send_signal(signal.SIGTERM)
        output_of(process, 101)
        assert weights(folder / "out" / "ckpt.pt") == "first"

    def test_truncated_file_is_replaced_by_its_last_complete_copy(
        self, start: Start, folder: Path, volumes: Path
    ) -> None:
        copy = volumes / "checkpoints" / "r" / "last_complete" / "ckpt.pt"
        process = start("python", "-c", SLOW_WRITER, "first", "0", options=self.OPTIONS)
        wait_for(lambda: copy.exists() and not is_truncated(copy))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process = start("python", "-c", SLOW_WRITER, "second", "600", options=self.OPTIONS)
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert is_truncated(folder / "out" / "ckpt.pt")
        process = start("python", "-c", "import sys; print(sys.argv)", options=self.OPTIONS)
        out, err = process.communicate(timeout=60)
        assert "'x'" in out
        assert "restored its last complete copy" in err
        assert weights(folder / "out" / "ckpt.pt") == "first"

    def test_truncated_files_are_detected(self, tmp_path: Path) -> None:
        def file(name: str, content: bytes) -> Path:
            (tmp_path / name).write_bytes(content)
            return tmp_path / name

        header = json.dumps({"w": {"data_offsets": [0, 8]}}).encode()
        tensors = len(header).to_bytes(8, "little") + header
        assert is_truncated(file("a.pt", b"PK\x03\x04 cut"))
        assert is_truncated(file("b.pt", b""))
        assert not is_truncated(file("c.txt", b"any text"))
        assert not is_truncated(tmp_path / "none")
        assert is_truncated(file("d.safetensors", tensors + b"1234567"))
        assert not is_truncated(file("e.safetensors", tensors + b"12345678"))
        assert is_truncated(file("f.safetensors", tensors[:12]))
        for length in (b"\xff" * 8, (1 << 62).to_bytes(8, "little")):
            assert is_truncated(file("g.safetensors", length + b"{}"))
        assert is_truncated(
            file("h.safetensors", (1 << 20).to_bytes(8, "little") + b"[" * (1 << 20))
        )
        (tmp_path / "folder.safetensors").mkdir()
        assert not is_truncated(tmp_path / "folder.safetensors")

    def test_file_that_is_deleted_during_a_poll(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path, out = tmp_path / "ckpt.pt", tmp_path / "run"
        watched = CheckpointBackup(path, out)
        path.write_text("text")
        monkeypatch.setattr(resume, "is_truncated", lambda path: path.unlink())
        watched.poll()
        monkeypatch.undo()
        path.write_text("text again")
        os.utime(path, (1e9, 1e9))
        watched.poll()
        assert (out / FOLDER / "ckpt.pt").read_text() == "text again"
        assert capsys.readouterr().err == ""

    def test_folder_is_not_copied_and_signals_do_not_wait_for_it(self, tmp_path: Path) -> None:
        watched = CheckpointBackup(tmp_path / "out", tmp_path / "run")
        (tmp_path / "out").mkdir()
        watched.poll()
        before = time.monotonic()
        watched.wait_for_write()
        assert time.monotonic() - before < 1
        assert not (tmp_path / "run").exists()
