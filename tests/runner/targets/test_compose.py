"""The target local with a stand-in for docker: its commands and their answers."""

from __future__ import annotations

import json
import os
import signal
import tarfile
from pathlib import Path

import pytest

from runner.runs.store import read_exit, read_launch, write_launch
from runner.target import LaunchHandle
from runner.targets.compose import ComposeTarget
from runner.targets.docker import ENTRYPOINT, Container, RunContainers
from tests.runner.nanogpt_folder import make_folder
from tests.runner.targets.docker_stand_in import GPU_CONFIG, own_settings
from tests.waiting import wait_for

# A container whose job stops like the trainer.
JOB = """\
trap 'echo INT >>"$FAKE_DOCKER/signals"; {on_signal}' INT
trap 'echo TERM >>"$FAKE_DOCKER/signals"; {on_signal}' TERM
printf 'abc\\tquickstart\\tUp 2 seconds\\n' >"$FAKE_DOCKER/ps"
echo $$ >"$FAKE_DOCKER/pid"
touch "$FAKE_DOCKER/ready"
while :; do sleep 0.05; done
"""


@pytest.fixture
def local(cli, checkout, docker) -> ComposeTarget:
    cli.targets.clear()
    cli.targets["local"] = ComposeTarget(cli, checkout)
    return cli.targets["local"]


@pytest.fixture
def run_words(docker):
    """Return ``run_words()``, which returns the arguments of the only `compose run`."""

    def words() -> list[str]:
        (call,) = docker.calls("compose", "run")
        return call

    return words


@pytest.fixture
def volume(checkout: Path) -> Path:
    return checkout / "volumes" / "checkpoints"


@pytest.fixture
def started_by_compose(docker, make_run) -> None:
    """Start the run ``warm`` by `docker compose up`."""
    attempts = [{"started": 1.0, "host": "0123456789ab"}]
    (make_run("warm", status="running", attempts=attempts) / "heartbeat").touch()
    docker.answer("ps", "0123456789abcd\t\tUp 3 minutes\n")


