"""A run read through its target, again and again: each poll reads only what is new.

``HistoryReader("warm", target).poll()`` returns a History. It raises OSError or RunnerError if the
target does not answer.
"""

from __future__ import annotations

import json
import shlex
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

from job.format import sanitize
from job.run_record import RunRecord, parse_record
from runner.console import CliContext
from runner.errors import not_found
from runner.runs import attempts
from runner.runs.attempts import AttemptLog
from runner.runs.find import find_run
from runner.runs.metrics import Metrics
from runner.runs.store import LAUNCH_NAME, parse_launch
from runner.runs.tail_reader import TailReader
from runner.target import LaunchHandle, RunInfo, RunSource, VolumeEntry, VolumeFiles

LOG_LINES = 200
LOG_BYTES = 64 * 1024  # of the end of the log, where reading starts
OUTPUT_LINES = 50
MAX_FILE_BYTES = 1024 * 1024  # of a record, a recipe, a sample
READERS = 4


class RunFiles(Protocol):
    """The part of `RunSource` that reads one run."""

    def state(self, run: str) -> RunInfo | None:
        """Return the state of the run."""
        ...

    def output(self, run: str, lines: int) -> list[str]:
        """Return the last lines that the job printed outside its log."""
        ...

    def files(self, volume: str) -> VolumeFiles:
        """Return the volume."""
        ...


@dataclass(frozen=True)
class Sample:
    """Text that the model sampled, without control characters; ``step`` is from the file's name."""

    step: str
    text: str


@dataclass(frozen=True)
class History:
    """A run as one poll saw it.

    ``recipe`` maps full keys (``train.lr``) to values. An experiment has its arguments there, a
    command its command line.
    """

    state: RunInfo
    record: RunRecord | None = None
    launch: LaunchHandle | None = None
    recipe: dict[str, Any] = field(default_factory=dict)
    metrics: Metrics = field(default_factory=Metrics)
    attempt_log: AttemptLog = field(default_factory=AttemptLog)  # with the cost of each attempt
    samples: tuple[Sample, ...] = ()  # oldest first
    log: tuple[str, ...] = ()  # its last lines
    is_complete: bool = True  # False if the metrics are long and not read to the end yet

    @property
    def max_cost(self) -> float | None:
        """Return the limit in US dollars; None without one."""
        return self.launch.target_options.max_cost if self.launch else None


