"""A user's command: arguments, names, the plan, and runs on the host."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from job.run_record import RunStatus, read_record
from runner.launch.parse_command import name_for
from runner.request import PersistOption, UserCommand, run_name
from runner.target import LocalVolume, RunInfo, VolumeEntry
from tests.runner.nanogpt_folder import make_folder
from tests.waiting import wait_for


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "nano")


@pytest.fixture
def trained(folder: Path, make_run) -> Path:
    """Make the run nano-train of `python train.py` in the folder."""
    command = {"words": ["python", "train.py"], "folder": str(folder)}
    launch = {"target": "host", "command": command}
    attempt = {"started": 50.0, "ended": 60.0, "launch": launch}
    return make_run("nano-train", job="command", attempts=[attempt])


class TestArguments:
    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("--dir ../nano", "after --"),
            ("--dir ../nano --", "after --"),
            ("--", "no command after --"),
            ("lr=1e-3 -- ''", "no command after --"),
            ("--dir ../nano train -- python x.py", "'train' appears before --"),
            ("--dir ../none -- python x.py", "../none does not exist"),
            ("--dir ../nano/train.py -- python x.py", "is a file"),
            ("--persist out -- python x.py", "expected PATH=VOLUME"),
            ("--persist out=checkpoint -- python x.py", "did you mean 'checkpoints'?"),
            ("--persist ../out=data -- python x.py", "a path inside the folder"),
            ('--resume-with "\'a" -- python x.py', "no closing quotation; quote it"),
            ("--persist out=data/../../x -- python x.py", "a path inside the volume"),
            ("--persist a=data --persist a/b=data -- python x.py", "overlap; keep one"),
            ("--persist model.pt=checkpoints -- python x.py", "model.pt is a file"),
            ("--persist o=checkpoints/{name}/o -- python x.py", "can contain {run}, but no other"),
            ("-- 'python x.py --lr=1'", "write `-- python x.py --lr=1`"),
            ("-- 'python x.py | tee log'", "write `-- bash -c 'python x.py | tee log'`"),
            ("-- python x.py '&&' ls", "'&&' works only in a shell"),
            ("-- cd data", "write `-- bash -c 'cd data'`"),
            ("-- LR=1 python x.py", "write `--env LR=1`"),
            ("--dir ../nano --persist train.py=data -- python x.py", "train.py is a file"),
            ("--setup 'echo one\necho two' -- python x.py", "is not one line"),
            ("--device cpu -- python x.py", "--device is an option of"),
            ("--gpu 2 -- python x.py", "CUDA_VISIBLE_DEVICES"),
            ("--resume-if x -- python x.py", "--resume-with"),
            ("--dir ../nano --name a/b -- python train.py", "is not a valid run name"),
            ("--dir ../nano -- python -u trian.py", "; did you mean 'train.py'?"),
            ("--dir ../nano -- bash ./run.sh", "run.sh does not exist in /"),
        ],
    )
    def test_mistake_is_reported(self, type_, folder: Path, line: str, message: str) -> None:
        result = type_(f"runner host {line}")
        assert result.exit_code == 2
        assert message in result.stderr

    @pytest.mark.parametrize(
        ("line", "script"),
        [
            ("python -u a/../train.py --out x.py", "train.py"),
            ("/usr/bin/python3.12 train.py", "train.py"),
            ("torchrun --standalone --nproc_per_node=2 train.py", "train.py"),
            ("bash run.sh", "run.sh"),
            ("./tool", "tool"),
            ("python -m tool x.py", None),
            ("python -c 1 x.py", None),
            ("python ../x.py", None),
            ("python /x/y.py", None),
            ("python out/x.py", None),  # on a persisted path
            ("python {run}.py", None),
            ("make train.py", None),
            ("", None),
        ],
    )
    def test_script_of_a_command(self, line: str, script: str | None, tmp_path: Path) -> None:
        persist = (PersistOption("out", "checkpoints", "out"),)
        assert UserCommand(tuple(line.split()), tmp_path, persist=persist).script == script

    def test_arguments_after_the_separator_belong_to_the_command(
        self, type_, fake, folder: Path
    ) -> None:
        assert (
            type_("runner host --dir ../nano -- python train.py --gpu 3 -- -y lr=1").exit_code == 0
        )
        command = fake.plans[0].process.command
        assert command[command.index("--") + 1 :] == (
            "python",
            "train.py",
            "--gpu",
            "3",
            "--",
            "-y",
            "lr=1",
        )
        assert fake.did == ["start nano-train", "follow nano-train"]

    def test_default_folder_is_the_current_one(self, type_, fake, cli, folder: Path) -> None:
        cli.cwd = folder
        assert type_("runner host -- python train.py").exit_code == 0
        assert fake.plans[0].folder.host_path == str(folder)

    @pytest.mark.parametrize(
        ("words", "name"),
        [
            ("python train.py config/x.py", "nanoGPT-train"),
            ("python data/shakespeare_char/prepare.py", "nanoGPT-prepare"),
            ("torchrun --standalone --nproc_per_node=8 train_gpt.py", "nanoGPT-train_gpt"),
            ("python -m lib.fit --x", "nanoGPT-fit"),
            ("bash -c ls", "nanoGPT-ls"),
            ("make all", "nanoGPT-make"),
        ],
    )
    def test_run_is_named_after_folder_and_script(self, words: str, name: str) -> None:
        assert run_name(Path("/x/nanoGPT"), words.split()) == name

    def test_same_command_is_the_same_run(self, type_, fake, trained: Path) -> None:
        type_("runner host --dir ../nano -- python train.py")
        type_("runner host --dir ../nano -- python train.py --lr=2")
        assert [plan.run for plan in fake.plans] == ["nano-train", "nano-train-2"]
        result = type_("runner host --name nano-train --dir ../nano -- python train.py --lr=2")
        assert (result.exit_code, "is a different command" in result.stderr) == (2, True)

    def test_a_metric_without_a_match_is_reported(self, type_, fake, folder, make_run) -> None:
        line = "runner host --name none --dir ../nano --metric 'loss=l (.)' -- python train.py"
        make_run("none", status="finished", job="command", result={"exit_status": 0})
        assert "had a number for --metric loss; compare" in type_(line).stderr
        record = fake.volumes.run("none") / "run.json"
        record.write_text(record.read_text().replace('"exit_status": 0', '"loss": 1.5'))
        assert "had a number" not in type_(line).stderr

    def test_an_active_run_with_the_same_persisted_path_is_reported(
        self, type_, fake, folder: Path, make_run
    ) -> None:
        persist = [["out", "checkpoints", "nano/out"]]
        command = {"words": ["python", "a.py"], "folder": str(folder), "persist": persist}
        launch = {"target": "host", "command": command}
        make_run("nano-a", job="command", attempts=[{"started": 50.0, "launch": launch}])
        fake.states = [RunInfo("nano-a", "command", "host", RunStatus.RUNNING, alive=True)]
        line = "runner host --dir ../nano --persist {} -- python train.py"
        shared = type_(line.format("out=checkpoints"))
        assert "run 'nano-a' is active and writes the same persisted path" in shared.stderr
        for own in ("'out=checkpoints/{run}/out'", "data=data"):
            assert "same persisted path" not in type_(line.replace("{}", own)).stderr
        assert len(fake.did) == 6

    def test_many_runs_need_one_listing(self, tmp_path: Path, folder: Path) -> None:
        (tmp_path / "runs").mkdir()
        for number in range(1, 21):
            words = ["python", "train.py", f"--lr={number}"]
            command = {"words": words, "folder": str(folder)}
            run = tmp_path / "runs" / ("nano-train" if number == 1 else f"nano-train-{number}")
            run.mkdir()
            if number != 13:  # no record exists for this one
                (run / "run.json").write_text(
                    json.dumps({"attempts": [{"launch": {"command": command}}]})
                )
        calls: list[str] = []

        class CountingFiles(LocalVolume):
            def entries(self, path: str = "") -> Iterator[VolumeEntry]:
                calls.append("entries")
                return super().entries(path)

            def size(self, path: str) -> int | None:
                calls.append("size")
                return super().size(path)

        def run_name(lr: int) -> str:
            words = ("python", "train.py", f"--lr={lr}")
            return name_for(UserCommand(words, folder), None, CountingFiles(tmp_path / "runs"))[0]

        assert [run_name(lr) for lr in (1, 2, 20, 99)] == [
            "nano-train", "nano-train-2", "nano-train-20", "nano-train-13",
        ]  # fmt: skip
        assert calls == ["entries", "size"] * 4

    def test_name_of_a_run_of_a_different_job_is_refused(
        self, type_, fake, folder: Path, make_run
    ) -> None:
        make_run("m1", step=100)
        result = type_("runner host --name m1 --dir ../nano -- python train.py")
        assert result.exit_code == 2
        assert "run 'm1' exists with job train; use a different --name" in result.stderr
        make_run("nano-train", job="command")
        make_run("mygpt", job="experiment")
        assert (
            "'nano-train' exists with job command;"
            in type_("runner host train --name nano-train").stderr
        )
        assert (
            "'mygpt' exists with job experiment;" in type_("runner host train --name mygpt").stderr
        )
        assert fake.did == []

    def test_different_folder_of_the_same_name_is_a_different_run(
        self, type_, fake, folder: Path, trained: Path, tmp_path: Path
    ) -> None:
        make_folder(tmp_path / "b" / "nano")
        result = type_("runner host --dir ../b/nano -- python train.py")
        assert fake.plans[0].run == "nano-train-2"
        assert f"nano-train is the same command in a different folder, {folder}" in result.stderr
        result = type_("runner host --name nano-train --dir ../b/nano -- python train.py")
        assert result.exit_code == 2
        assert f"folder: {folder} → {tmp_path / 'b' / 'nano'}" in result.stderr
        (tmp_path / "link").symlink_to(folder)
        assert (
            type_("runner host --name nano-train --dir ../link -- python train.py").exit_code == 0
        )

    def test_moved_folder_resumes_with_the_run_name(
        self, type_, fake, folder: Path, trained: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "b").mkdir()
        folder.rename(tmp_path / "b" / "nano")
        result = type_("runner host --dir ../b/nano --dry-run -- python train.py")
        assert "moved that folder, resume the run with --name nano-train" in " ".join(
            result.stderr.split()
        )
        assert (
            type_("runner host --name nano-train --dir ../b/nano -- python train.py").exit_code == 0
        )
        assert [plan.run for plan in fake.plans] == ["nano-train-2", "nano-train"]


class TestPlan:
    def test_plan_shows_the_folder_and_persisted_paths(self, type_, folder: Path) -> None:
        (folder / "requirements.txt").write_text("six\n")
        line = "--setup 'pip install a' --persist out=checkpoints --persist data=data/shared"
        text = type_(f"runner host --dir ../nano {line} --dry-run -- python train.py").stderr
        assert re.search(rf"folder +{re.escape(str(folder))}", text)
        assert "out → /vol/checkpoints/nano/out" in text
        assert "data → /vol/data/shared" in text

    def test_persisted_path_can_contain_the_run(self, type_, fake, folder: Path) -> None:
        type_("runner host --dir ../nano --persist 'out=checkpoints/{run}/out' -- python train.py")
        assert fake.plans[0].folder.persisted[0].container_path == "/vol/checkpoints/nano-train/out"

    def test_json_is_passed_to_the_supervisor(self, type_, fake, folder: Path) -> None:
        type_("runner host --dir ../nano --json -- python train.py --json")
        command = fake.plans[0].process.command
        assert "--json" in command[: command.index("--")]

    def test_plan_as_json(self, type_, folder: Path) -> None:
        plan = json.loads(
            type_("runner host --dir ../nano --dry-run --json -- python train.py").stdout
        )
        assert plan["folder"]["host_path"] == str(folder)
        assert plan["writes_run"] is True


class TestHost:
    WORDS = ("--dir", "../nano", "--persist", "out=checkpoints", "--persist", "data=data")

    def test_prepare_train_and_read_the_log(self, spawn, folder: Path, checkout: Path) -> None:
        out, err = spawn(
            "host", *self.WORDS, "--", "python", "data/letters/prepare.py"
        ).communicate()
        assert out == "prepared\n", err
        assert "a folder with files: it is kept" in err
        assert (checkout / "volumes" / "data" / "nano" / "data" / "letters" / "train.bin").is_file()
        out, err = spawn(
            "host", *self.WORDS, "--", "python", "train.py", "config/short.py"
        ).communicate()
        assert "iter 5: loss" in out, err
        kept = checkout / "volumes" / "checkpoints" / "nano" / "out"
        assert (kept / "ckpt.pt").read_text() == "5"
        assert (folder / "out").resolve() == kept
        assert "iter 5" in spawn("logs", "nano-train").communicate()[0]
        rows = spawn("runs").communicate()[0].splitlines()
        assert [row.split()[:2] for row in rows[1:]] == [
            ["nano-train", "command"],
            ["nano-prepare", "command"],
        ]

    def test_failure_of_the_command_is_a_failed_job(self, spawn, folder: Path) -> None:
        process = spawn("host", "--dir", "../nano", "--", "python", "-c", "raise SystemExit(2)")
        _, err = process.communicate(timeout=60)
        assert process.returncode == 100
        assert "the job failed with exit status 2" in err

    def test_stopped_command_resumes(self, spawn, folder: Path, checkout: Path) -> None:
        (folder / "data" / "letters" / "train.bin").write_text("x")
        resume = ("--resume-with", "--init_from=resume", "--resume-if", "out/ckpt.pt")
        line = ("host", *self.WORDS, *resume, "--name", "r", "--detach")
        words = ("--", "python", "train.py", "--max_iters=30", "--pause=0.2")
        assert spawn(*line, *words).communicate()[0] == "r\n"
        ckpt = checkout / "volumes" / "checkpoints" / "nano" / "out" / "ckpt.pt"
        wait_for(lambda: ckpt.exists() and ckpt.read_text() in ("2", "3", "4"))
        assert spawn("stop", "r").wait(60) == 0
        stopped = int(ckpt.read_text())
        assert json.loads(spawn("status", "r", "--json").communicate()[0])["status"] == "unfinished"
        process = spawn("resume", "r")
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert f"resuming at {stopped}" in out
        record = read_record(checkout / "volumes" / "checkpoints" / "r")
        assert record is not None
        assert [attempt.reason for attempt in record.attempts] == ["SIGTERM", "finished"]

    def test_ctrl_c_leaves_the_run_unfinished(self, spawn, folder: Path) -> None:
        # Wait for the child: a shell loses a signal while it starts one.
        child = "python -c 'import time; print(1, flush=True); time.sleep(600)'; true"
        process = spawn("host", "--dir", "../nano", "--", "sh", "-c", child)
        assert process.stdout.readline() == "1\n"
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        assert process.returncode == 101

    def test_resume_needs_the_folder(self, spawn, folder: Path, tmp_path: Path) -> None:
        spawn(
            "host", "--dir", "../nano", "--name", "r", "--", "python", "-c", "raise SystemExit(1)"
        ).wait()
        folder.rename(tmp_path / "moved")
        process = spawn("resume", "r")
        _, err = process.communicate(timeout=60)
        assert process.returncode == 2
        assert "--dir FOLDER -- python -c" in err
