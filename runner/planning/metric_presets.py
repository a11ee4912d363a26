"""The metrics of a command: as given, or a preset for the program in the folder."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from job.files import read_file
from job.user_command.metric_sources import pattern_problem
from runner.errors import usage

MAX_SCRIPTS = 30  # of the folder that are searched
MAX_SCRIPT_BYTES = 1 << 20

NO_METRICS = "none"

NUMBER = r"(-?[\d.]+(?:e[-+]?\d+)?|nan|inf)"

Patterns = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class MetricPreset:
    """The output of a program; ``marker`` is a regular expression found in its source alone."""

    name: str
    marker: str
    patterns: dict[str, str]


PRESETS = (
    MetricPreset(
        "nanoGPT",
        r"iter \{iter_num\}: loss",
        {
            "step": r"^(?:iter|step) (\d+):",
            "loss": rf"^iter \d+: loss {NUMBER}",
            "val_loss": rf"val loss {NUMBER}",
            "max_steps": r"^(?:Overriding: )?max_iters = (\d+)",
        },
    ),
    MetricPreset(
        "modded-nanogpt",
        r"step_avg:",
        {
            "step": r"^step:(\d+)/(?P<total>\d+)",
            "loss": rf"train_loss:{NUMBER}",
            "val_loss": rf"val_loss:{NUMBER}",
        },
    ),
    MetricPreset(
        "nanochat",
        r"(?m)^from nanochat\b",
        {
            "step": r"^[Ss]tep (\d+)(?:/(?P<total>\d+))?",
            "loss": rf"\| loss: {NUMBER}",
            "val_bpb": rf"(?:Validation|^val) bpb: {NUMBER}",
            "core_metric": rf"\bCORE metric: {NUMBER}",
            "chatcore_metric": rf"ChatCORE(?: metric)?: {NUMBER}",
            "reward": rf"Average reward: {NUMBER}",
            "tokens_per_second": r"tok/sec: ([\d,]+)",
        },
    ),
    MetricPreset(
        "minGPT",
        r"iter_dt .*train loss \{",
        {
            "step": r"; iter (\d+):",
            "loss": rf"train loss {NUMBER}",
            "test_accuracy": r"^test final score: .* = ([\d.]+%)",  # of projects/adder
            "max_steps": r"^\s*max_iters: (\d+)",
        },
    ),
    MetricPreset(
        "word_language_model",
        r"ms/batch",
        {
            "step": r"epoch\s+(?P<epoch>\d+) \|\s+(?P<step>\d+)/\s*(?P<per_epoch>\d+) batches",
            "loss": rf"ms/batch.*\| loss\s+{NUMBER}",
            "val_loss": rf"valid loss\s+{NUMBER}",
            "test_loss": rf"test loss\s+{NUMBER}",
            "lr": rf"\| lr {NUMBER}",
        },
    ),
    MetricPreset(
        "Hugging Face Trainer",
        r"(?s)\b(?:transformers|trl)\b.*Trainer\(",
        {
            "step": r"^\s*\d+%\|[^|]*\|\s*(\d+)/(?P<total>\d+) \[",
            "loss": rf"'loss': '?{NUMBER}",
            "val_loss": rf"'eval_loss': '?{NUMBER}",
            "lr": rf"'learning_rate': '?{NUMBER}",
            "grad_norm": rf"'grad_norm': '?{NUMBER}",
        },
    ),
    MetricPreset(
        "Lightning",
        r"(?ms)^\s*(?:import|from) (?:pytorch_)?lightning\b.*\b(?:Lightning\w+|Trainer)\b",
        {
            "step": r"^Epoch (?P<epoch>\d+).*?\s(?P<step>\d+)/(?P<per_epoch>\d+) ",
            "loss": rf"\b(?:train[_/])?loss(?:_step)?[=:] ?{NUMBER}",
            "val_loss": rf"\bval(?:id)?[_/]loss[=:] ?{NUMBER}",
        },
    ),
)

# Any other program: `step 10/500 | loss 3.1`, `10 | loss 3.1`, `Epoch 1: train loss 3, val loss 4`.
# The step is in a line with a loss; a training loss does not follow val, eval or test.
OTHER = MetricPreset(
    "a typical program",
    "",
    {
        "step": r"(?i)^(?=.*loss\W+(?:train\W+)?[\dni])"
        r"(?:.*?\b(?:step|iter(?:ation)?)['\"]?[ :=#]*|.*?\bepoch[ :=#[]*|\s*(?=\d+ ?[|:]))"
        r"(\d+)(?: ?/ ?(?P<total>\d+))?",
        "loss": rf"(?i)^(?=.*loss)(?:(?!(?<![a-z])(?:val|eval|test)).)*?(?<![a-z])loss['\"]?"
        rf"(?:[ _]train)?[ :=]+{NUMBER}",
        "val_loss": rf"(?i)(?<![a-z])(?:val(?:id(?:ation)?)?|eval)(?:[ _/]loss['\"]?[ :=]+|: )"
        rf"{NUMBER}",
        "test_loss": rf"(?i)(?<![a-z])test[ _/]loss['\"]?[ :=]+{NUMBER}",
    },
)


def read_metrics(options: Sequence[str], folder: Path, argv: Sequence[str]) -> Patterns:
    """Return the names and patterns of ``--metric``, or those of the folder's program.

    Raises RunnerError, exit status 2.
    """
    if NO_METRICS in options:
        if len(options) > 1:
            raise usage(f"--metric {NO_METRICS} reads nothing; remove it, or the other --metric")
        return ()
    if not options:
        return tuple(find_preset(folder, argv).patterns.items())
    metrics = {}
    for word in options:
        name, equals, pattern = word.partition("=")
        if not equals:
            raise usage(
                f"--metric {word}: expected NAME=REGEX, such as --metric loss='loss ([\\d.]+)'"
            )
        if problem := pattern_problem(name, pattern):
            raise usage(f"--metric {word}: {problem}")
        metrics[name] = pattern
    return tuple(metrics.items())


def find_preset(folder: Path, argv: Sequence[str]) -> MetricPreset:
    """Return the preset for the script in the command, else for the folder's other scripts."""
    for path in _scripts(folder, argv):
        try:
            text = read_file(path, length=MAX_SCRIPT_BYTES).decode("utf-8", "replace")
        except OSError:
            continue
        for preset in PRESETS:
            if re.search(preset.marker, text):
                return preset
    return OTHER


def _scripts(folder: Path, argv: Sequence[str]) -> Iterator[Path]:
    for word, after in zip(argv, [*argv[1:], ""], strict=True):
        if word.endswith(".py"):
            yield folder / word
        elif word == "-m":
            yield folder / f"{after.replace('.', '/')}.py"
    yield from sorted(folder.glob("*.py"))[:MAX_SCRIPTS]


def are_known(metrics: Patterns) -> bool:
    """Return True if the program surely prints the metrics, given or of a preset for it."""
    return metrics not in ((), tuple(OTHER.patterns.items()))


def describe_metrics(metrics: Patterns) -> str:
    """Return ``loss, val_loss as nanoGPT prints them``, for the plan."""
    if not metrics:
        return ""
    names = ", ".join(name for name, _ in metrics if name not in ("step", "max_steps"))
    preset = next((p.name for p in (*PRESETS, OTHER) if tuple(p.patterns.items()) == metrics), "")
    return f"{names} as {preset} prints them" if preset else names