class HistoryReader:
    """Reads one run. ``all_samples`` reads every sample, not only the newest."""

    def __init__(self, run: str, source: RunFiles, all_samples: bool = False) -> None:
        self.run = run
        self.source = source
        self.files = source.files("checkpoints")
        self.all_samples = all_samples
        self._metrics_file = TailReader(self.files, f"{self.run}/metrics.jsonl")
        self._metrics = Metrics()
        self._log_file = TailReader(self.files, f"{self.run}/log.txt", LOG_BYTES)
        self._log: deque[str] = deque(maxlen=LOG_LINES)
        self._has_log = False
        self._recipe: dict[str, Any] = {}
        self._samples: dict[str, tuple[VolumeEntry, Sample]] = {}

    def poll(self) -> History | None:
        """Return the run's present state; None if it is no longer on its target."""
        # Before the files, so that the last lines are read after the end.
        state = self.source.state(self.run)
        if state is None:
            return None
        record, launch = self._read("run.json"), self._read(LAUNCH_NAME)
        if not self._recipe:
            self._recipe = flatten_recipe(self._read("recipe.yaml")) or recorded_arguments(record)
        is_complete = self._read_metrics()
        self._read_log()
        self._read_samples()
        return History(
            state,
            parse_record(record) if record else None,
            parse_launch(launch) if launch else None,
            self._recipe,
            self._metrics.copy(),
            attempts.parse_log(self._read(attempts.NAME))
            if state.cost is not None
            else AttemptLog(),
            tuple(sample for _, sample in self._samples.values()),
            tuple(self._log),
            is_complete,
        )

    def poll_fully(self) -> History | None:
        """Poll until the metrics are read to the end."""
        history = self.poll()
        while history is not None and not history.is_complete:
            history = self.poll()
        return history

    def _read_metrics(self) -> bool:
        new = self._metrics_file.poll()
        if new.restarted:
            self._metrics = Metrics()
        self._metrics.read(new.lines)
        return new.is_complete

    def _read_log(self) -> None:
        new = self._log_file.poll()
        lines: Iterable[bytes | str] = new.lines[-LOG_LINES:]
        if new.restarted or not self._has_log:
            self._log.clear()
        self._has_log |= bool(new.lines)
        if not self._has_log:  # the job keeps none, or failed before its first line
            lines = self.source.output(self.run, OUTPUT_LINES)
        self._log.extend(sanitize(line) for line in lines)

    def _read_samples(self) -> None:
        try:
            entries = list(self.files.entries(f"{self.run}/samples"))
        except FileNotFoundError:
            return
        texts = sorted((e for e in entries if e.path.endswith(".txt")), key=lambda e: e.path)
        samples = {}
        for entry in texts if self.all_samples else texts[-1:]:
            known = self._samples.get(entry.path)
            if known is not None and known[0] == entry:
                samples[entry.path] = known
                continue
            name = entry.path.rpartition("/")[2].removesuffix(".txt")
            text = self._read(f"samples/{name}.txt")
            if text is not None:
                sample = Sample(sanitize(_step_of(name)), sanitize(text))
                samples[entry.path] = (entry, sample)
        self._samples = samples

    def _read(self, name: str) -> bytes | None:
        try:
            return self.files.read(f"{self.run}/{name}", 0, MAX_FILE_BYTES)
        except FileNotFoundError:
            return None


def _step_of(name: str) -> str:
    step = name.removeprefix("step_")
    return str(int(step)) if step.isdecimal() else name


def recorded_arguments(record: bytes | None) -> dict[str, Any]:
    """Return an experiment's arguments or a command's command line from the run's record."""
    try:
        tree = json.loads(record or b"{}")
        arguments, command = tree.get("arguments") or {}, tree.get("command") or []
        return {**arguments, **({"command": shlex.join(map(str, command))} if command else {})}
    except (ValueError, TypeError, AttributeError):
        return {}


def flatten_recipe(text: bytes | None) -> dict[str, Any]:
    """Return a recipe's full keys and values.

    {} if it is damaged. Keys of other versions are kept.
    """
    import yaml

    try:
        tree = yaml.safe_load(text or b"")
    except (yaml.YAMLError, UnicodeDecodeError):
        return {}
    flat: dict[str, Any] = {}
    for name, value in tree.items() if isinstance(tree, dict) else ():
        if isinstance(value, dict):
            flat.update({f"{name}.{leaf}": inner for leaf, inner in value.items()})
        else:
            flat[str(name)] = value
    return flat


def read_runs(cli: CliContext, runs: Sequence[str], all_samples: bool = False) -> list[History]:
    """Return the present state of the runs.

    Raises RunnerError, exit code 102, for a missing run.
    """
    sources = [_source_of(cli, run) for run in runs]
    with ThreadPoolExecutor(READERS) as pool:
        return list(
            pool.map(lambda run, source: _read_fully(run, source, all_samples), runs, sources)
        )


def _read_fully(run: str, source: RunSource, all_samples: bool) -> History:
    history = HistoryReader(run, source, all_samples).poll_fully()
    if history is None:
        raise not_found(f"run '{run}' was removed; `runner runs` lists the others")
    return history


def _source_of(cli: CliContext, run: str) -> RunSource:
    found = find_run(cli, run)
    if found.state.is_copy:
        cli.warn(f"{found.target.name} does not answer for run '{run}'; reading the pulled copy")
    return found.source
