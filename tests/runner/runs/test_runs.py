"""runner runs, status, logs, stop and resume, in a different terminal and for lost runs."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import time
from pathlib import Path

import pytest

from experiment.run import LoggedStream
from job.display import Display
from job.run_record import Attempt, RunRecord
from runner.runs import store as run_folders
from runner.runs import volume
from runner.runs.store import FRESH_HEARTBEAT_S, derive_status, newest_step, states, write_launch
from runner.runs.table import age
from runner.sweep.record import SweepRecord, Trial
from runner.target import LaunchHandle, LocalVolume, RunInfo
from runner.targets.base import describe_active
from runner.targets.compose import ComposeTarget
from runner.targets.host import HostTarget
from tests.runner.fake_target import FakeTarget

RUNNING = RunInfo("warm", "train", "host", "running", alive=True, step=50, max_steps=100, loss=1.5)


class TestRuns:
    def test_newest_first(self, type_, fake) -> None:
        fake.states = [
            RunInfo("old", "train", "host", "finished", started=1.0),
            RunInfo("new", "train", "host", "running", started=2.0),
        ]
        runs = json.loads(type_("runner runs --json").stdout)
        assert [run["run"] for run in runs] == ["new", "old"]
        lines = type_("runner runs").stdout.splitlines()
        assert [line.split()[0] for line in lines] == ["run", "new", "old"]

    @pytest.mark.parametrize(
        ("options", "names"),
        [
            ("--tag x", ["both", "one"]),
            ("--tag x --tag y", ["both"]),
            ("--status failed --status lost", ["both", "none"]),
            ("--recipe warm", ["one"]),
            ("--recipe warm --status failed", []),
        ],
    )
    def test_filters_combine(self, type_, fake, options: str, names: list[str]) -> None:
        fake.states = [
            RunInfo("none", "train", "host", "lost"),
            RunInfo("one", "train", "host", "running", tags=("x",), recipe="warm"),
            RunInfo("both", "train", "host", "failed", tags=("y", "x")),
        ]
        result = type_(f"runner runs {options} --json")
        assert [run["run"] for run in json.loads(result.stdout)] == names
        if not names:
            assert "none of the 3 runs matches" in type_(f"runner runs {options}").stderr

    def test_a_run_has_the_tags_of_all_its_launches(self, type_, fake, cli, make_run) -> None:
        assert type_("runner host warm --tag a --tag b").exit_code == 0
        metadata = fake.plans[-1].metadata
        assert (metadata["tags"], metadata["recipe"]) == (["a", "b"], "warm")
        launches = [{"target": "host", **metadata}, {"target": "host", "tags": ["c", "a"]}]
        make_run("again", 1, attempts=[{"started": 1.0, "launch": launch} for launch in launches])
        cli.targets["host"] = HostTarget(cli, cli.cwd)
        state = json.loads(type_("runner status again --json").stdout)
        assert state["tags"] == ["a", "b", "c"]

    def test_estimates_are_shown_next_to_the_costs(self, type_, fake) -> None:
        costs = {"cost": 1.314, "estimated_cost": 1.2, "expected_cost": 1.33}
        fake.states = [
            RunInfo("paid", "train", "cloud", "finished", **costs),
            RunInfo("free", "train", "host", "finished"),
        ]
        header, *lines = (line.split() for line in type_("runner runs").stdout.splitlines())
        assert header.index("estimated") == header.index("cost") + 1
        cells = {line[0]: line[-2:] for line in lines}
        assert cells == {"paid": ["$1.31", "$1.20"], "free": ["-", "-"]}
        runs = json.loads(type_("runner runs --json").stdout)
        assert {run["run"]: run["estimated_cost"] for run in runs} == {"paid": 1.2, "free": None}
        assert "$1.31 (estimate $1.20; $1.33 in all" in type_("runner status paid").stdout

    @pytest.mark.parametrize(
        ("width", "titles"),
        [
            (120, "run job target device status step loss age"),
            (80, "run job target status step loss age"),
            (60, "run job status step loss age"),
            (40, "run status step loss"),
            (20, "run status step loss"),
        ],
    )
    def test_a_narrow_terminal_drops_columns_and_cuts_no_value(
        self, type_, fake, cli, monkeypatch: pytest.MonkeyPatch, width: int, titles: str
    ) -> None:
        common = {"gpu": "cpu, 2 threads", "max_steps": 300, "started": time.time() - 7300}
        fake.states = [
            RunInfo(
                "nanogpt-lr1-warm", "train", "host", "unfinished", step=150, loss=5.7012, **common
            ),
            RunInfo("cc", "train", "host", "finished", step=300, **common),
        ]
        monkeypatch.setenv("COLUMNS", str(width))
        cli.terminal, cli.environ = True, {**cli.environ, "NO_COLOR": "1"}
        result = type_("runner runs")
        header, _, line = result.stdout.splitlines()
        assert header.split() == titles.split()
        dropped = [word for word in ("job", "target", "device", "age") if word not in header]
        message = result.stderr.partition(";")[0]
        assert message == (f"no room for {', '.join(dropped)}" if dropped else "")
        assert line.split()[0] == "nanogpt-lr1-warm"
        assert all(word in line for word in ("unfinished", "150/300", "5.7012"))
        assert "…" not in line

    def test_different_targets_are_dropped_last(
        self, type_, fake, cli, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        common = {"gpu": "cpu, 2 threads", "max_steps": 300, "started": time.time() - 7300}
        fake.states = [
            RunInfo("longer", "train", target, "unfinished", **common)
            for target in ("host", "cloud")
        ]
        monkeypatch.setenv("COLUMNS", "50")
        cli.terminal, cli.environ = True, {**cli.environ, "NO_COLOR": "1"}
        header, *lines = type_("runner runs").stdout.splitlines()
        assert header.split() == ["run", "target", "status", "step", "age"]
        cells = [line.replace(" (older)", "").split()[1] for line in lines]
        assert sorted(cells) == ["cloud", "host"]

    def test_no_runs_yet(self, type_) -> None:
        result = type_("runner runs")
        assert (result.exit_code, result.stdout) == (0, "")
        assert "no runs yet" in result.stderr
        assert type_("runner runs --json").stdout == "[]\n"

    def test_an_unreachable_target_is_named(self, type_, cli, checkout, fake) -> None:
        from runner.errors import RunnerError

        class Offline(FakeTarget):
            def runs(self) -> list[RunInfo]:
                raise RunnerError("no network")

        fake.states = [RUNNING]
        cli.targets["cloud"] = Offline(checkout, name="cloud")
        result = type_("runner runs --json")
        assert len(json.loads(result.stdout)) == 1
        assert "skipped target cloud: no network" in result.stderr

    @pytest.mark.parametrize(
        ("seconds", "words"), [(0, "0s"), (59, "59s"), (120, "2m"), (7200, "2h"), (432000, "5d")]
    )
    def test_age(self, seconds: float, words: str) -> None:
        assert age(1000.0, 1000.0 + seconds) == words


class TestDeriveStatus:
    """The status "running" of a record counts only while the process is alive."""

    LAUNCH = LaunchHandle("warm", "host", "train", "1", 100.0)
    LAST_ATTEMPT = Attempt(started=101.0, launch={"target": "host"})

    @pytest.mark.parametrize(
        ("status", "attempt", "lives", "code", "word"),
        [
            ("running", LAST_ATTEMPT, True, None, "running"),
            ("finished", Attempt(started=5.0), True, None, "starting"),
            ("running", LAST_ATTEMPT, False, None, "lost"),
            ("running", LAST_ATTEMPT, False, 137, "lost"),
            ("running", LAST_ATTEMPT, False, 1, "failed"),
            ("running", None, False, 0, "finished"),
            ("running", LAST_ATTEMPT, False, 101, "unfinished"),
            ("unfinished", LAST_ATTEMPT, False, None, "unfinished"),
        ],
    )
    def test_status_by_record_process_and_exit_status(
        self, status, attempt, lives, code, word
    ) -> None:
        record = RunRecord("warm", status=status)
        assert derive_status(record, attempt, self.LAUNCH, lives, code) == word

    def test_a_run_without_the_runner_is_active_by_its_heartbeat(self, make_run, checkout) -> None:
        folder = make_run("warm", status="running", attempts=[{"started": 5.0}])
        heartbeat = folder / "heartbeat"
        heartbeat.touch()
        for age_s, status in ((0, "running"), (FRESH_HEARTBEAT_S + 1, "lost")):
            os.utime(heartbeat, (time.time() - age_s,) * 2)
            (state,) = states(folder.parent, "host", lambda _: (False, None))
            assert state.status == status

    @pytest.mark.parametrize("is_held", [True, False])
    def test_the_lock_overrules_the_heartbeat(
        self, make_run, type_, cli, checkout, is_held: bool
    ) -> None:
        """The clock may have been set back, or the machine may be too slow for a heartbeat."""
        cli.targets = {"host": HostTarget(cli, checkout, has_module=lambda name: True)}
        folder = make_run("warm", status="running", attempts=[{"started": 5.0}])
        (folder / "heartbeat").touch()
        beat = time.time() + (-3600 if is_held else 3600)
        os.utime(folder / "heartbeat", (beat, beat))
        with (folder / "lock").open("w") as lock:
            if is_held:
                fcntl.flock(lock, fcntl.LOCK_EX)
            refused = type_("runner host warm --dry-run")
            (state,) = json.loads(type_("runner runs --json").stdout)
        assert (refused.exit_code, state["alive"]) == ((1, True) if is_held else (0, False))

    @pytest.mark.parametrize(
        ("code", "why"), [(None, "killed"), (137, "killed"), (139, "killed by signal 11")]
    )
    def test_a_killed_run_is_lost(self, make_run, code: int | None, why: str) -> None:
        attempts = [
            {"started": 1.0, "reason": "SIGTERM"},
            {"started": 5.0, "launch": {"target": "host"}},
        ]
        folder = make_run("warm", status="running", attempts=attempts)
        write_launch(folder, LaunchHandle("warm", "host", "train", "1", 4.0))
        (state,) = states(folder.parent, "host", lambda _: (False, code))
        assert (state.status, state.reason, state.end_reasons) == ("lost", why, ("SIGTERM", why))

    def test_a_run_belongs_to_the_target_of_its_last_attempt(self, make_run, checkout) -> None:
        both = [
            {"started": 1.0, "launch": {"target": "host"}},
            {"started": 2.0, "launch": {"target": "local"}},
        ]
        folder = make_run("warm", attempts=both)
        assert [*states(folder.parent, "host", lambda _: (False, None))] == []
        (state,) = states(folder.parent, "local", lambda _: (False, None))
        assert (state.run, state.attempts) == ("warm", 2)

    def test_run_of_docker_compose_up_is_found_by_its_container(self, make_run) -> None:
        folder = make_run("warm", attempts=[{"started": 1.0, "host": "0123456789ab"}])
        assert len([*states(folder.parent, "local", lambda _: (False, None))]) == 1

    def test_other_folders_are_skipped(self, checkout) -> None:
        checkpoints = checkout / "volumes" / "checkpoints"
        (checkpoints / "lost+found").mkdir(parents=True)
        (checkpoints / "notes.txt").touch()
        assert [*states(checkpoints, "host", lambda _: (False, None))] == []

    @pytest.mark.parametrize(
        ("break_record", "problem"),
        [
            (lambda path: path.write_text('{"name": 3'), "run.json is damaged"),
            (lambda path: path.write_bytes(b"\xff\0"), "run.json is damaged"),
            (lambda path: path.touch(), "run.json is damaged"),
            (os.mkfifo, "a FIFO, not a regular file"),
            (Path.mkdir, "is a directory"),
            (lambda path: path.symlink_to(path), "too many levels of symbolic links"),
        ],
    )
    def test_a_run_with_a_damaged_record_is_listed(
        self, type_, cli, make_run, checkout, break_record, problem
    ) -> None:
        path = make_run("warm", step=50) / "run.json"
        step = make_run("other", step=40).parent / "warm" / "step_00000001"
        step.mkdir()
        path.unlink()
        break_record(path)
        cli.targets = {"host": HostTarget(cli, checkout, has_module=lambda name: True)}
        (state,) = (s for s in json.loads(type_("runner runs --json").stdout) if s["run"] == "warm")
        assert (state["status"], state["alive"], state["target"]) == ("lost", False, "host")
        assert problem in state["reason"]
        assert problem in type_("runner status warm").stdout
        type_("runner prune --older-than 1s -y")  # nobody knows when it ended
        assert step.exists()
        probe = lambda launch: (False, None)  # noqa: E731
        checkpoints = path.parent.parent
        assert [state.run for state in states(checkpoints, "local", probe)] == []
        found = states(checkpoints, "remote:a", probe, "remote:a")
        assert [state.run for state in found] == ["warm"]
        write_launch(path.parent, LaunchHandle("warm", "local", "train", "1", 4.0))
        (state,) = states(checkpoints, "local", probe)
        assert problem in state.reason

    def test_an_unreadable_folder_is_listed(self, make_run, checkout, monkeypatch) -> None:
        checkpoints = make_run("warm").parent
        (checkpoints / "lost+found").mkdir()

        def deny(path: Path) -> bytes:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))

        for module in ("job.run_record", "runner.runs.store"):  # root may read every file
            monkeypatch.setattr(f"{module}.read_file", deny)
        (state,) = states(checkpoints, "host", lambda _: (False, None))
        assert (state.run, "permission denied; check its rights" in state.reason) == ("warm", True)

    @pytest.mark.parametrize("target", [HostTarget, ComposeTarget])
    def test_the_state_of_one_run_reads_no_other(
        self, cli, make_run, checkout, monkeypatch, target: type[HostTarget | ComposeTarget]
    ) -> None:
        attempts = [{"started": 1.0, "ended": 2.0, "launch": {"target": target.name}}]
        for name in ("warm", "other", "third"):
            folder = make_run(name, attempts=attempts)
        read: list[str] = []
        monkeypatch.setattr(run_folders, "read_launch", lambda folder: read.append(folder.name))
        asked = target(cli, checkout)
        state = asked.state("warm")
        assert (state and state.run, state and state.status, read) == ("warm", "finished", ["warm"])
        assert [asked.state(name) for name in ("nothing", "", "../checkpoints/warm")] == [None] * 3
        monkeypatch.setattr(target, "runs", lambda self: pytest.fail("read every run"))
        assert describe_active(asked, folder) is None

    @pytest.mark.parametrize(
        ("text", "step"),
        [
            ("step_00001000\n", 1000),
            (None, 2000),
            ("", 2000),
            ("junk", 2000),
            ("step_00003000", 2000),
        ],
    )
    def test_newest_step(self, tmp_path, text: str | None, step: int) -> None:
        if text is not None:
            (tmp_path / "latest").write_text(text)
        assert newest_step(tmp_path) is None  # no folder, no checkpoint
        for name in ("step_00001000", "step_00002000", ".partial_step_00009000"):
            (tmp_path / name).mkdir()
        assert newest_step(tmp_path) == step  # like the trainer


class TestStatus:
    def test_rows_on_stdout(self, type_, fake) -> None:
        fake.states = [RUNNING]
        result = type_("runner status warm")
        assert result.exit_code == 0
        assert "step      50/100" in result.stdout
        assert json.loads(type_("runner status warm --json").stdout)["loss"] == 1.5

    def test_a_lost_run_shows_its_output_and_the_next_command(self, type_, fake) -> None:
        fake.states = [RunInfo("warm", "train", "host", "lost")]
        fake.printed = ["Out of memory"]
        result = type_("runner status warm")
        assert "Out of memory" in result.stderr
        assert "`runner resume warm` resumes it" in result.stderr

    def test_failed_command_without_a_checkpoint_does_not_mention_one(self, type_, fake) -> None:
        fake.states = [RunInfo("nano", "command", "host", "failed", reason="exit status 1")]
        assert "`runner resume nano` starts it again" in type_("runner status nano").stderr

    @pytest.mark.parametrize("command", ["status", "logs", "stop", "resume"])
    def test_a_missing_run_is_an_error(self, type_, fake, command: str) -> None:
        fake.states = [RUNNING]
        result = type_(f"runner {command} wram")
        assert result.exit_code == 102
        assert "no run 'wram'; did you mean 'warm'?" in result.stderr


@pytest.mark.parametrize("command", ["status", "watch", "stop", "resume", "logs"])
def test_the_name_of_a_sweep_is_an_error(type_, checkout, command: str) -> None:
    trials = [
        Trial(number, f"s-00{number}", {}, "finished", metric=1.0 / number) for number in (1, 2)
    ]
    folder = checkout / "volumes" / "checkpoints" / "s"
    folder.mkdir(parents=True)
    SweepRecord("s", "host", "val_loss", "min", trials=trials).write(folder)
    result = type_(f"runner {command} s")
    assert result.exit_code == 102
    assert "'s' is a sweep, whose runs are s-001 to s-002; name one of them" in result.stderr
    assert "runner status s-002" in result.stderr


class TestLogs:
    def test_the_whole_log_or_its_end(self, type_, fake, make_run) -> None:
        fake.states = [RunInfo("warm", "train", "host", "finished")]
        (make_run("warm") / "log.txt").write_text("one\ntwo\nthree\n")
        assert type_("runner logs warm").stdout == "one\ntwo\nthree\n"
        assert type_("runner logs warm --tail 2").stdout == "two\nthree\n"
        assert type_("runner logs warm --tail 0").stdout == ""

    @pytest.mark.parametrize(("tail", "shown"), [(0, ""), (1, "three\n"), (9, "one\ntwo\nthree\n")])
    def test_the_end_of_the_last_day(self, type_, fake, make_run, tail: int, shown: str) -> None:
        fake.states = [RunInfo("warm", "train", "host", "finished")]
        stamp = time.strftime("%Y-%m-%d %H:%M:%S ", time.gmtime())
        text = "".join(f"{stamp}{word}\n" for word in ("one", "two", "three"))
        (make_run("warm") / "log.txt").write_text(text)
        assert (
            type_(f"runner logs warm --tail {tail} --since 1d").stdout.replace(stamp, "") == shown
        )

    def test_since_needs_timestamps(self, type_, fake, make_run) -> None:
        fake.states = [RunInfo("warm", "command", "host", "finished")]
        (make_run("warm") / "log.txt").write_text("one\ntwo\n")
        refused = type_("runner logs warm --since 1h")
        assert (refused.exit_code, refused.stdout) == (2, "")
        assert "without times; use --tail 50 instead of --since" in refused.stderr

    def test_timestamps_are_in_utc(self, tmp_path, monkeypatch) -> None:
        path = tmp_path / "log.txt"
        display = Display(path, 10, silent=False)
        for zone in ("UTC", "Asia/Tokyo", "America/Lima"):
            monkeypatch.setenv("TZ", zone)
            time.tzset()
            display.log_only(f"by a trainer in {zone}")
            LoggedStream(io.StringIO(), path).write(f"by an experiment in {zone}\n")
            text = path.read_text()
            assert volume.since(text, time.time() - 60) == text
            assert volume.since(text, time.time() + 60) == ""
        monkeypatch.undo()
        time.tzset()

    def test_without_a_log(self, type_, fake, make_run) -> None:
        fake.states = [RunInfo("warm", "train", "host", "lost")]
        make_run("warm")
        assert type_("runner logs warm").exit_code == 102
        fake.printed = ["ImportError"]
        assert type_("runner logs warm").stdout == "ImportError\n"

    @pytest.mark.parametrize("lines", [1, 999, 1000, 1001, 20_000, 30_000])
    def test_the_end_of_a_long_log(self, tmp_path, lines: int) -> None:
        written = [f"step {i} {'x' * 40} äöü\n" for i in range(20_000)]
        (tmp_path / "log.txt").write_text("".join(written))
        end = (tmp_path / "log.txt").stat().st_size
        tail = volume.tail(LocalVolume(tmp_path), "log.txt", lines)
        assert tail == ("".join(written[-lines:]), end)

    def test_lines_and_characters_are_split_between_chunks(self, tmp_path, monkeypatch) -> None:
        monkeypatch.setattr(volume, "CHUNK_BYTES", 1)
        folder = tmp_path / "volumes" / "checkpoints" / "r"
        folder.mkdir(parents=True)
        (folder / "log.txt").write_text("one\ntwo\nloss ↓\n")
        assert volume.tail(LocalVolume(folder), "log.txt", 2)[0] == "two\nloss ↓\n"
        assert "".join(volume.follow(FakeTarget(tmp_path), "r", 8)) == "loss ↓\n"

    def test_a_path_outside_the_volume_is_refused(self, tmp_path) -> None:
        from runner.errors import RunnerError

        with pytest.raises(RunnerError, match="outside the volume"):
            LocalVolume(tmp_path).read("../secret")


class TestStop:
    def test_stop_lets_the_run_write_a_checkpoint(self, type_, fake) -> None:
        fake.states = [RUNNING]
        result = type_("runner stop warm")
        assert (result.exit_code, fake.did) == (0, ["stop warm"])
        assert "`runner resume warm` resumes it" in result.stderr

    def test_stop_now(self, type_, fake) -> None:
        fake.states = [RUNNING]
        type_("runner stop warm --force")
        assert fake.did == ["stop warm now"]


class TestResume:
    @pytest.fixture
    def warm(self, make_run, fake):
        folder = make_run("warm", step=50, status="unfinished")
        fake.states = [RunInfo("warm", "train", "host", "unfinished", folder=str(folder))]
        return folder

    def test_resume_uses_the_recorded_recipe(self, type_, fake, warm) -> None:
        assert type_("runner resume warm").exit_code == 0
        (plan,) = fake.plans
        recipe = "/vol/checkpoints/warm/recipe.yaml"
        assert (plan.recipe, plan.resume, plan.run) == (recipe, 50, "warm")

    def test_resume_uses_the_gpus_of_the_last_launch(self, type_, fake, warm) -> None:
        fake.has = {"gpus": 8}
        write_launch(warm, LaunchHandle("warm", "host", "train", "1", 1.0, gpus=4))
        type_("runner resume warm --dry-run")
        type_("runner resume warm --dry-run --gpu 2")
        assert [plan.process.gpus for plan in fake.plans] == [4, 2]

    def test_resume_on_another_target(self, type_, cli, checkout, fake, warm) -> None:
        other = cli.targets["local"] = FakeTarget(checkout, name="local")
        type_("runner resume warm --target local")
        assert (fake.did, other.did) == ([], ["start warm", "follow warm"])

    def test_resume_without_a_recipe_is_an_error(self, type_, cli, checkout, make_run) -> None:
        (make_run("warm", step=50, status="unfinished") / "recipe.yaml").unlink()
        cli.targets = {"host": HostTarget(cli, checkout)}
        result = type_("runner resume warm")
        assert result.exit_code == 1
        assert "the recipe.yaml of run 'warm' is missing" in result.stderr

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ("lr", "unexpected 'lr'; `runner resume` takes one run and key=value"),
            ("lr=x", "expected a number, got 'x'"),
            ("--target locl", "unknown target 'locl'; did you mean 'local'?"),
        ],
    )
    def test_error_is_one_line(self, type_, warm, options: str, message: str) -> None:
        result = type_(f"runner resume warm {options}")
        assert (result.exit_code, message in result.stderr) == (2, True), result.stderr
