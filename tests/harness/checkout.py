"""A checkout and volumes with every kind of file that the program reads."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from types import ModuleType

import pyarrow
import pyarrow.parquet

from job.paths import CHECKOUT, VolumePaths
from runner.home import PACKAGES
from tests.harness.forked import run
from tests.tiny_recipe import write_recipe, write_text

EXPERIMENT = """\
import os
import signal
import torch
from experiment import TBLogger, load_checkpoint, save_checkpoint

def train(output_dir=".", lr: float = 0.1, steps: int = 6) -> dict:
    config = {"lr": lr}
    torch.manual_seed(1)
    model = torch.nn.Linear(4, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    found = load_checkpoint(output_dir, config=config, model=model, optimizer=optimizer)
    logger = TBLogger(output_dir)
    loss = torch.tensor(0.0)
    for step in range(found.step + 1 if found else 1, steps + 1):
        optimizer.zero_grad()
        loss = (model(torch.rand(8, 4)) ** 2).mean()
        loss.backward()
        optimizer.step()
        logger.log(step, loss=loss.item())
        save_checkpoint(output_dir, step, config=config, model=model, optimizer=optimizer)
        if step == int(os.environ.get("KILL_AT", "0")):
            os.kill(os.getpid(), signal.SIGKILL)
    return {"loss": float(loss)}
"""
SWEEP = """\
experiment: quick.py
space: {grid: {x: [1, 2]}}
metric: score
"""
QUICK = 'def train(output_dir=".", x: int = 0) -> dict:\n    return {"score": x}\n'
PIPELINE = """\
name: pipe
dir: mine
persist: {out: checkpoints}
stages:
  one: {command: "sh -c 'echo 1 > out/one'", outputs: [out/one]}
  two: {command: "true", args: "--x=1", timeout: 1h}
"""
PRICES = "date: 2026-11-20\nH100: 3.50\nCPU: 0.05\n"
DOTENV = "# keys\nWANDB_API_KEY=abc\nHF_TOKEN='x y'\nOTHER=\"a\\nb\"\nexport EMPTY=\n"
QUESTIONS = [{"context": "the cat", "choices": [" sat", " ran"], "label": 0}] * 3
KILLED_AT, STEPS = 15, 20


def build(root: Path, quick: bool = False) -> None:
    """Fill ``root``: recipes, texts, datasets, and finished, killed and other runs.

    With ``quick`` it has the trainer's runs alone, ``done`` and ``killed``.
    """
    for name in PACKAGES:
        (root / name).symlink_to(CHECKOUT / name)
    for name in ("docker-compose.yml", "docker-compose.gpu.yml", "Dockerfile", "requirements.lock"):
        shutil.copy(CHECKOUT / name, root / name)
    shutil.copy(CHECKOUT / ".dockerignore", root)
    text = write_text(root / "texts" / "text.txt")
    recipe = write_recipe(root / "configs" / "tiny.yaml", str(text))
    content = recipe.read_text().replace("tokenizer: bytes", "tokenizer: chars")
    recipe.write_text(content.replace("max_steps: 60", f"max_steps: {STEPS}"))
    quickstart = content.replace("dataset: tiny", "dataset: other")
    (root / "configs" / "quickstart.yaml").write_text(quickstart)
    lines = text.read_text().splitlines()
    _write_sources(root / "texts", lines)
    mine = root / "mine"
    mine.mkdir()
    for name, content in (
        ("exp.py", EXPERIMENT),
        ("quick.py", QUICK),
        ("sweep.yaml", SWEEP),
        ("pipe.yaml", PIPELINE),
    ):
        (mine / name).write_text(content)
    (root / "prices.yaml").write_text(PRICES)
    (root / ".env").write_text(DOTENV)
    (root / "questions.jsonl").write_text("".join(json.dumps(q) + "\n" for q in QUESTIONS))
    kill_in_step(root, KILLED_AT, "configs/tiny.yaml", "--name", "killed")
    _expect(root, 0, "model.train", "configs/tiny.yaml", "--name", "done")
    if not quick:
        _make_other_runs(root)


def build_small(root: Path) -> None:
    """Fill ``root`` with a recipe, its text, an experiment and a sweep."""
    write_recipe(root / "tiny.yaml", str(write_text(root / "text.txt")))
    for name, content in (("exp.py", EXPERIMENT), ("quick.py", QUICK), ("sweep.yaml", SWEEP)):
        (root / name).write_text(content)


def _write_sources(folder: Path, lines: list[str]) -> None:
    rows = [{"text": line, "id": number} for number, line in enumerate(lines)]
    jsonl = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (folder / "rows.jsonl").write_bytes(jsonl)
    (folder / "rows.jsonl.gz").write_bytes(gzip.compress(jsonl))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "rows.parquet")


def _make_other_runs(root: Path) -> None:
    gpt2 = ("model.variant=gpt2", "max_steps=2", "warmup_steps=1")
    _expect(root, 0, "model.train", "configs/tiny.yaml", *gpt2, "--name", "gpt2")
    _expect(root, 0, "serving.export", "--name", "gpt2", "--output", "hf")
    _expect(root, 0, "experiment.run", "mine/exp.py", "--name", "exp")
    kill = {"KILL_AT": "4"}
    run(["experiment.run", "mine/exp.py", "--name", "exp_killed"], root, kill)
    words = ("--name", "cmd", "--folder", "mine", "--", "sh", "-c", "echo hello")
    _expect(root, 0, "job.user_command.supervisor", *words)
    _expect(root, 0, "runner", "sweep", "mine/sweep.yaml", "--name", "sw", "-y")
    _expect(root, 0, "runner", "host", "pipeline", "mine/pipe.yaml", "-y")
    # As the container on Modal writes it.
    attempt = {"call": "fc-1", "container": "ta-1", "started": 1.0, "seen": 2.0}
    log = {"attempts": [{**attempt, "usd_per_hour": 3.5, "gpu": "H100", "reason": "preempted"}]}
    log |= {"call": "fc-1", "app": "ap-1", "status": 0, "reason": "finished"}
    (VolumePaths.under(root).run("done") / "cloud.json").write_text(json.dumps(log))
    launch = json.loads((VolumePaths.under(root).run("pipe-one") / "launch.json").read_text())
    for name in ("done", "killed", "exp_killed"):
        path = VolumePaths.under(root).run(name) / "launch.json"
        path.write_text(json.dumps({**launch, "run": name, "job": "train"}))


def kill_in_step(root: Path, step: int, *words: str) -> None:
    """Train until ``step`` and end with SIGKILL."""
    hook = ModuleType("harness_kill")

    def after_step(now: int, stop: object) -> None:
        if now == step:
            os.kill(os.getpid(), signal.SIGKILL)

    hook.after_step = after_step  # type: ignore[attr-defined]
    sys.modules[hook.__name__] = hook
    ended = run(["model.train", *words], root, {"TRAIN_STEP_HOOK": hook.__name__})
    assert ended.status == -signal.SIGKILL, ended


def _expect(root: Path, status: int, *command: str) -> None:
    ended = run(command, root)
    assert ended.status == status, ended
