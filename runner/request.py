"""Validated launch requests: one type for each job.

A request is complete before a target is contacted: the recipe is loaded, paths are absolute, and
options are valid.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar

from job.gpu_queue import GpuAccess
from job.paths import VOLUMES
from job.signature import Value
from runner.errors import did_you_mean, usage
from runner.jobs import COMMAND, EXPERIMENT, JOBS, Job

if TYPE_CHECKING:
    from job.recipe import Recipe


@dataclass(frozen=True)
class TargetOptions:
    """Options of a launch that depend on the target.

    ``gpu`` names the GPU types to rent; ``max_cost`` is in US dollars over all attempts.
    """

    gpu: str | None = None
    max_cost: float | None = None
    environment: tuple[tuple[str, str], ...] = ()
    forwarded_env: tuple[str, ...] = ()  # variables to forward, from the environment or .env
    modal_secrets: tuple[str, ...] = ()  # names of secrets stored on Modal

    def names(self) -> list[str]:
        """Return the command-line names of the options that are set."""
        keys = [option.name for option in fields(self) if getattr(self, option.name)]
        return [name.removesuffix("_s").replace("_", "-") for name in keys]

    def updated(self, newer: TargetOptions) -> TargetOptions:
        """Return these options, each one that ``newer`` sets replaced."""
        values = {option.name: getattr(newer, option.name) for option in fields(newer)}
        return replace(self, **{name: value for name, value in values.items() if value})


SOURCE, WEIGHTS, PROMPT = "data.source", "train.init_from", "sample.prompt"  # they name files


@dataclass(frozen=True)
class FileProblem:
    """The reason why a job could not use a file or run that a setting names."""

    message: str
    remote_advice: str = ""  # added if the target's volumes are on a different machine


@dataclass(frozen=True, kw_only=True)
class Request:
    """One launch. ``settings`` is the recipe with its overrides, of the run or of the file."""

    job: ClassVar[Job]

    run: str  # '' for the newest run on a target that can't be queried
    overrides: tuple[str, ...] = ()
    settings: Recipe | None = None
    gpus: int = 1  # processes, one per GPU
    device: str | None = None
    detach: bool = False
    as_json: bool = False
    target_options: TargetOptions = field(default_factory=TargetOptions)
    command: UserCommand | None = None
    experiment: Experiment | None = None
    sweep: str | None = None  # that it is a trial of
    access: GpuAccess | None = None
    tags: tuple[str, ...] = ()
    problems: Mapping[str, FileProblem] = field(default_factory=dict)  # by SOURCE, WEIGHTS, PROMPT

    @property
    def trackers(self) -> dict[str, str]:
        """Return the project to log to by tracker."""
        if self.experiment is not None:
            return dict(self.experiment.trackers)
        return self.settings.train.projects() if self.settings and self.job.multi_gpu else {}


@dataclass(frozen=True, kw_only=True)
class TrainRequest(Request):
    """Train the recipe in a file; resuming reads the run's own."""

    job = JOBS["train"]

    recipe: Path
    settings: Recipe


@dataclass(frozen=True, kw_only=True)
class PrepareRequest(Request):
    """Prepare the dataset of a recipe, or download a ``published`` one, which has no recipe."""

    job = JOBS["prepare"]

    recipe: Path | None = None
    source: str | None = None
    published: str | None = None
    shards: int | None = None
    force: bool = False


@dataclass(frozen=True, kw_only=True)
class SampleRequest(Request):
    """Sample text from a run."""

    job = JOBS["sample"]


@dataclass(frozen=True, kw_only=True)
class EvaluateRequest(Request):
    """Evaluate a run, on the validation set, on a file of questions, or on a task by name."""

    job = JOBS["evaluate"]

    multiple_choice: str | None = None
    task: str | None = None


@dataclass(frozen=True, kw_only=True)
class ExportRequest(Request):
    """Export a run to Hugging Face format; by default into the run's folder."""

    job = JOBS["export"]

    output: Path | None = None
    push: str | None = None  # OWNER/NAME on the Hugging Face Hub


@dataclass(frozen=True, kw_only=True)
class ChatRequest(Request):
    """Talk to a run, or to ``model``: a folder, or a name on the Hub."""

    job = JOBS["chat"]

    model: str | None = None
    prompt_file: str | None = None


@dataclass(frozen=True, kw_only=True)
class ServeRequest(Request):
    """Serve a run, or ``model``: a folder, or a name on the Hub."""

    job = JOBS["serve"]

    model: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000


@dataclass(frozen=True, kw_only=True)
class BenchmarkRequest(Request):
    """Measure the device's peak throughput."""

    job = JOBS["roofline"]


