"""The target ``remote:BOX``: a job is a container of another machine's Docker engine.

Nothing is installed on the box. Code and folders become Docker volumes named after their content,
the volumes ``data``, ``checkpoints`` and ``cache`` are named volumes there, and the container
continues if the connection is lost.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from job.paths import VOLUMES, WORKSPACE
from runner.console import CliContext
from runner.errors import RunnerError, usage
from runner.plan import ImageState, Plan, PriorRun, TargetState
from runner.planning.command_plan import is_plain
from runner.planning.plan import make_plan
from runner.project import secret_values, volumes
from runner.request import CommandRequest, Request, TrainRequest
from runner.runs.attempts import LAUNCH_NAME
from runner.runs.find import local_state
from runner.runs.store import EXIT_NAME, PulledRuns, launch_json, parse_launch, state_named, states
from runner.runs.volume import recipe_of, record_of, step_of
from runner.signals import hold_signals
from runner.system import CompletedCommand
from runner.target import LaunchHandle, RunInfo, RunSource, Target, remember_box
from runner.targets.base import ContainerTarget, inspect_target, remote_environment, uploaded_folder
from runner.targets.docker import (
    ENTRYPOINT,
    RunContainers,
    check_image_program,
    container_name,
    ensure_setup_image,
    with_image_digest,
    with_setup_state,
)
from runner.targets.remote.connection import (
    SSH_FAILED,
    BoxSystem,
    BoxUnavailable,
    explain,
    follow_container,
)
from runner.targets.remote.files import (
    Agent,
    BoxFiles,
    Tree,
    copied_records,
    ensure_image,
    find_image,
    image_name,
    send_tree,
    trees_of,
)

GRACE_S = 120  # from SIGTERM to SIGKILL, as in docker-compose.yml
TREE_LABEL = "gpt-runner.tree"
GPU_OPTIONS = ("--gpus", "all", "--ipc", "host", "--ulimit", "memlock=-1")


class RemoteTarget(ContainerTarget):
    """Runs jobs as containers of a box."""

    poll_interval_s = 1.0
    has_remote_volumes = True
    system: BoxSystem

    def __init__(self, cli: CliContext, checkout: Path, box: str) -> None:
        self.cli, self.checkout, self.box = cli, checkout, box
        self.name = f"remote:{box}"
        self.volumes = volumes(checkout, {})
        self.system = BoxSystem(cli.environ, box, cli.is_terminal)
        # The label of the containers, whichever checkout started them; and the volumes' names.
        owner = cli.environ.get("GPT_RUNNER_VOLUMES") or "gpt-runner-"
        self.containers = RunContainers(self.system, Path(owner))
        self.names = {name: f"{owner}{name}" for name in (*VOLUMES, "store")}
        self.agent = Agent(self.system, lambda: self.any_image, self.names)
        self._files = {name: BoxFiles(self.agent, name) for name in VOLUMES}

    @cached_property
    def image(self) -> str:
        """Return the name of the image for this checkout."""
        return image_name(self.checkout, self.cli.environ)

    @cached_property
    def any_image(self) -> str | None:
        return find_image(self.system, self.image)

    def mirror(self) -> RunSource:
        """Return the pulled copies of the box's runs."""
        return BoxCopies(volumes(self.checkout, self.cli.environ).checkpoints, self.name)

    def inspect(self, request: Request) -> TargetState:
        """Return the state of the engine, the image, the run and the dataset on the box."""
        if self.system.engine.problem:
            raise RunnerError(explain(self.box, self.system.engine.problem))
        environment = remote_environment(self.volumes, self.names)
        state = inspect_target(
            self, self.cli, self.checkout, request, environment, lambda: self._find_run(request)
        )
        folder = None
        if request.command is not None:
            folder = uploaded_folder(request.command, self.checkout)
            folder = with_setup_state(self.system, self.image, request.command, folder)
        image = ImageState(self.image, self.any_image == self.image)
        return replace(state, image=image, folder=folder, gpus=self.gpus)

    def _find_run(self, request: Request) -> PriorRun:
        files, run, writes_run = self._files["checkpoints"], request.run, request.job.writes_run
        record, is_training = record_of(files, run), isinstance(request, TrainRequest)
        state = self.state(run) if writes_run or request.detach else None
        return PriorRun(
            record=record,
            recipe=recipe_of(files, run) if is_training else None,
            step=step_of(files, run),
            attempts=len(record.attempts) if record else 0,
            active=f"{state.status} on {self.name}" if state and state.alive else None,
            other=local_state(self.cli, self.checkout, run, record) if writes_run else None,
        )

    def check_program(self, request: CommandRequest) -> None:
        """Look the program up in the box's image. Raises RunnerError."""
        check_image_program(self.system, self.any_image or "", request)

    def plan(self, request: Request, state: TargetState) -> Plan:
        """Return ``make_plan`` without additions."""
        return make_plan(request, state)

    def start(self, plan: Plan) -> LaunchHandle:
        """Build the image, send the trees of files, then start the container."""
        image = self._prepare_image(plan)
        self.containers.remove_ended(plan.run)
        handle = LaunchHandle.of(plan, self.name, container_name(plan), location=self.box)
        if plan.records_launch:  # before the start: if this process ends, the run is found by it
            with suppress(FileNotFoundError, NotADirectoryError):
                self._files["checkpoints"].remove(f"{plan.run}/{EXIT_NAME}")
            self._files["checkpoints"].write(f"{plan.run}/{LAUNCH_NAME}", launch_json(handle))
        self._start_container(plan, handle.id, image)
        return handle

    def follow(self, started: LaunchHandle) -> int | None:
        """Print the job's output until it ends. Ctrl-C asks whether to stop it or to detach."""
        code = follow_container(self, started)
        files = self._files["checkpoints"]
        if code is not None and self.launched(started.run) == started:
            files.write(f"{started.run}/{EXIT_NAME}", f"{code}\n")
            names = {entry.path.rpartition("/")[2] for entry in files.listing(started.run)}
            if code and not names - {LAUNCH_NAME, EXIT_NAME}:  # it failed before it wrote anything
                files.remove(started.run, recursive=True)
        return code

    def remove(self, path: str) -> None:
        """Delete a folder of the checkpoints volume, and the containers of a run's folder."""
        self._files["checkpoints"].remove(path, recursive=True)
        self.containers.remove_ended(path)  # each one keeps a volume with its code

    def write_record(self, run: str, name: str, text: str) -> None:
        """Write a small file into the run's folder."""
        self._files["checkpoints"].write(f"{run}/{name}", text)

    def runs(self) -> Iterable[RunInfo]:
        """Return every run whose last attempt was on the box."""
        return self._states()

    def state(self, run: str) -> RunInfo | None:
        """Return the state of one run; None if its last attempt was not on the box."""
        return next(iter(self._states(run)), None)

    def _states(self, run: str | None = None) -> list[RunInfo]:
        """Return the states of all runs, or of one. Raises RunnerError if it is unreachable."""
        try:
            with copied_records(self.agent) as folder:
                probe = self.containers.prober(run)
                if run is None:
                    known: list[RunInfo | None] = list(states(folder, self.name, probe, self.name))
                else:
                    known = [state_named(run, folder, self.name, probe, self.name)]
                return [replace(state, folder="") for state in known if state is not None]
        except BoxUnavailable as error:  # so that the target is skipped
            raise RunnerError(str(error)) from error

    def launched(self, run: str) -> LaunchHandle | None:
        """Return the launch recorded in the run's folder."""
        try:
            return parse_launch(self._files["checkpoints"].read(f"{run}/{LAUNCH_NAME}"))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def files(self, volume: str) -> BoxFiles:
        """Return the volume on the box."""
        return self._files[volume]

    def block_files(self, volume: str, create: bool = False) -> BoxFiles:
        """Return the volume's files; ``create`` makes the image, without which it is not seen."""
        if create:
            self._ensure_image()
        return self._files[volume]

    def open_shell(
        self, request: CommandRequest, is_command: bool, idle_s: float, yes: bool
    ) -> int:
        """Run the command in a container, or open its shell or that of a lost connection."""
        is_checkout = is_plain(request, self.checkout)
        plan = self.plan(request, self.inspect(request))
        argv = request.command.argv if is_checkout else plan.process.command
        active = [] if is_command else self.containers.active(request.run)
        if active:
            self.cli.info(f"attaching to {request.run}")
            name = active[0].id
        else:
            name = container_name(plan)
            process = replace(plan.process, command=("sleep", "infinity"))
            folder = None if is_checkout else plan.folder
            waiting = replace(plan, process=process, folder=folder, detach=True)
            self._start_container(waiting, name, self._prepare_image(waiting))
        code = self._exec(name, argv)
        if code == SSH_FAILED:
            self.cli.info("the connection was lost; the same command attaches to the shell again")
        else:
            self.system.call(["docker", "rm", "--force", name])
        return code

    def container_state(self, name: str) -> tuple[bool, int | None]:
        """Return whether the container is alive, and its exit status once it has ended."""
        answer = self.system.call(
            ["docker", "inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", name]
        )
        if answer.code:
            return False, None
        status, code = answer.out.split()
        return (False, int(code)) if status in ("exited", "dead") else (True, None)

    def signal_container(self, name: str, signum: signal.Signals) -> None:
        """Send a signal to the job."""
        self.system.call(["docker", "kill", f"--signal={signum.name}", name])

    @cached_property
    def gpus(self) -> int:
        """Return the number of GPUs that containers can use."""
        return len(self.system.gpus) if "nvidia" in self.system.engine.runtimes else 0

    def free_bytes(self) -> int | None:
        """Return the free bytes on the disk of the engine; None if unknown."""
        root = self.system.call(["docker", "info", "--format", "{{.DockerRootDir}}"]).out.strip()
        columns = self.system.call(["df", "-Pk", root]).out.split()
        return int(columns[-3]) * 1024 if len(columns) > 6 and columns[-3].isdecimal() else None

    def _ensure_image(self) -> None:
        ensure_image(self.cli, self.system, self.checkout, self.image)
        self.any_image = self.image

    def _prepare_image(self, plan: Plan) -> str:
        self._ensure_image()
        remember_box(self.checkout, self.box)
        if plan.folder is not None and plan.folder.setup:
            return ensure_setup_image(self.system, self.cli, self.image, plan.folder, self.box)
        return self.image

    def _start_container(self, plan: Plan, name: str, image: str) -> None:
        trees = trees_of(plan)
        with_trees = Agent(
            self.system,
            lambda: self.image,
            {"store": self.names["store"], **{f"tree{n}": t.volume for n, t in enumerate(trees)}},
        )
        try:
            self._send(with_trees, trees)
            if not plan.detach:
                hold_signals()
            self._run(plan, name, image, trees)
        finally:
            with_trees.close()  # until now its container kept the trees from being removed

    def _send(self, agent: Agent, trees: Sequence[Tree]) -> None:
        for tree in trees:
            self.system.call(["docker", "volume", "create", "--label", TREE_LABEL, tree.volume])
        sent = sum(send_tree(BoxFiles(agent, f"tree{n}"), t) for n, t in enumerate(trees))
        self.cli.info(f"sent {sent / 1000:.0f} kB of code and files to {self.box}")
        if sent:  # trees of earlier versions; the engine keeps those of containers
            unused = self.system.call(
                ["docker", "volume", "ls", "-q", "-f", f"label={TREE_LABEL}", "-f", "dangling=true"]
            ).out.split()
            if unused:
                self.system.call(["docker", "volume", "rm", *unused])
            agent.request("expire")

    def _mounts(self, trees: Sequence[Tree]) -> list[str]:
        pairs = [f"{self.names[name]}:/vol/{name}" for name in VOLUMES]
        pairs += [f"{tree.volume}:{tree.container_path}:ro" for tree in trees]
        options = [word for pair in pairs for word in ("-v", pair)]
        gpus = list(GPU_OPTIONS) if self.gpus else []
        return [*options, *gpus, "--init", "--shm-size", "2g", "--workdir", WORKSPACE]

    def _run(self, plan: Plan, name: str, image: str, trees: Sequence[Tree]) -> None:
        secrets = secret_values(plan.process.secrets, self.cli.environ, self.checkout)
        variables = {**dict(plan.process.environment), **secrets}
        variables = with_image_digest(variables, self.system, self.image)
        for variable, value in variables.items():
            if "\n" in value:
                raise usage(f"{variable} has several lines, which Docker can't pass on")
        text = "".join(f"{variable}={value}\n" for variable, value in variables.items())
        # Values go over stdin: a command line can be read by every user of the box.
        command = ["docker", "run", "--detach", "--name", name, "--env-file", "/dev/stdin"]
        command += ["--stop-timeout", str(GRACE_S), *self.containers.labels(plan.run, plan.job)]
        command += [*self._mounts(trees), image, "bash", ENTRYPOINT, *plan.process.command]

        def start() -> CompletedCommand:
            try:
                return self.system.send(command, text.encode())
            except BoxUnavailable:  # a container of that name: only the answer was lost
                if self.container_state(name) != (False, None):
                    return CompletedCommand(0, "", "")
                raise

        answer = self.system.retry(start)
        if answer.code:
            self.system.call(["docker", "rm", "--force", name])
            raise RunnerError(explain(self.box, answer.err))


class BoxCopies(PulledRuns):
    """The pulled copies of a box's runs."""

    def state(self, run: str) -> RunInfo | None:
        """Return the state of the run when it was pulled; None if it was not pulled."""
        state = state_named(run, self.checkpoints, self.target, lambda _: (False, None))
        if state is None:
            return None
        return replace(state, is_copy=True, alive=False, last_seen=state.ended or state.started)


def open_target(cli: CliContext, checkout: Path, boxes: str) -> Target:
    """Return the target for a box, or for several separated by commas."""
    opened = [RemoteTarget(cli, checkout, box) for box in boxes.split(",")]
    if len(opened) == 1:
        return opened[0]
    from runner.targets.remote.pool import BoxPool

    return BoxPool(opened)
