"""A command as a run: real processes, real signals."""

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
from job.user_command import checkpoint_backup
from job.user_command.checkpoint_backup import FOLDER, CheckpointBackup, is_truncated
from job.user_command.persisted_paths import ensure_writable, seed_volume
from tests.runner.nanogpt_folder import make_folder
from tests.waiting import wait_for

ROOT = Path(__file__).resolve().parents[3]

# Saves at SIGTERM and leaves with 0, as many do.
SAVES = """
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
    """``start("python", "x.py", options=[...])``: the wrapper as the runner starts it."""
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


def out_of(process: subprocess.Popen[str], status: int = 0) -> str:
    out, err = process.communicate(timeout=60)
    assert process.returncode == status, out + err
    return out


class TestEnd:
    def test_the_exit_status_is_the_commands(self, start: Start, record, volumes: Path) -> None:
        out_of(
            start(
                "python", "-c", "import sys; print('a'); print('b', file=sys.stderr); sys.exit(3)"
            ),
            3,
        )
        assert (record().status, record().result, record().attempts[0].reason) == (
            "failed", {"exit_status": 3}, "exit status 3",
        )  # fmt: skip
        assert sorted((volumes / "checkpoints" / "r" / "log.txt").read_text().split()) == ["a", "b"]

    def test_stdout_and_stderr_stay_apart(self, start: Start) -> None:
        process = start("python", "-c", "import sys; print('data'); print('talk', file=sys.stderr)")
        assert process.communicate(timeout=60) == ("data\n", "talk\n")

    def test_as_json_stdout_is_the_record_alone(self, start: Start) -> None:
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
        out_of(start("python", "-c", program))
        assert (volumes / "checkpoints" / "r" / "log.txt").read_text() == "a\nb\nno end"

    def test_a_row_of_dots_is_in_the_log_before_it_ends(self, start: Start, volumes: Path) -> None:
        process = start(
            "python", "-c", "import time; print('.', end='', flush=True); time.sleep(600)"
        )
        log = volumes / "checkpoints" / "r" / "log.txt"
        wait_for(lambda: log.exists() and log.read_text() == ".")
        assert process.poll() is None

    def test_killed_by_a_signal(self, start: Start, record) -> None:
        out_of(start("python", "-c", "import os; os.kill(os.getpid(), 9)"), 137)
        assert record().status == "failed"

    def test_a_program_that_is_not_there(self, start: Start, record) -> None:
        process = start("trane.py")
        _, err = process.communicate(timeout=60)
        assert (process.returncode, record().status) == (1, "failed")
        assert "program 'trane.py' not found" in err
        assert "use ./train.py or python train.py" in start("train.py").communicate(timeout=60)[1]

    def test_the_folder_of_a_training_is_not_taken_over(
        self, start: Start, record, volumes: Path
    ) -> None:
        folder = volumes / "checkpoints" / "r"
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(
            json.dumps({"name": "r", "job": "train", "status": "finished"})
        )
        process = start("python", "-c", "print(1)")
        assert "run 'r' is a train already" in process.communicate(timeout=60)[1]
        assert (process.returncode, record().job, record().attempts) == (1, "train", [])


class TestEnvironment:
    def test_our_packages_do_not_stand_in_for_its_own(self, start: Start) -> None:
        code = "import importlib.util as u; print(u.find_spec('job'), u.find_spec('model').origin)"
        own, theirs = out_of(start("python", "-S", "-c", code)).split()
        assert own == "None"
        assert theirs.endswith("nano/model.py")

    def test_it_is_told_where_things_are(self, start: Start, volumes: Path) -> None:
        code = "import os; print(os.environ['OUT_DIR'], os.environ['DATA_PATH'], os.environ['TRITON_CACHE_DIR'])"
        out, data, cache = out_of(start("python", "-c", code)).split()
        assert out == str(volumes / "checkpoints" / "r")
        assert data == str(volumes / "data")
        assert cache.startswith(str(volumes / "cache"))


class TestSignals:
    def test_asked_to_stop_it_is_unfinished_also_with_0(self, start: Start, record) -> None:
        process = start("python", "-c", SAVES)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert out_of(process, 101) == "saved\n"
        assert (record().status, record().attempts[0].reason) == ("unfinished", "SIGTERM")

    def test_one_that_knows_no_signals_gets_them(self, start: Start, record) -> None:
        process = start("python", "-c", "import time; print('ready', flush=True); time.sleep(600)")
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 101
        assert err.count("KeyboardInterrupt") == 1
        assert record().result == {"exit_status": 130}

    def test_what_a_shell_started_ends_too(self, start: Start, record) -> None:
        process = start(
            "bash",
            "-c",
            "python -c 'import time; print(1, flush=True); time.sleep(600)'; echo after",
        )
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert "after" not in out_of(process, 101)
        assert record().status == "unfinished"

    def test_it_is_alive_while_it_runs(self, start: Start, volumes: Path) -> None:
        process = start("python", "-c", "import time; print(1, flush=True); time.sleep(600)")
        assert process.stdout is not None
        process.stdout.readline()
        assert list(running_runs(volumes / "checkpoints")) == ["r"]


class TestResume:
    WORDS = ("python", "train.py", "--max_iters=3")

    def test_later_attempts_get_the_words_where_there_is_something(
        self, start: Start, folder: Path
    ) -> None:
        options = ("--resume-with=--init_from=resume", "--resume-if=out/ckpt.pt")
        (folder / "data" / "letters" / "train.bin").write_text("x")
        assert "resuming" not in out_of(start(*self.WORDS, options=options))
        assert "resuming at 3" in out_of(start(*self.WORDS, options=options))
        (folder / "out" / "ckpt.pt").unlink()
        assert "resuming" not in out_of(start(*self.WORDS, options=options))

    def test_without_a_condition_anything_that_was_written_counts(
        self, start: Start, folder: Path, volumes: Path
    ) -> None:
        place = volumes / "checkpoints" / "nano" / "out"
        options = ("--resume-with=--init_from=resume", f"--persist=out={place}")
        out_of(start(*self.WORDS, options=options), 1)  # no data: it wrote nothing
        (folder / "data" / "letters" / "train.bin").write_text("x")
        assert "resuming" not in out_of(start(*self.WORDS, options=options))
        assert "resuming at 3" in out_of(start(*self.WORDS, options=options))
        assert (place / "ckpt.pt").read_text() == "3"

    def test_a_link_to_nothing_is_nothing_to_go_on_from(
        self, start: Start, folder: Path, volumes: Path
    ) -> None:
        place = volumes / "checkpoints" / "nano" / "out"
        place.mkdir(parents=True)
        (place / "latest").symlink_to("gone")  # as wandb leaves it
        options = ("--resume-with=--init_from=resume", f"--persist=out={place}")
        (folder / "data" / "letters" / "train.bin").write_text("x")
        out_of(start("false", options=options), 1)
        assert "resuming" not in out_of(start(*self.WORDS, options=options))
        assert "resuming at 3" in out_of(start(*self.WORDS, options=options))

    def test_a_checkpoint_of_other_words_is_not_gone_on_from(
        self, start: Start, folder: Path, record, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def launched(*words: str) -> None:
            monkeypatch.setenv("RUN_LAUNCH", json.dumps({"command": {"words": words}}))

        options = ("--resume-with=--init_from=resume", "--resume-if=out/ckpt.pt")
        (folder / "data" / "letters" / "train.bin").write_text("x")
        other, dies = (*self.WORDS, "--lr=2"), ("python", "-c", "raise SystemExit(1)")
        launched(*self.WORDS)
        out_of(start(*self.WORDS, options=options))
        os.utime(folder / "out" / "ckpt.pt", (1e9, 1e9))
        launched(*dies)
        out_of(start(*dies, options=options), 1)
        process = start(
            *dies, options=options
        )  # it wrote nothing: what is there is the first command's
        assert (
            "ckpt.pt is older than this run; starting without it"
            in process.communicate(timeout=60)[1]
        )
        launched(*other)
        assert "resuming" not in out_of(start(*other, options=options))
        assert "resuming at 3" in out_of(start(*other, options=options))


class TestKept:
    def test_a_folder_with_files_of_the_users_stays_and_is_shared(
        self, start: Start, folder: Path, volumes: Path
    ) -> None:
        place = volumes / "data" / "nano"
        (place / "letters").mkdir(parents=True)
        (place / "letters" / "pulled.bin").write_text("from elsewhere")
        (place / "letters" / "meta.pkl").write_text("old")
        (folder / "data" / "letters" / "meta.pkl").write_text("mine")
        out_of(start("python", "-c", "", options=(f"--persist=data={place}",)))
        assert (place / "letters" / "meta.pkl").read_text() == "old"
        assert (folder / "data" / "letters" / "meta.pkl").read_text() == "mine"
        out_of(start("python", "data/letters/prepare.py", options=(f"--persist=data={place}",)))
        assert not (folder / "data").is_symlink()
        assert (folder / "data" / "letters" / "pulled.bin").read_text() == "from elsewhere"
        assert (place / "letters" / "train.bin").read_text() == "to be or not to be"
        assert (place / "letters" / "meta.pkl").read_text() != "old"

    def test_a_file_is_refused_and_not_lost(
        self, start: Start, folder: Path, volumes: Path
    ) -> None:
        process = start("python", "-c", "", options=(f"--persist=train.py={volumes / 'x'}",))
        assert "train.py is a file" in process.communicate(timeout=60)[1]
        assert process.returncode == 1
        assert (folder / "train.py").read_text()

    def test_a_link_to_elsewhere_is_refused(
        self, start: Start, folder: Path, tmp_path: Path
    ) -> None:
        (folder / "out").symlink_to(tmp_path)
        process = start("python", "-c", "", options=(f"--persist=out={tmp_path / 'x'}",))
        assert "links to" in process.communicate(timeout=60)[1]
        assert process.returncode == 1

    def test_a_folder_that_can_not_be_written_to_is_copied(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert ensure_writable(folder, tmp_path / "copy") == folder
        monkeypatch.setattr(
            os, "access", lambda path, mode: False
        )  # root may write where a mount may not
        assert ensure_writable(folder, tmp_path / "copy") == tmp_path / "copy"
        assert (tmp_path / "copy" / "data" / "letters" / "prepare.py").is_file()
        assert ensure_writable(folder, None) == folder

    def test_newer_code_replaces_what_was_laid_there_and_nothing_else(
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


# Writes its checkpoint in place and slowly, as a zip that is whole at its very end.
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


class TestLastWhole:
    OPTIONS = ("--resume-with=x", "--resume-if=out/ckpt.pt")

    def test_a_signal_waits_for_the_write(self, start: Start, folder: Path) -> None:
        process = start("python", "-c", SLOW_WRITER, "first", "1.0", options=self.OPTIONS)
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        process.send_signal(signal.SIGTERM)
        out_of(process, 101)
        assert weights(folder / "out" / "ckpt.pt") == "first"

    def test_a_torn_file_is_replaced_by_its_last_whole_copy(
        self, start: Start, folder: Path, volumes: Path
    ) -> None:
        copy = volumes / "checkpoints" / "r" / "last_whole" / "ckpt.pt"
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

    def test_what_is_torn(self, tmp_path: Path) -> None:
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

    def test_a_file_that_is_deleted_under_its_eyes(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path, out = tmp_path / "ckpt.pt", tmp_path / "run"
        watched = CheckpointBackup(path, out)
        path.write_text("text")
        monkeypatch.setattr(checkpoint_backup, "is_truncated", lambda path: path.unlink())
        watched.poll()
        monkeypatch.undo()
        path.write_text("text again")
        os.utime(path, (1e9, 1e9))
        watched.poll()
        assert (out / FOLDER / "ckpt.pt").read_text() == "text again"
        assert capsys.readouterr().err == ""

    def test_of_a_folder_nothing_is_copied_and_no_signal_waits_for_it(self, tmp_path: Path) -> None:
        watched = CheckpointBackup(tmp_path / "out", tmp_path / "run")
        (tmp_path / "out").mkdir()
        watched.poll()
        before = time.monotonic()
        watched.wait_for_write()
        assert time.monotonic() - before < 1
        assert not (tmp_path / "run").exists()