@dataclass(frozen=True, kw_only=True)
class CommandRequest(Request):
    """Run a command in a folder of the user; ``hint`` is a row of the plan about its name."""

    job = COMMAND

    command: UserCommand
    hint: str = ""
    is_interactive: bool = False  # at the terminal, and not a run


@dataclass(frozen=True, kw_only=True)
class ExperimentRequest(Request):
    """Run train() of a Python file.

    ``command`` describes its folder if that is outside the checkout.
    """

    job = EXPERIMENT

    experiment: Experiment


SHELL_PREFIX = "shell-"  # of the names of open shells

# Programs that run another one, which names the run.
LAUNCHERS = re.compile(r"^(python[0-9.]*|torchrun|accelerate|bash|sh|env|uv|launch|run)$")


@dataclass(frozen=True)
class PersistOption:
    """``--persist``: a path in the folder that is stored on a volume.

    ``{run}`` in ``location`` is the run.
    """

    path: str
    volume: str
    location: str  # in the volume

    def path_in_volume(self, run: str) -> str:
        """Return the path in the volume."""
        return self.location.replace("{run}", run)


@dataclass(frozen=True)
class UserCommand:
    """``argv`` to run in ``folder``, an absolute path on this machine."""

    argv: tuple[str, ...]
    folder: Path
    setup: tuple[str, ...] = ()  # shell lines that extend the image
    requirements: bool = True  # the folder's requirements.txt extends it too
    persist: tuple[PersistOption, ...] = ()
    resume_with: str = ""  # arguments added in later attempts
    resume_if: str | None = None  # ... if this file exists
    metrics: tuple[tuple[str, str], ...] = ()  # names and regular expressions of its output

    @property
    def script(self) -> str | None:
        """Return the file of the folder that the command starts, as in `torchrun train.py`.

        None if it starts no file, or one outside the folder or on a persisted path.
        """
        program, *rest = self.argv or ("",)
        shell = re.fullmatch(r"(?:.*/)?(python[\d.]*|(?:ba|z)?sh)", program)
        if program.startswith("./"):
            name = program
        elif shell is not None:
            name = next((w for w in rest if w[:1] != "-" or w[:2] in ("-c", "-m")), "")
        elif PurePosixPath(program).name == "torchrun":
            name = next((w for w in rest if w.endswith(".py")), "")
        else:
            return None
        path = PurePosixPath(os.path.normpath(name))
        is_file = name.startswith("./") or path.suffix in (".py", ".sh")
        if not is_file or path.is_absolute() or path.parts[0] == ".." or re.search(r"[\s{$]", name):
            return None
        if any(path.is_relative_to(option.path) for option in self.persist):
            return None
        return str(path)

    def as_record(self) -> dict[str, Any]:
        """Return the JSON for the run's record; `command_from_record` reads it."""
        return {
            "words": list(self.argv),
            "folder": str(self.folder),
            "setup": list(self.setup),
            "requirements": self.requirements,
            "persist": [[option.path, option.volume, option.location] for option in self.persist],
            "resume_with": self.resume_with,
            "resume_if": self.resume_if,
            "metrics": [list(metric) for metric in self.metrics],
        }


def command_from_record(tree: Mapping[str, Any]) -> UserCommand | None:
    """Return the command in a run's record; None if it is damaged."""
    try:
        return UserCommand(
            tuple(str(word) for word in tree["words"]),
            Path(tree["folder"]),
            tuple(str(line) for line in tree.get("setup", ())),
            bool(tree.get("requirements", True)),
            tuple(
                PersistOption(str(path), str(volume), str(location))
                for path, volume, location in tree.get("persist", ())
            ),
            str(tree.get("resume_with") or ""),
            str(tree["resume_if"]) if tree.get("resume_if") else None,
            tuple((str(name), str(pattern)) for name, pattern in tree.get("metrics", ())),
        )
    except (LookupError, TypeError, ValueError):
        return None


def folder_name(folder: Path) -> str:
    """Return the folder's name in characters that are valid in names of runs and paths of volumes.

    A name that needed replacing gets a hash, so that two such folders do not share a path.
    """
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", folder.name).strip("-._")
    if name == folder.name:
        return name
    digest = hashlib.sha256(os.fsencode(folder.name)).hexdigest()[:8]
    return f"{name or 'folder'}-{digest}"


def run_name(folder: Path, argv: Sequence[str]) -> str:
    """Return the default name of a command's run: the folder and the script, ``nanoGPT-train``."""
    candidates = [
        word for word in argv if not word.startswith("-") and not LAUNCHERS.match(Path(word).name)
    ]
    scripts = [word for word in candidates if word.endswith((".py", ".sh"))]
    word = (scripts or candidates or list(argv))[0]
    if "-m" in argv[:-1] and not scripts:
        word = argv[argv.index("-m") + 1].rpartition(".")[2]
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(word).stem).strip("-._")[:40]
    return f"{folder_name(folder)[:50]}-{stem or 'command'}"


