"""Read a run through its target; each poll reads only new data.

``HistoryReader("my_run", target).poll()`` returns a History. Raises OSError or RunnerError if the
target does not answer. ``results`` returns the results of the run by name. ``TailReader`` reads a
file that grows.
"""

from __future__ import annotations

import shlex
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from job.format import byte_size, dollars, duration, number, one_line, sanitize
from job.run_record import RunRecord, parse_record
from job.typed_json import read_object
from runner.console import CliContext
from runner.errors import NoSuchRun
from runner.runs import attempts
from runner.runs.attempts import LAUNCH_NAME, AttemptLog
from runner.runs.find import find_run
from runner.runs.metrics import Metrics, downsample
from runner.runs.store import parse_launch
from runner.runs.volume import listing
from runner.target import LaunchHandle, RunInfo, RunSource, VolumeEntry, VolumeFiles

LOG_LINES = 200
LOG_BYTES = 64 * 1024  # of the end of the log, where reading starts
OUTPUT_LINES = 50
MAX_FILE_BYTES = 1024 * 1024  # of a record, a recipe, a sample
READERS = 4

# A resumed run rewrites its metrics without the lines after its checkpoint, and the new file may
# have any length. So the last bytes of each poll are read again and compared.
OVERLAP_BYTES = 256

MAX_POLL_BYTES = 4 * 1024 * 1024  # per poll, so that a long file does not freeze the screen


@dataclass(frozen=True)
class NewLines:
    """Whole lines of one poll."""

    lines: tuple[bytes, ...] = ()
    restarted: bool = False  # the file was rewritten, and these are its first lines
    is_complete: bool = True  # the end of the file was reached


class TailReader:
    """Read ``path`` from its start, or only its last ``max_bytes``."""

    def __init__(self, files: VolumeFiles, path: str, max_bytes: int | None = None) -> None:
        self.files = files
        self.path = path
        self.max_bytes = max_bytes
        self._reset()

    def _reset(self) -> None:
        self._offset: int | None = None if self.max_bytes is not None else 0
        self._overlap = b""  # the bytes before the offset
        self._partial_line = b""

    def poll(self) -> NewLines:
        """Return the whole lines added since the last poll.

        Raises OSError if the volume does not answer; the next poll then returns them.
        """
        restarted = False
        text = self._read()
        if not text.startswith(self._overlap):
            self._reset()
            restarted = True
            text = self._read()
        new = text[len(self._overlap) :]
        if not new:
            return NewLines(restarted=restarted)
        is_complete = len(text) < len(self._overlap) + MAX_POLL_BYTES
        self._offset = (self._offset or 0) + len(new)
        self._overlap = (self._overlap + new)[-OVERLAP_BYTES:]
        *lines, self._partial_line = (self._partial_line + new).split(b"\n")
        return NewLines(tuple(lines), restarted, is_complete)

    def _read(self) -> bytes:
        """Return the overlap and at most MAX_POLL_BYTES after it."""
        try:
            if self._offset is None:
                size = self.files.size(self.path) or 0
                self._offset = max(0, size - (self.max_bytes or 0))
            start = self._offset - len(self._overlap)
            return self.files.read(self.path, start, len(self._overlap) + MAX_POLL_BYTES)
        except FileNotFoundError:
            return b""


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

    def __init__(self, run: str, source: RunSource, all_samples: bool = False) -> None:
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
        entries = listing(self.files, f"{self.run}/samples")
        texts = [entry for entry in entries if entry.path.endswith(".txt")]  # sorted by name
        samples = {}
        for entry in texts if self.all_samples else texts[-1:]:
            known = self._samples.get(entry.path)
            if known is not None and known[0] == entry:
                samples[entry.path] = known
                continue
            name = entry.path.rpartition("/")[2].removesuffix(".txt")
            text = self._read(f"samples/{name}.txt")
            if text is not None:
                step = name.removeprefix("step_")
                step = str(int(step)) if step.isdecimal() else name
                sample = Sample(sanitize(step), sanitize(text))
                samples[entry.path] = (entry, sample)
        self._samples = samples

    def _read(self, name: str) -> bytes | None:
        try:
            return self.files.read(f"{self.run}/{name}", 0, MAX_FILE_BYTES)
        except FileNotFoundError:
            return None


