r"""The metrics of a command: in its output, and in the files that it writes.

``--metric loss='loss ([\d.]+)'`` gives a pattern of the output. The pattern ``step`` gives the
position of the values, in its group ``step`` or else in the first one. The groups ``total``,
``epoch`` and ``per_epoch`` are optional: the steps of the run, the number of the epoch, and the
steps of each epoch. The files are ``metrics.jsonl`` and TensorBoard's event files.
"""

from __future__ import annotations

import json
import os
import queue
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from job.metrics import LineReader
from job.user_command import report

LINE_END = re.compile(rb"[\r\n]")

MAX_LINE_BYTES = 2000  # of a line that is searched
SEARCH_LIMIT_S = 1.0

STEP, MAX_STEPS, LOSS = "step", "max_steps", "loss"


class MetricRow(NamedTuple):
    """Values that belong to one step; ``max_steps`` is 0 if it is unknown."""

    step: int
    max_steps: int
    values: dict[str, float]


class StepCounter:
    """Steps that never decrease, from printed ones that begin again in each epoch."""

    def __init__(self) -> None:
        self.step = 0
        self.max_steps = 0
        self._printed = 0
        self._before = 0  # in earlier epochs
        self._epoch: int | None = None

    def read(self, match: re.Match[str]) -> None:
        """Take the step from a match of its pattern."""
        groups = {name: _integer(text) for name, text in match.groupdict().items()}
        printed = groups["step"] if "step" in groups else _integer(match[1])
        total, epoch = groups.get("total"), groups.get("epoch")
        if printed is None or (total and self.max_steps and total != self.max_steps):
            return  # another progress bar, such as that of an evaluation
        self.max_steps = total or self.max_steps
        if epoch != self._epoch if self._epoch is not None else printed < self._printed // 2:
            self._before += groups.get("per_epoch") or self._printed
        self._printed, self._epoch = printed, epoch
        self.step = max(self.step, self._before + printed)


class OutputMetrics:
    """Finds metrics in chunks of output, which threads add."""

    def __init__(self, patterns: Mapping[str, str]) -> None:
        import regex  # it has a time limit; re may backtrack without an end

        self._patterns = {name: regex.compile(pattern) for name, pattern in patterns.items()}
        self._counts_losses = True  # until a step is printed
        self._counter = StepCounter()
        self._rests: dict[object, bytes] = {}  # per pipe, the incomplete line
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def add(self, pipe: object, chunk: bytes) -> None:
        """Add output of one pipe; its last line may be incomplete."""
        *lines, rest = LINE_END.split(self._rests.get(pipe, b"") + chunk)
        self._rests[pipe] = rest[:MAX_LINE_BYTES]
        for line in lines:
            if line:
                self._lines.put(line[:MAX_LINE_BYTES])

    def rows(self) -> Iterator[MetricRow]:
        """Yield the metrics of the lines added since the last call."""
        while not self._lines.empty():
            row = self._read(self._lines.get().decode(errors="replace"))
            if row is not None:
                yield row

    def _read(self, line: str) -> MetricRow | None:
        matches = {name: self._search(name, line) for name in list(self._patterns)}
        if match := matches.pop(STEP, None):
            if self._counts_losses:
                self._counts_losses, self._counter.step = False, 0
            self._counter.read(match)
        if match := matches.pop(MAX_STEPS, None):
            self._counter.max_steps = _integer(match[1]) or 0
        values = {
            name: number
            for name, match in matches.items()
            if match and (number := parse_number(match[1])) is not None
        }
        if not values:
            return None
        if self._counts_losses and (LOSS in values or STEP not in self._patterns):
            self._counter.step += 1
        return MetricRow(self._counter.step, self._counter.max_steps, values)

    def _search(self, name: str, line: str) -> Any:
        """Return the match of a pattern, which is dropped if it takes too long."""
        try:
            return self._patterns[name].search(line, timeout=SEARCH_LIMIT_S)
        except TimeoutError:
            del self._patterns[name]
            report(
                f"--metric {name}: its expression takes more than {SEARCH_LIMIT_S:.0f} s for a "
                "line, so it is ignored from now on; give one with fewer repetitions"
            )
            return None