class TestCommand:
    def test_a_job_is_one_container_of_its_service(
        self, type_, local, docker, run_words, checkout
    ) -> None:
        assert type_("runner local warm lr=1e-3").exit_code == 0
        words = run_words()
        assert [*words[:3], words[4]] == ["compose", "run", "--name", "-T"]
        assert docker.calls("rm")[-1] == ["rm", words[3]]
        service = words.index("train")
        assert words[service:] == [
            *("train", "python", "-m", "model.train", "configs/warm.yaml", "lr=1e-3"),
            *("--name", "warm"),
        ]
        assert f"gpt-runner.project={checkout}" in words
        assert "gpt-runner.run=warm" in words

    @pytest.mark.parametrize(("job", "service"), [("prepare", "prepare"), ("train", "train")])
    def test_job_runs_in_its_service(self, type_, local, run_words, job: str, service: str) -> None:
        type_(f"runner local {job}")
        assert run_words()[run_words().index("python") - 1] == service

    def test_a_job_without_a_service_runs_in_the_service_train(
        self, type_, local, run_words, make_run
    ) -> None:
        make_run("warm", step=100)
        type_("runner local evaluate")
        words = run_words()
        assert words[words.index("train") :][:4] == ["train", "python", "-m", "serving.evaluate"]

    @pytest.mark.parametrize("words", ["runner local", "runner local --detach", "runner shell"])
    def test_engine_that_does_not_see_the_files_is_named(
        self, type_, local, docker, words: str
    ) -> None:
        docker.answer("other_files", "/home/me/gpt-runner")
        result = type_(words)
        assert result.exit_code == 1
        assert "the Docker engine does not see /home/me/gpt-runner: it runs on" in result.stderr
        assert docker.calls("compose", "run") == []

    @pytest.mark.parametrize(("options", "has_terminal"), [("", True), ("--json", False)])
    def test_a_terminal_is_passed_through_unless_json_is_printed(
        self, type_, local, cli, run_words, options: str, has_terminal: bool
    ) -> None:
        cli.terminal = True
        type_(f"runner local {options}")
        assert ("-T" in run_words()) != has_terminal

    def test_the_record_gets_the_launch(self, type_, local, run_words) -> None:
        type_("runner local")
        (launch,) = [word for word in run_words() if word.startswith("RUN_LAUNCH=")]
        tree = json.loads(launch.removeprefix("RUN_LAUNCH="))
        assert (tree["target"], tree["image"]) == ("local", "gpt-runner")

    def test_a_secret_is_passed_by_name(self, type_, local, checkout, docker, run_words) -> None:
        (checkout / ".env").write_text("WANDB_API_KEY=s3cret\n" + own_settings(checkout))
        result = type_("runner local wandb_project=p")
        assert result.exit_code == 0
        assert "WANDB_API_KEY" in run_words()
        assert (docker.folder / "key").read_text() == "s3cret"
        assert "s3cret" not in (docker.folder / "calls").read_text() + result.stderr

    def test_a_text_outside_the_checkout_is_mounted(
        self, type_, local, run_words, tmp_path
    ) -> None:
        text = tmp_path / "texts" / "a.txt"
        text.parent.mkdir()
        text.touch()
        type_(f"runner local prepare --source {text}")
        assert f"{text}:{text}:ro" in run_words()
        assert run_words()[-2:] == ["--source", str(text)]

    def test_the_program_docker_compose_works_too(self, type_, local, docker) -> None:
        (docker.bin / "docker-compose").symlink_to(docker.bin / "docker")
        (docker.folder / "no_plugin").touch()
        assert type_("runner local").exit_code == 0
        assert len(docker.calls("run")) == 1

    def test_missing_compose_is_an_error(self, type_, local, docker) -> None:
        (docker.folder / "no_plugin").touch()
        result = type_("runner local")
        assert (result.exit_code, "Compose is not" in result.stderr) == (1, True)


class TestStart:
    def test_missing_settings_and_folders_are_created(self, type_, local, checkout) -> None:
        result = type_("runner local")
        assert "wrote .env" in result.stderr
        assert (checkout / ".env").read_text() == own_settings(checkout)
        folders = [checkout / "volumes" / name for name in ("data", "checkpoints", "cache")]
        assert {folder.stat().st_uid for folder in folders} == {os.getuid()}
        assert "wrote .env" not in type_("runner local").stderr

    def test_existing_settings_are_kept(self, type_, local, checkout) -> None:
        (checkout / ".env").write_text("HOST_UID=7\n")
        type_("runner local")
        assert "HOST_UID=7\n" in (checkout / ".env").read_text()

    def test_the_image_is_built_first_without_output_on_stdout(self, spawn, docker) -> None:
        (docker.folder / "no_image").touch()
        docker.answer("job", "echo data\n")
        out, err = spawn("local", **docker.variables).communicate(timeout=60)
        assert out == "data\n"
        assert "Step 1/9" in err

    def test_a_dry_run_changes_nothing(self, type_, local, docker, checkout) -> None:
        assert type_("runner local --dry-run").exit_code == 0
        assert docker.calls("compose", "run") == []
        assert sorted(path.name for path in checkout.iterdir()) == [
            *("Dockerfile", "configs", "corpus", "docker-compose.gpu.yml", "docker-compose.yml"),
            *("job", "model"),
        ]

    def test_without_an_engine_the_host_is_suggested(self, type_, local, docker, checkout) -> None:
        docker.without_engine()
        result = type_("runner local warm lr=1e-3")
        assert result.exit_code == 1
        assert "no Docker engine answers: Cannot connect to the Docker daemon" in result.stderr
        assert "without a container: runner host warm lr=1e-3" in result.stderr
        assert not (checkout / "volumes").exists()

    def test_missing_docker_is_an_error(self, type_, local, docker) -> None:
        (docker.bin / "docker").unlink()
        assert "docker is not installed" in type_("runner local").stderr

    @pytest.mark.parametrize(
        ("gpus", "remedy"),
        [((), "remove --gpu, or add"), (("H100", "H100"), "`runner doctor --fix`")],
    )
    def test_gpus_that_containers_lack(self, type_, local, docker, gpus, remedy: str) -> None:
        if gpus:
            docker.with_gpus(*gpus)
        result = type_("runner local --gpu 2")
        assert result.exit_code == 2
        assert f"--gpu 2: local has no GPUs; {remedy}" in result.stderr

    def test_gpus_with_the_container_toolkit(self, type_, local, docker, run_words) -> None:
        docker.with_gpus("NVIDIA H100", "NVIDIA H100")
        docker.answer("config.yaml", GPU_CONFIG)
        assert type_("runner local --gpu 2").exit_code == 0
        assert "--nproc-per-node=2" in run_words()


