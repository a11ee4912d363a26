"""Remote boxes, tested without an engine: remedies of errors, and the choice of a box."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from runner.system import System
from runner.target import LocalVolume, remember_box
from runner.targets.docker import login_command, transfer_image
from runner.targets.remote.pool import BoxPool
from runner.targets.remote.target import RemoteTarget

ENGINE = "at unix:///var/run/docker.sock"
ERRORS = {
    "ssh: Could not resolve hostname lab: Name or service not known": (255, "~/.ssh/config"),
    "Host key verification failed.": (255, "`ssh lab` shows the key"),
    "me@lab: Permission denied (publickey).": (255, "ssh-copy-id lab"),
    "ssh: connect to host lab port 22: Connection refused": (255, "`ssh lab docker info`"),
    f"permission denied trying to connect to the Docker daemon socket {ENGINE}": (1, "usermod -aG"),
    f"Cannot connect to the Docker daemon {ENGINE}. Is it running?": (1, "systemctl start docker"),
    "bash: line 1: docker: command not found": (127, "install Docker"),
    "write /abc/layer.tar: no space left on device": (1, "docker system prune"),
}


@pytest.fixture
def calls(cli, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Replace ssh with a program that fails with the test's error, and return its log."""
    error, (status, _) = request.param
    log, program = tmp_path / "calls", tmp_path / "bin" / "ssh"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho call >> {log}\necho '{error}' >&2\nexit {status}\n")
    program.chmod(0o755)
    cli.environ = {**cli.environ, "PATH": f"{program.parent}:/usr/bin:/bin"}
    return log


@pytest.mark.parametrize(
    ("calls", "remedy"), [(item, item[1][1]) for item in ERRORS.items()], indirect=["calls"]
)
def test_an_error_of_a_box_has_a_remedy(type_, calls: Path, remedy: str, request) -> None:
    for line in ("runner cache ls --target remote:lab", "runner remote lab quickstart --dry-run"):
        result = type_(line)
        assert (result.exit_code, len(result.stderr.splitlines())) == (1, 1)
        assert result.stderr.startswith("error: lab: ")
        assert remedy in result.stderr
        if "255" in str(request.node.callspec.params["calls"]):
            assert calls.read_text() == "call\n"  # no retry, no second call
        calls.unlink()


@pytest.mark.parametrize(
    ("answer", "machine", "remedy"),
    [
        ("denied: requested access to the resource is denied", "", "`docker login ghcr.io`"),
        ("Head https://ghcr.io: no basic auth credentials", "lab", "`ssh -t lab docker login ghcr"),
        ("dial tcp 127.0.0.1:1: connect: connection refused", "", "check the image's name"),
        ("", "", ""),
    ],
)
def test_a_registry_that_is_out_of_reach_asks_for_no_login(
    tmp_path: Path, answer: str, machine: str, remedy: str
) -> None:
    docker = tmp_path / "docker"
    docker.write_text(f"#!/bin/sh\necho '{answer}' >&2\n[ -z '{answer}' ]\n")
    docker.chmod(0o755)
    system = System({"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    found = transfer_image(system, "push", "ghcr.io/me/gpt:v1", machine)
    assert remedy in found
    assert bool(found) == bool(answer)


@pytest.mark.parametrize(
    ("image", "command"),
    [
        ("me/gpt:v1", "docker login"),
        ("gpt", "docker login"),
        ("ghcr.io/me/gpt", "docker login ghcr.io"),
        ("localhost/gpt", "docker login localhost"),
        ("127.0.0.1:5000/me/gpt:v1", "docker login 127.0.0.1:5000"),
    ],
)
def test_the_login_command_names_the_registry(image: str, command: str) -> None:
    assert login_command(image) == command


@pytest.mark.parametrize("calls", [("Host key verification failed.", (255, ""))], indirect=True)
def test_doctor_checks_the_boxes_that_were_used(type_, calls: Path, checkout: Path) -> None:
    remember_box(checkout, "lab")
    report = type_("runner doctor").stdout
    assert "remote:lab: Host key verification failed" in report
    assert "`ssh lab` shows the key and how to accept it" in report


def test_a_deleted_run_leaves_no_container(cli, checkout: Path, tmp_path: Path) -> None:
    log, program = tmp_path / "calls", tmp_path / "bin" / "ssh"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\nfor last; do true; done\necho "$last" >> {log}\n'
        'case "$last" in *" ps "*) printf "abc\\twarm\\tExited (0) 2 seconds ago\\n";; esac\n'
    )
    program.chmod(0o755)
    cli.environ = {**cli.environ, "PATH": f"{program.parent}:/usr/bin:/bin"}
    target = RemoteTarget(cli, checkout, "lab")
    removed: list[str] = []
    files = SimpleNamespace(remove=lambda path, recursive: removed.append(path))
    target._files["checkpoints"] = files  # type: ignore[assignment]
    target.remove("warm")
    assert removed == ["warm"]
    listing, removal = log.read_text().splitlines()
    assert "label=gpt-runner.run=warm" in listing
    assert removal == "docker rm abc"


def test_a_run_goes_to_the_box_with_fewest_active_runs() -> None:
    alive: dict[str, bool] = {}

    def box(name: str) -> SimpleNamespace:
        return SimpleNamespace(
            box=name,
            volumes=None,
            launched=lambda run: None,
            inspect=lambda request: name,
            state=lambda run: SimpleNamespace(alive=alive[run]),
        )

    pool = BoxPool([box("a"), box("b")])  # type: ignore[list-item]

    def start(run: str) -> object:
        alive[run] = True
        return pool.inspect(SimpleNamespace(run=run, job=SimpleNamespace(writes_run=True)))  # type: ignore[arg-type]

    assert [start("1"), start("2"), start("3")] == ["a", "b", "a"]
    alive["1"] = alive["3"] = False
    assert not pool.state("1").alive  # type: ignore[union-attr]
    assert not pool.state("3").alive  # type: ignore[union-attr]
    assert [start("4"), start("5"), start("6")] == ["a", "a", "b"]


def test_the_runs_of_all_boxes_are_sorted_and_a_box_without_an_image_has_none(
    tmp_path: Path,
) -> None:
    for name in ("a/zeta", "b/alpha"):
        (tmp_path / name).mkdir(parents=True)
    volumes = [LocalVolume(tmp_path / name) for name in ("a", "new", "b")]
    boxes = [SimpleNamespace(box="", volumes=None, files=lambda _, v=v: v) for v in volumes]
    pool = BoxPool(boxes)  # type: ignore[arg-type]
    assert [entry.path for entry in pool.files("checkpoints").entries()] == ["alpha", "zeta"]
