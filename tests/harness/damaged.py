"""Damage a file and run every command that reads it: one clear message, and no data lost.

    python -m tests.harness.damaged --count 400 --seed 1

A command that only reads changes no file. A resumed training is refused, or ends with the bits of
an undamaged one.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.harness.checkout import build
from tests.harness.compare import differences
from tests.harness.forked import run
from tests.harness.main import harness_main
from tests.harness.mutations import (
    damaged_bytes,
    damaged_json,
    damaged_json_lines,
    damaged_yaml,
)

Command = Sequence[str]
Damage = Callable[[bytes, random.Random], bytes]
HUGE_BYTES = 300_000_000  # sparse

NO_TOOLS = {"PATH": "/nonexistent"}  # for `runner doctor`: Docker and nvidia-smi take seconds


def _runner(*lines: str) -> list[Command]:
    return [["runner", *line.split()] for line in lines]


RUN = _runner(
    *("runs", "runs --json", "status RUN", "status RUN --json", "watch RUN", "watch RUN --json"),
    *(
        "logs RUN",
        "logs RUN --tail 2 --since 1h",
        "compare RUN exp --json",
        "report RUN --output -",
    ),
    *("resume RUN --dry-run", "stop RUN", "host tiny --name RUN --dry-run", "doctor"),
    *("host sample --name RUN --dry-run", "host evaluate --name RUN --dry-run", "cache ls"),
    *("resume RUN x=1 --dry-run", "host run mine/exp.py --name RUN --dry-run"),
)
RUN += [
    ["serving.sample", "--name", "RUN", "max_new_tokens=2"],
    ["serving.evaluate", "--name", "RUN", "eval_tokens=64"],
    ["job.health"],
]
EXPORT: list[Command] = [["serving.export", "--name", "RUN", "--output", "exported"]]
TRAIN: list[Command] = [["model.train", "configs/tiny.yaml", "--name", "RUN"]]
EXPERIMENT: list[Command] = [["experiment.run", "mine/exp.py", "--name", "RUN"]]
COMMAND = ["job.user_command.supervisor", "--name", "RUN", "--folder", "mine", "--", "true"]
PREPARE: list[Command] = [
    ["corpus.prepare", "configs/tiny.yaml"],
    ["corpus.prepare", "configs/tiny.yaml", "--force"],
]
SOURCE: list[Command] = [
    ["corpus.prepare", "configs/tiny.yaml", "--source", "FILE", "data.dataset=new"],
    ["corpus.prepare", "configs/tiny.yaml", "--source", "FILE", "tokenizer=bytes", "dataset=new"],
]
FROM_HF = [
    [
        "model.train",
        "configs/tiny.yaml",
        "--name",
        "new",
        "variant=gpt2",
        "max_steps=2",
        "warmup_steps=1",
        "init_from=hf",
    ]
]
ANY = _runner(
    "host --dry-run", "local --dry-run", "doctor", "estimate", "runs", "host tiny --dry-run"
)


@dataclass(frozen=True)
class Kind:
    """A kind of file, and the commands that read it."""

    path: str  # a glob; RUN is one of runs
    damages: Sequence[Damage]
    commands: Sequence[Command]
    runs: Sequence[str] = ("killed",)


JSON = (damaged_json, damaged_json, damaged_bytes)
LINES = (damaged_json_lines, damaged_json_lines, damaged_bytes)
BYTES = (damaged_bytes,)
YAML = (damaged_yaml, damaged_yaml, damaged_bytes)
TRAINED, EVERY = (
    ("killed", "killed", "done"),
    ("killed", "done", "exp_killed", "exp", "cmd", "pipe-one"),
)
KINDS = (
    Kind("checkpoints/RUN/run.json", JSON, [*RUN, *TRAIN, *EXPERIMENT, COMMAND], EVERY),
    Kind("checkpoints/RUN/run.json", JSON, [*RUN, *TRAIN, *EXPERIMENT, COMMAND], EVERY),
    Kind("checkpoints/RUN/metrics.jsonl", LINES, [*RUN, *TRAIN, *EXPERIMENT], EVERY[:4]),
    Kind("checkpoints/RUN/recipe.yaml", YAML, [*RUN, *TRAIN, *EXPORT], TRAINED),
    Kind("checkpoints/RUN/tokenizer.json", JSON, [*RUN, *TRAIN, *EXPORT], TRAINED),
    Kind("checkpoints/RUN/latest", BYTES, [*RUN, *TRAIN, *EXPERIMENT], EVERY[:4]),
    Kind("checkpoints/RUN/step_*/manifest.json", JSON, [*RUN, *TRAIN, *EXPERIMENT], EVERY[:4]),
    Kind("checkpoints/RUN/step_*/state.json", JSON, [*RUN, *TRAIN, *EXPERIMENT], EVERY[:4]),
    Kind("checkpoints/RUN/step_*/*.safetensors", BYTES, [*RUN, *TRAIN, *EXPERIMENT], EVERY[:4]),
    Kind("checkpoints/RUN/launch.json", JSON, [*RUN, *TRAIN], ("killed", "done", "pipe-one")),
    Kind("checkpoints/RUN/exit_status", BYTES, RUN, ("pipe-one", "sw-001")),
    Kind("checkpoints/RUN/cloud.json", JSON, RUN, ("done",)),
    Kind("checkpoints/RUN/heartbeat", BYTES, [*RUN, *TRAIN], ("killed",)),
    Kind("checkpoints/RUN/lock", BYTES, [*RUN, *TRAIN], ("killed",)),
    Kind("checkpoints/RUN/log.txt", BYTES, [*RUN, *TRAIN, COMMAND], ("killed", "cmd")),
    Kind("checkpoints/RUN/samples/*", BYTES, [*RUN, *TRAIN], ("done",)),
    Kind("checkpoints/RUN/output.txt", BYTES, RUN, ("sw-001",)),
    Kind(
        "checkpoints/RUN/sweep.json",
        JSON,
        _runner(
            *(
                "runs",
                "status RUN",
                "watch RUN",
                "report RUN --output -",
                "doctor",
                "status sw-001",
            ),
            *("sweep mine/sweep.yaml --name sw --dry-run", "sweep mine/sweep.yaml --name sw -y"),
        ),
        ("sw",),
    ),
    Kind("data/tiny/meta.json", JSON, [*RUN, *TRAIN, *PREPARE], ("killed",)),
    Kind("data/tiny/*.bin", BYTES, [*RUN, *TRAIN, *PREPARE], ("killed",)),
    Kind("cache/datasets/*.json", JSON, [*TRAIN, *PREPARE, ["runner", "cache", "ls"]]),
    Kind("texts/rows.*", BYTES, SOURCE),
    Kind("texts/rows.jsonl", LINES, SOURCE),
    Kind("hf/config.json", JSON, FROM_HF),
    Kind("hf/*", BYTES, FROM_HF),
    Kind(
        "questions.jsonl",
        LINES,
        [["serving.evaluate", "--name", "done", "--multiple-choice", "questions.jsonl"]],
    ),
    Kind(
        "mine/pipe.yaml",
        YAML,
        _runner(
            "host pipeline mine/pipe.yaml --dry-run", "host pipeline mine/pipe.yaml one --dry-run"
        ),
    ),
    Kind(
        "mine/sweep.yaml",
        YAML,
        _runner("sweep mine/sweep.yaml --dry-run", "sweep mine/sweep.yaml --name sw --dry-run"),
    ),
    Kind(
        "mine/*.py",
        BYTES,
        [*_runner("host run mine/exp.py --dry-run"), *EXPERIMENT],
        ("exp_killed",),
    ),
    Kind(
        "prices.yaml", YAML, _runner("estimate", "estimate tiny --json", "doctor", "host --dry-run")
    ),
    Kind(".env", BYTES, ANY),
    Kind("docker-compose.yml", YAML, ANY),
    Kind("Dockerfile", BYTES, ANY),
    Kind("configs/quickstart.yaml", YAML, ANY),
)
WRITERS = {"model.train", "experiment.run", "corpus.prepare", "job.user_command.supervisor"}
WRITERS |= {"serving.export"}


def faults(folder: Path, count: int, rng: random.Random, quick: bool = False) -> Iterator[str]:
    """Yield a description of each command that fails on a damaged file, and "" after each file.

    With ``quick``, only files of two runs of the trainer are damaged.
    """
    checkout, pristine, intact = (folder / name for name in ("checkout", "pristine", "intact"))
    checkout.mkdir()
    build(checkout, quick)
    shutil.copytree(checkout, pristine, symlinks=True)
    _resume_killed_runs(checkout)
    shutil.copytree(checkout, intact, symlinks=True)
    kinds = [kind for kind in KINDS if not quick or "killed" in kind.runs]
    for number in range(count):
        kind = kinds[number % len(kinds)]
        run_name = "killed" if quick else rng.choice(list(kind.runs))
        paths = sorted(checkout.glob(kind.path.replace("RUN", run_name)))
        if not paths:
            _restore(pristine, checkout)
            paths = sorted(checkout.glob(kind.path.replace("RUN", run_name)))
        path = rng.choice([path for path in paths if path.is_file()])
        seed = rng.random()
        found, is_intact = list[str](), False  # commands that only read change no file
        for command in kind.commands:
            words = [run_name if word == "RUN" else word for word in command]
            words = [str(path.relative_to(checkout)) if word == "FILE" else word for word in words]
            if not is_intact:
                _restore(pristine, checkout)
                description = _damage(path, kind, random.Random(seed))
            fault = _fault(words, checkout, intact, path, run_name)
            is_intact = not (fault or _is_writer(words))
            if fault:
                found.append(
                    f"{path.relative_to(checkout)} ({description}), {' '.join(words)}: {fault}"
                )
        yield "\n".join(found)


def _resume_killed_runs(checkout: Path) -> None:
    for command in (
        ["model.train", "configs/tiny.yaml", "--name", "killed"],
        ["experiment.run", "mine/exp.py", "--name", "exp_killed"],
    ):
        if (checkout / "checkpoints" / command[-1]).exists():
            assert run(command, checkout).status == 0


def _restore(pristine: Path, checkout: Path) -> None:
    shutil.rmtree(checkout)
    shutil.copytree(pristine, checkout, symlinks=True)


def _damage(path: Path, kind: Kind, rng: random.Random) -> str:
    content = path.read_bytes()
    how = rng.randrange(20)
    if how > 4:
        damaged = rng.choice(kind.damages)(content, rng)
        path.write_bytes(damaged)
        return f"{damaged[:60]!r}… of {len(damaged)} bytes" if damaged != content else "unchanged"
    path.unlink()
    match how:
        case 0:
            path.mkdir()
            return "a folder"
        case 1:
            path.symlink_to("nowhere")
            return "a broken link"
        case 2:
            path.symlink_to(path.name)
            return "a link to itself"
        case 3:
            with path.open("wb") as file:
                file.truncate(HUGE_BYTES)
            return "huge"
    return "missing"


def _is_writer(words: Command) -> bool:
    return words[0] in WRITERS or list(words[:2]) == ["runner", "sweep"]


def _fault(words: Command, checkout: Path, intact: Path, path: Path, run_name: str) -> str:
    is_writer = _is_writer(words)
    before = {} if is_writer else _listing(checkout)
    variables = NO_TOOLS if words == ["runner", "doctor"] else {}
    ended = run(words, checkout, variables)
    if fault := ended.fault():
        return fault
    if not is_writer:
        changed = {name for name, _ in before.items() ^ _listing(checkout).items()}
        return f"changed {sorted(changed)[:3]}" if changed else ""
    if "killed" in run_name and ended.status == 0 and "--name" in words and run_name in words:
        return _other_result(checkout, intact, path, run_name)
    return ""


def _other_result(checkout: Path, intact: Path, path: Path, run_name: str) -> str:
    """Compare a resumed run with the one that was resumed without damage."""
    if not (intact / path.relative_to(checkout)).exists():
        return ""  # pruned by the undamaged run
    damaged = str(path.relative_to(checkout))
    found = [
        line
        for line in differences(intact, checkout, run_name, "tiny")
        if damaged not in line and not (path.name == "metrics.jsonl" and line.startswith("step "))
    ]
    return f"resumed to other results: {found[:5]}" if found else ""


def _listing(checkout: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of every file, without caches and what a check touches."""
    found = {}
    for parent, folders, names in os.walk(checkout):
        if parent == str(checkout):
            folders[:] = [name for name in folders if name not in ("cache",)]
        for name in (*names, *folders):
            status = os.lstat(os.path.join(parent, name))
            time = status.st_mtime_ns if name in names else 0
            found[os.path.relpath(os.path.join(parent, name), checkout)] = (status.st_size, time)
    return found


if __name__ == "__main__":
    sys.exit(harness_main(__doc__, count=faults))