class TestAttached:
    @pytest.mark.parametrize(
        ("code", "status", "is_kept"),
        [
            *((0, 0, True), (101, 101, True), (3, 100, True)),
            *((1, 1, False), (2, 2, False), (143, 130, False)),
        ],
    )
    def test_a_job_that_ends_before_it_starts_leaves_no_run(
        self, type_, local, docker, volume, code: int, status: int, is_kept: bool
    ) -> None:
        docker.answer("job", f"exit {code}\n")
        assert type_("runner local").exit_code == status
        assert read_exit(volume / "quickstart") == (code if is_kept else None)
        assert (volume / "quickstart").exists() == is_kept

    @pytest.mark.parametrize(("sent", "word"), [(signal.SIGINT, "INT"), (signal.SIGTERM, "TERM")])
    def test_the_first_signal_is_passed_on(self, spawn, docker, sent, word: str) -> None:
        docker.answer("job", JOB.format(on_signal="exit 101"))
        process = spawn("local", **docker.variables)
        wait_for((docker.folder / "ready").exists)
        container = int((docker.folder / "pid").read_text())
        assert os.getsid(container) != os.getsid(
            process.pid
        )  # not reached by the terminal's Ctrl-C
        process.send_signal(sent)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 101
        assert (docker.folder / "signals").read_text() == f"{word}\n"
        assert "run the same command again:\n  runner local" in err

    def test_the_second_signal_kills_the_container(self, spawn, docker) -> None:
        docker.answer("job", JOB.format(on_signal=":"))
        process = spawn("local", **docker.variables)
        wait_for((docker.folder / "ready").exists)
        process.send_signal(signal.SIGINT)
        wait_for((docker.folder / "signals").exists)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        assert process.returncode == 130
        (call,) = docker.calls("compose", "run")
        assert docker.calls("kill")[-1] == ["kill", call[3]]  # no other container of the run

    @pytest.mark.parametrize(
        ("printed", "shown"), [("9\\n\\033[31mERROR\\033[0m: 9", "9\n"), ("9", ""), ("5", "5\n")]
    )
    def test_the_status_that_compose_prints_is_not_shown(
        self, spawn, docker, printed: str, shown: str
    ) -> None:
        docker.answer("job", f"printf 'a\\n{printed}\\n' >&2; exit 9\n")
        _, err = spawn("local", **docker.variables).communicate(timeout=60)
        assert f"\na\n{shown}the job failed" in err

    def test_a_container_whose_output_is_closed_is_followed_to_its_end(
        self, type_, local, docker
    ) -> None:
        docker.answer("job", "exit 1\n")  # as Compose does then
        docker.answer("wait", "printf 'abc\\tquickstart\\tExited (101) now\\n' >$FAKE_DOCKER/ps\n")
        assert type_("runner local").exit_code == 101