def recorded_arguments(record: bytes | None) -> dict[str, Any]:
    """Return an experiment's arguments or a command's command line from the run's record."""
    try:
        tree = read_object(record or b"{}")
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

    Raises RunnerError, exit status 102, for a missing run.
    """
    sources = [_source_of(cli, run) for run in runs]
    with ThreadPoolExecutor(READERS) as pool:
        return list(
            pool.map(lambda run, source: read_fully(run, source, all_samples), runs, sources)
        )


def read_fully(run: str, source: RunSource, all_samples: bool) -> History:
    """Return the present state of a run. Raises RunnerError, exit status 102, if it was removed."""
    history = HistoryReader(run, source, all_samples).poll_fully()
    if history is None:
        raise run_removed(run)
    return history


def run_removed(run: str) -> NoSuchRun:
    """Return the error for a run that no target has any longer."""
    return NoSuchRun(run, f"run '{run}' was removed; `runner runs` lists the others")


def _source_of(cli: CliContext, run: str) -> RunSource:
    resolved = find_run(cli, run)
    if resolved.state.is_copy:
        cli.warn(f"{resolved.target.name} does not answer for run '{run}'; reading the pulled copy")
    return resolved.source


MAX_RETURNED = 20  # values of an experiment's result that are shown


def results(history: History) -> dict[str, Any]:
    """Return the unrounded results; None for unknown values.

    The speed is the average over all of the training, in tokens per second.
    """
    state, metrics, record = history.state, history.metrics, history.record
    attempt = record.attempts[-1] if record and record.attempts else None
    tokens = metrics.tokens or (float(record.tokens) if record else 0.0)
    seconds = record.train_seconds if record and record.train_seconds else metrics.seconds
    git = record.git if record else {}
    recorded_best = record.best_val_loss if record else None
    mfu = downsample(metrics.curves["mfu"].points, 1)  # its mean
    return {
        "target": state.target,
        "gpu": state.gpu,
        "world_size": attempt.world_size if attempt else None,
        "status": state.status,
        "step": max(state.step, metrics.step),
        "tokens": int(tokens) or None,
        "train_loss": metrics.newest.get("loss", record.train_loss if record else None),
        "val_loss": metrics.newest.get("val_loss", record.val_loss if record else None),
        "best_val_loss": metrics.best[1] if metrics.best else recorded_best,
        "best_step": metrics.best[0] if metrics.best else None,
        "tokens_per_second": tokens / seconds if tokens and seconds else None,
        "mfu": mfu[0].value if mfu else None,
        "memory_bytes": metrics.newest.get("memory_bytes"),
        "train_seconds": seconds or None,
        "attempts": state.attempts,
        "cost": state.cost,
        "parameters": record.parameters if record else None,
        "commit": git.get("commit"),
        "dirty": git.get("dirty"),
        "result": record.result if record else {},
    }


def format_results(values: dict[str, Any]) -> dict[str, str]:
    """Return the results as text, without unknown values."""
    loss = "{:.4f}".format
    best, step = values["best_val_loss"], values["best_step"]
    commit = one_line(str(values["commit"] or ""))[:10]
    at_step = f" at {step:,}" if best is not None and step is not None else ""
    texts = {
        "target": str(values["target"]),
        "device": _device(values),
        "status": str(values["status"]),
        "step": f"{values['step']:,}" if values["step"] or step is not None else "",
        "tokens": _format(values["tokens"], number),
        "parameters": _format(values["parameters"], number),
        "training loss": _format(values["train_loss"], loss),
        "validation loss": _format(values["val_loss"], loss),
        "best validation": _format(best, loss) + at_step,
        "tokens/s": _format(values["tokens_per_second"], "{:,.0f}".format),
        "MFU": _format(values["mfu"], "{:.1%}".format),
        "memory": _format(values["memory_bytes"], byte_size),
        "training time": _format(values["train_seconds"], duration),
        "attempts": str(values["attempts"] or ""),
        **_returned_values(values),
        "cost": _format(values["cost"], dollars),
        "commit": f"{commit} and changes" if commit and values["dirty"] else commit,
    }
    return {name: text for name, text in texts.items() if text}


def _returned_values(values: dict[str, Any]) -> dict[str, str]:
    """Return the scalar values of an experiment or a command, without those in other rows."""
    others = {"loss": "train_loss", "val_loss": "val_loss", "best_val_loss": "best_val_loss"}
    scalars = {
        key: value
        for key, value in values["result"].items()
        if not isinstance(value, dict | list)
        and (key not in others or value != values[others[key]])
    }
    return {
        one_line(str(key)): f"{value:.4g}" if isinstance(value, float) else one_line(str(value))
        for key, value in list(scalars.items())[:MAX_RETURNED]
    }


def _device(values: dict[str, Any]) -> str:
    count = values["world_size"] or 1
    return one_line(values["gpu"] or "") + (f", {count} processes" if count > 1 else "")


def _format(value: Any, form: Callable[[Any], str]) -> str:
    return "" if value is None else form(value)