# Names of files that programs write; a persisted path of such a name would become a folder.
FILE_SUFFIXES = frozenset(
    {
        ".bin",
        ".ckpt",
        ".csv",
        ".gguf",
        ".h5",
        ".json",
        ".jsonl",
        ".log",
        ".npy",
        ".npz",
        ".onnx",
        ".pkl",
        ".pt",
        ".pth",
        ".safetensors",
        ".tsv",
        ".txt",
    }
)


def read_persist_options(values: Sequence[str], folder: Path) -> tuple[PersistOption, ...]:
    """Parse ``out=checkpoints`` or ``out=checkpoints/some/path``.

    The default path is ``<folder>/<path>``, the same for every run in the folder. Raises
    RunnerError, exit status 2.
    """
    options = tuple(_read_persist_option(word, folder) for word in values)
    for number, option in enumerate(options):
        for other in options[:number]:
            if _is_inside(option.path, other.path) or _is_inside(other.path, option.path):
                raise usage(
                    f"--persist {other.path} and --persist {option.path} overlap; keep one of them"
                )
    return options


def _read_persist_option(option: str, folder: Path) -> PersistOption:
    path, equals, rest = option.partition("=")
    volume, _, location = rest.partition("/")
    if not equals or not path or not volume:
        raise usage(f"--persist {option}: expected PATH=VOLUME, such as --persist out=checkpoints")
    if volume not in VOLUMES:
        hint = did_you_mean(volume, VOLUMES) or f"; the volumes are {', '.join(VOLUMES)}"
        raise usage(f"--persist {option}: unknown volume '{volume}'{hint}")
    inner = PurePosixPath(path)
    if inner.is_absolute() or ".." in inner.parts or not inner.parts:
        raise usage(f"--persist {option}: {path} is not a path inside the folder {folder}")
    if (folder / inner).is_file() or (
        inner.suffix in FILE_SUFFIXES and not (folder / inner).is_dir()
    ):
        raise usage(
            f"--persist {option}: {path} is a file, and only folders are persisted; let the "
            "command write it into a folder, or to $OUT_DIR, which is always kept"
        )
    if {*"{}"} & {*location.replace("{run}", "")}:
        raise usage(f"--persist {option}: {location} can contain {{run}}, but no other braces")
    outer = PurePosixPath(location or f"{folder_name(folder)}/{inner}")
    if outer.is_absolute() or ".." in outer.parts or not outer.parts:
        raise usage(f"--persist {option}: {location} is not a path inside the volume {volume}")
    return PersistOption(inner.as_posix(), volume, outer.as_posix())


def _is_inside(path: str, other: str) -> bool:
    return PurePosixPath(path).is_relative_to(other)


@dataclass(frozen=True)
class Experiment:
    """A Python file with a train(). ``args`` are as typed; ``arguments`` include the defaults."""

    file: Path  # absolute
    args: tuple[str, ...] = ()
    arguments: tuple[tuple[str, Value], ...] = ()
    trackers: tuple[tuple[str, str], ...] = ()  # and the project to log to in each

    def describe(self) -> str:
        """Return ``train(lr=0.001, steps=100) of sweep_me.py``."""
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.arguments)
        return f"train({arguments}) of {self.file.name}"

    def as_record(self) -> dict[str, Any]:
        """Return the JSON for the run's record; `experiment_from_record` reads it."""
        trackers = dict(self.trackers)
        return {"file": str(self.file), "words": list(self.args), "trackers": trackers}


def experiment_from_record(tree: Mapping[str, Any]) -> tuple[Path, tuple[str, ...]] | None:
    """Return the file and the arguments of a launch; None if it was not an experiment's."""
    try:
        experiment = tree["experiment"]
        return Path(experiment["file"]), tuple(str(word) for word in experiment["words"])
    except (LookupError, TypeError):
        return None


def smoke_overrides(steps: int) -> dict[str, Any]:
    """Return the settings that end a training run after ``steps``, regardless of its schedules."""
    return {
        "train.max_steps": steps,
        "train.warmup_steps": 0,
        "train.decay_steps": None,
        "train.batch_schedule": [],
        "train.window_schedule": [],
        "train.eval_every": steps,
        "train.checkpoint_every": steps,
    }


def as_arguments(settings: dict[str, Any]) -> tuple[str, ...]:
    """Return settings as arguments of a command line."""
    return tuple(f"{key}={'null' if value is None else value}" for key, value in settings.items())