class TestDetached:
    @pytest.fixture
    def launched(self, docker, volume: Path) -> None:
        """Start the run ``warm``, whose container runs."""
        launch = LaunchHandle("warm", "local", "train", "abc", 100.0, detached=True)
        write_launch(volume / "warm", launch)
        docker.answer("ps", "abc\twarm\tUp 3 minutes\n")

    def test_detached_job_runs_in_the_engine(
        self, type_, local, docker, checkout, run_words
    ) -> None:
        docker.answer("ps", "old\twarm\tExited (101) 2 hours ago\n")
        result = type_("runner local warm --detach")
        assert (result.exit_code, result.stdout) == (0, "warm\n")
        assert "-d" in run_words()
        assert docker.calls("rm")[-1] == ["rm", "old"]
        launch = read_launch(checkout / "volumes" / "checkpoints" / "warm")
        assert (launch.id, launch.target, launch.detached) == (run_words()[4], "local", True)

    @pytest.mark.parametrize(
        ("ps", "status"),
        [
            ("abc\twarm\tUp 3 minutes (healthy)\n", "starting"),
            ("abc\twarm\tExited (0) 1 second ago\n", "finished"),
            ("abc\twarm\tExited (101) 1 second ago\n", "unfinished"),
            ("abc\twarm\tExited (137) 1 second ago\n", "lost"),
            ("", "lost"),
        ],
    )
    def test_a_detached_run_is_found_by_its_container(
        self, type_, local, docker, launched, ps: str, status: str
    ) -> None:
        docker.answer("ps", ps)
        (state,) = json.loads(type_("runner runs --json").stdout)
        assert (state["run"], state["status"]) == ("warm", status)

    def test_an_active_run_is_not_started_twice(self, type_, local, docker, launched) -> None:
        result = type_("runner local warm")
        assert (result.exit_code, docker.calls("compose", "run")) == (1, [])
        assert "runner stop warm" in result.stderr

    def test_stop_grants_the_grace_period(self, type_, local, docker, launched) -> None:
        assert type_("runner stop warm").exit_code == 0
        # No -t: the compose file sets the grace period.
        assert docker.calls("stop") == [["stop", "abc"]]

    def test_rm_removes_the_container_that_has_ended(self, type_, local, docker, volume) -> None:
        type_("runner local warm --detach")
        docker.answer("ps", "abc\twarm\tExited (0) 2 seconds ago\n")
        assert type_("runner rm warm -y").exit_code == 0
        assert not (volume / "warm").exists()
        assert docker.calls("rm")[-1] == ["rm", "abc"]

    def test_stop_finds_a_container_of_docker_compose_up(
        self, type_, local, docker, started_by_compose
    ) -> None:
        assert type_("runner stop warm").exit_code == 0
        assert docker.calls("stop") == [["stop", "0123456789abcd"]]

    def test_logs_without_a_file_are_the_containers_output(
        self, type_, local, docker, launched
    ) -> None:
        docker.answer("ps", "abc\twarm\tExited (1) 2 seconds ago\n")
        assert type_("runner logs warm").stdout == "from the container\n"


class TestServices:
    def test_shell(self, type_, local, docker) -> None:
        docker.answer("job", "exit 7\n")
        assert type_("runner shell -- python -V").exit_code == 7
        assert docker.calls("compose", "run")[0] == [
            "compose", "run", "--rm", "-T", "shell", "python", "-V",
        ]  # fmt: skip

    def test_program_next_to_an_active_run(self, type_, local, docker, started_by_compose) -> None:
        assert type_("runner shell warm -- nvidia-smi").exit_code == 3
        assert docker.calls("exec") == [
            ["exec", "-i", "0123456789abcd", "bash", ENTRYPOINT, "nvidia-smi"]
        ]


