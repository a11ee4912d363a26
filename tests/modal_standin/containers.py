"""Containers: start them for waiting inputs, hand out inputs, and end them as Modal does."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from grpclib import GRPCError, Status
from modal_proto import api_pb2

from .calls import PENDING, RUNNING, Calls, Input
from .container_files import ContainerFiles
from .executor import Executor
from .functions import Function, Functions
from .ids import new_id
from .logs import STDERR, STDOUT, SYSTEM, Logs
from .pulse import Pulse
from .settings import Settings
from .tasks import Cluster, Task

Result = api_pb2.GenericResult
CANCEL_GRACE_S = 5.0  # seconds between InputCancellation and SIGKILL


class Containers:
    """The scheduler. `tasks` has all containers, including ended ones, in starting order."""

    def __init__(
        self,
        settings: Settings,
        functions: Functions,
        calls: Calls,
        logs: Logs,
        files: ContainerFiles,
        executor: Executor,
    ) -> None:
        self._settings = settings
        self._functions = functions
        self._calls = calls
        self._logs = logs
        self._files = files
        self._executor = executor
        self._queues: dict[str, deque[Input]] = {}
        self._timers: set[asyncio.Task[None]] = set()
        self.pulse = Pulse()
        self.tasks: dict[str, Task] = {}
        self.on_ended: Callable[[Task], None] = lambda task: None
        calls.on_queued = self.queue
        calls.on_cancel = self._cancel

    # --- scheduling

    def queue(self, item: Input, delay: float) -> None:
        """Queue an input to run after `delay` seconds; inputs that ran before go first."""
        if delay > 0:
            self._later(delay, lambda: self.queue(item, 0.0))
            return
        if item.state != PENDING:
            return
        waiting = self._queues.setdefault(item.function_id, deque())
        waiting.appendleft(item) if item.tasks else waiting.append(item)
        self.schedule(self._functions.get(item.function_id))

    def schedule(self, function: Function) -> None:
        """Start a container for each input that has no free container."""
        waiting = self._queues.get(function.id, deque())
        alive = [t for t in self.tasks.values() if t.function is function and t.alive]
        idle = [t for t in alive if not t.fate and t.rank == 0 and not t.inputs and not t.used_up]
        for _ in range(len(waiting) - len(idle)):
            if len(alive) + function.cluster_size > max(
                function.max_containers, function.cluster_size
            ):
                break
            alive += self._start(function)
        self.pulse.beat()

    def start_server(self, function: Function) -> Task:
        """Start a container that gets connections instead of inputs."""
        return self._start(function)[0]

    def _start(self, function: Function) -> list[Task]:
        cluster = Cluster(new_id("cu")) if function.cluster_size > 1 else None
        started = []
        for rank in range(function.cluster_size):
            task = Task(new_id("ta"), function, rank=rank, cluster=cluster)
            if cluster is not None:
                cluster.tasks.append(task)
            self.tasks[task.id] = task
            task.work = asyncio.get_running_loop().create_task(self._run(task))
            started.append(task)
        return started

    async def _run(self, task: Task) -> None:
        failure = ""
        try:
            task.container = container = await asyncio.to_thread(self._files.prepare, task)
            task.running = await self._executor.start(container)
            self._later(task.function.startup_timeout, lambda: self._check_ready(task))
            readers = [
                asyncio.ensure_future(self._read(task, task.running.stdout, STDOUT)),
                asyncio.ensure_future(self._read(task, task.running.stderr, STDERR)),
            ]
            if task.fate:  # ended before it started
                await task.running.kill()
            task.exit_code = await task.running.wait()
            await asyncio.wait(readers, timeout=5)
        except Exception as error:
            failure = f"the stand-in could not run the container: {error!r}"
            self._log(task, SYSTEM, failure + "\n")
        self._end(task, failure)
        await asyncio.to_thread(self._files.discard, task.id)

    async def _read(self, task: Task, stream: asyncio.StreamReader, source: int) -> None:
        while line := await _line(stream):
            self._log(task, source, line.decode("utf-8", "replace"))

    def _end(self, task: Task, failure: str) -> None:
        task.ended_at = time.time()
        task.ended.set()
        owned = [
            i for i in task.inputs.values() if i.state == RUNNING and i.tasks[-1] == task.leader.id
        ]
        task.inputs.clear()
        if owned or task.fate:
            for (
                other
            ) in task.members:  # a container of a cluster cannot continue without the others
                self.end(other, task.fate or "crashed")
        for item in owned:
            if task.fate in ("preempted", "crashed"):
                self._log(
                    task, SYSTEM, "Runner terminated, in-progress inputs will be re-scheduled\n"
                )
                self._calls.put_back(item)
            else:
                self._calls.fail(item, self._verdict(task, failure))
        broken = task.result is not None or task.exit_code != 0
        if broken and not task.given and not task.fate and task.rank == 0:
            waiting = self._queues.get(task.function.id)
            if (
                waiting
            ):  # a container that died before its first request: its input must not wait forever
                item = waiting.popleft()
                item.tasks.append(task.id)
                item.state = RUNNING
                self._calls.fail(item, self._verdict(task, failure))
        self.schedule(task.function)
        self.on_ended(task)

    def _verdict(self, task: Task, failure: str) -> Result:
        if task.result is not None:
            return task.result
        text = failure or f"Runner failed with exit code: {task.exit_code}"
        return Result(
            status=Result.GENERIC_STATUS_FAILURE, exception=text, exitcode=task.exit_code or 0
        )

    # --- handing out inputs

    def get(self, task_id: str) -> Task:
        """Return the caller's container. Raises FAILED_PRECONDITION for other clients."""
        task = self.tasks.get(task_id)
        if task is None:
            raise GRPCError(Status.FAILED_PRECONDITION, "only a container can ask for this")
        return task

    def next_input(self, task: Task) -> Input | None:
        """Return the next input for the container, if there is one."""
        if task.rank > 0:  # follows the first of its cluster, which may be done earlier
            return task.leader.latest if task.given < task.leader.given else None
        waiting = self._queues.get(task.function.id, deque())
        while waiting:
            item = waiting.popleft()
            if item.state == PENDING:
                return item
        return None

    def give(self, task: Task, item: Input) -> api_pb2.FunctionGetInputsItem:
        task.inputs[item.id] = task.latest = item
        task.given += 1
        if task.rank > 0:
            return self._calls.describe(item)
        self._calls.take(item, task.id)
        attempt = len(item.tasks)
        self._later(task.function.timeout, lambda: self._check_time(task, item, attempt))
        self.pulse.beat()
        return self._calls.describe(item)

    # --- ending

    def end(self, task: Task, fate: str, grace: float | None = None) -> None:
        """End a container: SIGINT, `grace` seconds, SIGKILL. A crash sends no SIGINT."""
        if task.fate or not task.alive:
            return
        task.fate = fate
        task.cancelled.clear()
        self.pulse.beat()
        loop = asyncio.get_running_loop()
        waited = self._settings.grace if grace is None else grace
        self._keep(loop.create_task(self._interrupt(task, 0.0 if fate == "crashed" else waited)))

    async def _interrupt(self, task: Task, grace: float) -> None:
        if task.running is None:
            return
        if grace > 0:
            with suppress(ProcessLookupError):
                task.running.interrupt()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(task.ended.wait(), grace)
        if task.alive:
            await task.running.kill()

    def _cancel(self, item: Input, terminate: bool) -> None:
        for task in self.tasks.values():
            if task.alive and item.id in task.inputs:
                if terminate:
                    self.end(task, "cancelled")
                else:
                    self._interrupt_input(task, item)

    def _interrupt_input(self, task: Task, item: Input) -> None:
        """Raise InputCancellation in the body, and kill the container if it does not return."""
        task.cancelled.append(item.id)
        self.pulse.beat()

        def give_up() -> None:
            if item.id in task.inputs:
                self.end(task, "cancelled", grace=0.0)

        self._later(CANCEL_GRACE_S, give_up)

    def _check_time(self, task: Task, item: Input, attempt: int) -> None:
        if item.state != RUNNING or len(item.tasks) != attempt:
            return
        text = f"Task's current input {item.id} hit its timeout of {task.function.timeout}s"
        self._log(task, SYSTEM, text + "\n")
        self._calls.fail(item, Result(status=Result.GENERIC_STATUS_TIMEOUT, exception=text))
        for member in task.members:
            self._interrupt_input(member, item)

    def _check_ready(self, task: Task) -> None:
        if task.alive and not task.ready:
            text = f"Container did not start within {task.function.startup_timeout}s"
            task.result = Result(status=Result.GENERIC_STATUS_INIT_FAILURE, exception=text)
            if task.running is not None:
                self._keep(asyncio.ensure_future(task.running.kill()))

    async def stop_app(self, app_id: str) -> None:
        """End all containers of an app and wait until they are gone."""
        doomed = [t for t in self.tasks.values() if t.function.app_id == app_id and t.alive]
        for task in doomed:
            self.end(task, "stopped")
        for task in doomed:
            await task.ended.wait()

    async def shut_down(self) -> None:
        """Kill all containers when the stand-in ends."""
        for timer in list(self._timers):
            timer.cancel()
        for task in [t for t in self.tasks.values() if t.alive]:
            task.fate = task.fate or "stopped"
            if task.running is not None:
                await task.running.kill()
            if task.work is not None:
                await asyncio.wait([task.work], timeout=10)

    # --- helpers

    def _log(self, task: Task, source: int, text: str) -> None:
        item = next(
            iter(task.inputs.values()), task.latest
        )  # the last lines may arrive after the output
        if source == SYSTEM:  # lines of Modal itself have no call
            item = None
        self._logs.add(
            app=task.function.app_id,
            function=task.function.id,
            call=item.call_id if item else "",
            input=item.id if item else "",
            task=task.id,
            source=source,
            text=text,
        )

    def _later(self, delay: float, action: Callable[[], object]) -> None:
        async def wait() -> None:
            await asyncio.sleep(delay)
            action()

        self._keep(asyncio.get_running_loop().create_task(wait()))

    def _keep(self, timer: asyncio.Task[None] | asyncio.Future[None]) -> None:
        self._timers.add(timer)  # type: ignore[arg-type]
        timer.add_done_callback(self._timers.discard)


async def _line(stream: asyncio.StreamReader) -> bytes:
    """Read a line, or part of it if it is very long or the stream ends."""
    try:
        return await stream.readuntil(b"\n")
    except asyncio.IncompleteReadError as end:
        return end.partial
    except asyncio.LimitOverrunError as overrun:
        return await stream.readexactly(overrun.consumed)