def parse_number(text: str | None) -> float | None:
    """Return the number in ``2.31``, ``1,024`` or ``41.5%``; None for any other text."""
    text = (text or "").replace(",", "")
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def _integer(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() else None


def pattern_problem(name: str, pattern: str) -> str:
    """Return why a pattern can't be used; '' if it can."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_./-]{0,40}", name):
        return f"invalid name '{name}'; use letters, digits, _ and /"
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        return f"invalid regular expression {pattern!r}: {error}"
    if not groups:
        return f"{pattern!r} has no group; put the number in parentheses: {name} ([\\d.]+)"
    return ""


SCAN_INTERVAL_S = 10.0  # between two searches for new files
MAX_SCANNED = 2000  # files of one place: a search of a large folder on a network volume takes long

METRICS_NAME = "metrics.jsonl"
EVENT_NAME = "tfevents"
STEP_KEYS = ("step", "_step", "global_step", "iter", "iteration", "iter_num")

Read = Callable[[], Iterable[MetricRow]]


class MetricFiles:
    """Reads this attempt's values from the metric files of ``places`` and of ``out``.

    The run's own files in ``out`` are skipped, unless the command writes ``metrics.jsonl`` there.
    """

    def __init__(self, places: Sequence[Path], out: Path) -> None:
        self.has_rows = False
        self.owns_metrics_file = False  # the command writes the run's metrics.jsonl itself
        self._places = (*places, out)
        self._out = out
        self._readers: dict[Path, Read] = {}
        self._scanned = time.monotonic()
        for path in self._find():  # of earlier attempts
            self._readers[path] = _no_rows if EVENT_NAME in path.name else json_reader(path)
            deque(self._readers[path](), maxlen=0)  # skips the rows that exist
        own = out / METRICS_NAME
        self._own_size = own.stat().st_size if own.exists() else 0

    def poll(self, is_last: bool) -> list[MetricRow]:
        """Return the new rows, in the order of their steps."""
        if is_last or time.monotonic() - self._scanned > SCAN_INTERVAL_S:
            self._scanned = time.monotonic()
            for path in self._find():
                if path not in self._readers:
                    is_events = EVENT_NAME in path.name
                    self._readers[path] = event_reader(path) if is_events else json_reader(path)
        self._check_own_file()
        rows = [row for read in self._readers.values() for row in read()]
        self.has_rows |= bool(rows)
        return sorted(rows, key=lambda row: row.step)

    def _check_own_file(self) -> None:
        """Read the run's metrics.jsonl if it grew before this process wrote to it."""
        own = self._out / METRICS_NAME
        if self.owns_metrics_file or self.has_rows or self._own_size < 0 or not own.exists():
            return
        if own.stat().st_size != self._own_size:
            self.owns_metrics_file = True
            self._readers[own] = json_reader(own, self._own_size)

    def leave_own_file(self) -> None:
        """Stop watching the run's metrics.jsonl: this process writes it now."""
        self._own_size = -1

    def _find(self) -> Iterator[Path]:
        for place in self._places:
            seen = 0
            for inside, folders, names in os.walk(place):
                if Path(inside) == self._out:
                    folders[:] = [name for name in folders if name != "tensorboard"]
                for name in names:
                    path = Path(inside) / name
                    is_own = path.parent == self._out
                    if EVENT_NAME in name or (name == METRICS_NAME and not is_own):
                        yield path
                seen += len(names)
                if seen > MAX_SCANNED:
                    break


def json_reader(path: Path, start: int = 0) -> Read:
    """Return a function that reads the new lines, JSON objects with a step, from byte ``start``."""
    lines = LineReader(path, start)

    def read() -> Iterator[MetricRow]:
        for line in lines.read():
            try:
                tree = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(tree, dict) and (row := _row(tree)) is not None:
                yield row

    return read


def _row(row: Mapping[str, Any]) -> MetricRow | None:
    step = next((row[key] for key in STEP_KEYS if isinstance(row.get(key), int | float)), None)
    prefix = f"{row['kind']}/" if isinstance(row.get("kind"), str) else ""
    values = {
        f"{prefix}{key}": float(value)
        for key, value in row.items()
        if key not in STEP_KEYS and isinstance(value, int | float) and not isinstance(value, bool)
    }
    return MetricRow(int(step), 0, values) if step is not None and values else None


def event_reader(path: Path) -> Read:
    """Return a function that reads the new scalars of TensorBoard's event file."""
    try:
        from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

        loader = LegacyEventFileLoader(str(path))
    except Exception as error:  # packages that the user installed can break it
        report(f"can't read {path.name}: {error}")
        return _no_rows

    def read() -> Iterator[MetricRow]:
        for event in loader.Load():
            values = {}
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    values[value.tag] = float(value.simple_value)
                elif len(value.tensor.float_val) == 1:
                    values[value.tag] = float(value.tensor.float_val[0])
            if values:
                yield MetricRow(int(event.step), 0, values)

    return read


def _no_rows() -> Iterable[MetricRow]:
    return ()