class TestUserCommand:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return make_folder(tmp_path / "nano")

    LINE = "runner local --dir ../nano --persist out=checkpoints --persist data=data"

    def test_the_folder_and_persisted_paths_are_mounted(
        self, type_, local, run_words, folder: Path, checkout: Path
    ) -> None:
        result = type_(f"{self.LINE} -- python train.py --lr=1")
        assert result.exit_code == 0, result.stderr
        words, volumes = run_words(), checkout / "volumes"
        mounts = [words[at + 1] for at, word in enumerate(words) if word == "-v"]
        assert mounts == [
            f"{folder}:{folder}:rw",
            f"{volumes}/checkpoints/nano/out:{folder}/out:rw",
            f"{volumes}/data/nano/data:{folder}/data:rw",
        ]
        at = words.index("job.user_command.supervisor")
        assert words[at - 4 : at] == ["train", "python", "-P", "-m"]
        assert words[words.index("--") :] == ["--", "python", "train.py", "--lr=1"]
        assert "gpt-runner.job=command" in words

    @pytest.mark.parametrize("target", ["", "sweep"])
    def test_program_that_the_image_lacks_is_refused_before_the_plan(
        self, type_, local, docker, checkout: Path, target: str
    ) -> None:
        docker.answer("no_program", "")
        sweep = "command: trane --lr={lr}\nspace: {grid: {lr: [1, 2]}}\nmetric: loss\n"
        (checkout / "sweep.yaml").write_text(sweep)
        result = type_(
            "runner sweep sweep.yaml --target local" if target else "runner local -- trane"
        )
        assert (result.exit_code, docker.calls("compose", "run")) == (2, [])
        assert "program 'trane' not found" in result.stderr
        assert type_("runner local --env PATH=/opt/bin -- trane").exit_code == 0

    def test_persisted_volumes_get_the_files_of_the_folder(
        self, type_, local, folder: Path, checkout: Path
    ) -> None:
        (folder / "data" / "letters" / "train.bin").write_text(
            "ignored by git, and there all the same"
        )
        type_(f"{self.LINE} -- python train.py")
        assert (folder / "out").is_dir()
        assert (checkout / "volumes" / "checkpoints" / "nano" / "out").is_dir()
        kept = checkout / "volumes" / "data" / "nano" / "data" / "letters"
        assert (kept / "prepare.py").read_text() == (
            folder / "data" / "letters" / "prepare.py"
        ).read_text()
        assert (kept / "train.bin").samefile(folder / "data" / "letters" / "train.bin")

    def test_the_setup_is_an_image_built_once(self, type_, local, docker, folder: Path) -> None:
        (folder / "requirements.txt").write_text("six\n")
        line = "runner local --dir ../nano --setup 'pip install a' -- python train.py"
        assert "extends the image first" in type_(line).stderr
        with tarfile.open(docker.folder / "layer") as context:
            sent = {name: context.extractfile(name).read().decode() for name in context.getnames()}
        assert "FROM gpt-runner\n" in sent["Dockerfile"]
        assert "RUN pip install -r requirements.txt\nRUN pip install a\n" in sent["Dockerfile"]
        assert sent["requirements.txt"] == "six\n"
        tag = (docker.folder / "image").read_text()
        assert tag.startswith("gpt-runner-setup:")
        assert "extends" not in type_(line).stderr
        assert len(docker.calls("build")) == 1
        (folder / "requirements.txt").write_text("six>=1\n")
        type_(line)
        assert (docker.folder / "image").read_text() != tag

    def test_without_a_setup_the_common_image_is_used(
        self, type_, local, docker, folder: Path
    ) -> None:
        type_("runner local --dir ../nano -- python train.py")
        assert (docker.folder / "image").read_text() == ""

    def test_a_setup_that_fails_starts_nothing(self, type_, local, docker, folder: Path) -> None:
        (docker.folder / "bad_setup").touch()
        result = type_(
            "runner local --dir ../nano --setup 'pip install nothing' -- python train.py"
        )
        assert (result.exit_code, "the setup failed" in result.stderr) == (1, True)
        assert docker.calls("compose", "run") == []


def test_a_newer_container_that_was_refused_does_not_hide_the_active_one(monkeypatch) -> None:
    newest_first = [Container("2", "warm", False, 1), Container("1", "warm", True, None)]
    monkeypatch.setattr(RunContainers, "all", lambda self, run=None: newest_first)
    assert RunContainers(None, None).newest()["warm"].id == "1"
