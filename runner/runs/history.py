"""A run read through its target, again and again: each look reads what is new.

``Reader("warm", target).look()`` is a History; runner.find_run says which target has the run. It raises OSError or
RunnerError where that does not answer.
"""

from __future__ import annotations

import json
import shlex
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

from job.run_record import RunRecord, parse_record
from runner.console import CliContext
from runner.errors import not_found
from runner.format import sanitize
from runner.runs import attempts as ledgers
from runner.runs.attempts import AttemptLog
from runner.runs.find import find_run
from runner.runs.metrics import Metrics
from runner.runs.store import LAUNCH_NAME as LAUNCH
from runner.runs.store import parse_launch
from runner.runs.tail_reader import GrowingFile
from runner.target import LaunchHandle, RunInfo, VolumeEntry, VolumeFiles

LOG_LINES = 200

LOG_BYTES = 64 * 1024  # of the log's end, where reading it begins

OUTPUT_LINES = 50

SMALL_FILE = 1024 * 1024  # bytes that are read of a record, a recipe, a sample


class RunFiles(Protocol):
    """What is asked of a target to read a run."""

    def state(self, run: str) -> RunInfo | None:
        """How it stands."""
        ...

    def output(self, run: str, lines: int) -> list[str]:
        """What it printed outside its log."""
        ...

    def files(self, volume: str) -> VolumeFiles:
        """A volume."""
        ...


@dataclass(frozen=True)
class Sample:
    """What the network wrote; ``step`` is the file's name, ``text`` has no control characters."""

    step: str
    text: str


@dataclass(frozen=True)
class History:
    """A run at one look. ``recipe`` maps each full key (``train.lr``) to its value;
    of an experiment it is the arguments, of a command the line."""

    state: RunInfo
    record: RunRecord | None = None
    launch: LaunchHandle | None = None
    recipe: dict[str, Any] = field(default_factory=dict)
    metrics: Metrics = field(default_factory=Metrics)
    ledger: AttemptLog = field(
        default_factory=AttemptLog
    )  # of a run in the cloud: its attempts and what each cost
    samples: tuple[Sample, ...] = ()  # the oldest first
    log: tuple[str, ...] = ()  # its end
    is_all: bool = True  # False: the metrics are long and were not read to their end yet

    @property
    def max_cost(self) -> float | None:
        """The cap in dollars; None where there is none."""
        return self.launch.target_options.max_cost if self.launch else None


class Reader:
    """Holds what was read of a run, so that a look reads only what was added. ``all_samples``: not only the
    newest one."""

    def __init__(self, run: str, target: RunFiles, all_samples: bool = False) -> None:
        self.run = run
        self.target = target
        self.files = target.files("checkpoints")
        self.all_samples = all_samples
        self._metrics_file = GrowingFile(self.files, f"{self.run}/metrics.jsonl")
        self._metrics = Metrics()
        self._log_file = GrowingFile(self.files, f"{self.run}/log.txt", LOG_BYTES)
        self._log: deque[str] = deque(maxlen=LOG_LINES)
        self._has_log = False
        self._recipe: dict[str, Any] = {}
        self._samples: dict[str, tuple[VolumeEntry, Sample]] = {}

    def look(self) -> History | None:
        """How the run stands now; None where it is no longer on this target."""
        state = self.target.state(
            self.run
        )  # asked first: what it wrote last is read after it ended
        if state is None:
            return None
        if not self._recipe:
            self._recipe = flat_recipe(self._small("recipe.yaml")) or asked_of(
                self._small("run.json")
            )
        record, launch = self._small("run.json"), self._small(LAUNCH)
        is_all = self._read_metrics()
        self._read_log()
        self._read_samples()
        return History(
            state,
            parse_record(record) if record else None,
            parse_launch(launch) if launch else None,
            self._recipe,
            self._metrics.copy(),
            ledgers.parse(self._small(ledgers.NAME)) if state.cost is not None else AttemptLog(),
            tuple(sample for _, sample in self._samples.values()),
            tuple(self._log),
            is_all,
        )

    def look_at_all(self) -> History | None:
        """As ``look``, and the metrics to their end."""
        history = self.look()
        while history is not None and not history.is_all:
            history = self.look()
        return history

    def _read_metrics(self) -> bool:
        piece = self._metrics_file.look()
        if piece.anew:
            self._metrics = Metrics()
        self._metrics.read(piece.lines)
        return piece.is_all

    def _read_log(self) -> None:
        piece = self._log_file.look()
        lines: Iterable[bytes | str] = piece.lines[-LOG_LINES:]
        if piece.anew or not self._has_log:
            self._log.clear()
        self._has_log |= bool(piece.lines)
        if not self._has_log:  # a job that keeps none, or died before it had one
            lines = self.target.output(self.run, OUTPUT_LINES)
        self._log.extend(sanitize(line) for line in lines)

    def _read_samples(self) -> None:
        try:
            found = [
                e for e in self.files.entries(f"{self.run}/samples") if e.path.endswith(".txt")
            ]
        except FileNotFoundError:
            return
        found.sort(key=lambda entry: entry.path)
        kept = {}
        for entry in found if self.all_samples else found[-1:]:
            before = self._samples.get(entry.path)
            if before is not None and before[0] == entry:
                kept[entry.path] = before
                continue
            name = entry.path.rpartition("/")[2].removesuffix(".txt")
            text = self._small(f"samples/{name}.txt")
            if text is not None:
                kept[entry.path] = (
                    entry,
                    Sample(sanitize(_step_of(name)), sanitize(text)),
                )
        self._samples = kept

    def _small(self, name: str) -> bytes | None:
        try:
            return self.files.read(f"{self.run}/{name}", 0, SMALL_FILE)
        except FileNotFoundError:
            return None


def _step_of(name: str) -> str:
    step = name.removeprefix("step_")
    return str(int(step)) if step.isdecimal() else name


def asked_of(record: bytes | None) -> dict[str, Any]:
    """What a job without a recipe was told, from its ``run.json``: an experiment's arguments, or a command."""
    try:
        tree = json.loads(record or b"{}")
        arguments, command = tree.get("arguments") or {}, tree.get("command") or []
        return {**arguments, **({"command": shlex.join(map(str, command))} if command else {})}
    except (ValueError, TypeError, AttributeError):
        return {}


def flat_recipe(text: bytes | None) -> dict[str, Any]:
    """A recipe's YAML as full key → value; empty where it can't be read. Not checked: it may be of another
    release."""
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
    """The runs as they are now. Raises RunnerError, exit code 102, where there is no such run."""
    places = [_place(cli, run) for run in runs]
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(lambda run, place: _read(run, place, all_samples), runs, places))


def _read(run: str, place: RunFiles, all_samples: bool) -> History:
    history = Reader(run, place, all_samples).look_at_all()
    if history is None:
        raise not_found(f"run '{run}' was removed; `runner runs` lists those that are there")
    return history


def _place(cli: CliContext, run: str) -> RunFiles:
    """Its target; where no target answers for it, the copy that was pulled from the cloud."""
    found = find_run(cli, run)
    if found.state.is_copy:
        cli.warn(f"the cloud does not answer for run '{run}'; read is the copy that was pulled")
    return found.source
