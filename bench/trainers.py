"""The trainers that a bench can measure: ours, as a user starts it, and the baselines.

karpathy/nanoGPT's own train.py runs unmodified in a copy of its checkout.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from bench.baseline_loop import encode
from bench.results import Measurement, RunFailed, Step
from bench.setup import Setup, Task
from corpus.shards import SPLITS
from job import GOMP_SPINCOUNT
from job.exit_status import UserError
from job.files import read_tail
from job.metrics import read_metrics

NEVER = 10**9
TAIL_BYTES = 1 << 16  # about 200 steps: more than the trainer takes between two polls

NANOGPT_ITERATION = re.compile(r"^iter (\d+): loss ([\d.]+|nan), time ([\d.]+)ms", re.MULTILINE)
NANOGPT_EVALUATION = re.compile(r"^step (\d+): train loss [\d.]+, val loss ([\d.]+)", re.MULTILINE)
NANOGPT_PEAK = re.compile(r"^peak memory (\d+)", re.MULTILINE)

# Runs a script unchanged, then prints the peak memory. Imports torch only if the script did.
NANOGPT_PRINT_PEAK_MEMORY = """
import resource, runpy, sys
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
torch = sys.modules.get("torch")
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
if torch is not None and torch.cuda.is_available():
    peak = torch.cuda.max_memory_allocated()
print("peak memory", peak, flush=True)
"""

# Runs in the copy: the loss of nanoGPT's checkpoint over the first windows of the validation set,
# the same windows that ours is evaluated on.
NANOGPT_EVALUATE = """
import sys, numpy as np, torch
from contextlib import nullcontext
from model import GPT, GPTConfig
device, block, limit = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
saved = torch.load("out/ckpt.pt", map_location="cpu", weights_only=True)
network = GPT(GPTConfig(**saved["model_args"])).eval().to(device)
network.load_state_dict(saved["model"])
tokens = torch.from_numpy(np.fromfile("data/bench/val.bin", dtype=np.uint16).astype(np.int64))
n = (len(tokens) - 1) // block
n = n if limit < 0 else min(n, limit // block)
x, y = tokens[: n * block].view(n, block), tokens[1 : n * block + 1].view(n, block)
total = 0.0
with torch.no_grad(), torch.autocast("cuda", torch.bfloat16) if device == "cuda" else nullcontext():
    for a, b in zip(x.split(32), y.split(32)):
        total += network(a.to(device), b.to(device))[1].item() * len(a)
print("loss", total / n)
"""

# The commands of nanoGPT's README for Shakespeare's characters, with and without a GPU.
NANOGPT_README_CPU = [
    *("config/train_shakespeare_char.py", "--device=cpu", "--compile=False", "--eval_iters=20"),
    *("--log_interval=100", "--block_size=64", "--batch_size=12", "--n_layer=4", "--n_head=4"),
    *("--n_embd=128", "--max_iters=2000", "--lr_decay_iters=2000", "--dropout=0.0"),
]
NANOGPT_README_GPU = ["config/train_shakespeare_char.py"]

# Train ``task.steps`` steps of the recipe's shape and tokens. Raises RunFailed.
Train = Callable[[Setup, Task], Measurement]


def train_ours(
    setup: Setup, task: Task, overrides: Sequence[str] = (), log_every: int = 1
) -> Measurement:
    """Train the recipe unchanged; kill it after ``task.steps`` and the checkpoint that follows.

    With ``task.val_tokens`` the run goes to its end. ``overrides`` come last, and replace the
    checkpoint.
    """
    runs_to_end = task.val_tokens is not None
    # The checkpoint comes after the timed steps: writing it slows none of them.
    settings = [f"log_every={log_every}", "sample.max_new_tokens=1", f"eval_every={NEVER}"]
    settings += [f"checkpoint_every={NEVER if runs_to_end else task.steps}"]
    if runs_to_end:
        settings += [f"max_steps={task.steps}"]
        settings += [f"eval_tokens={task.val_tokens if task.val_tokens != -1 else 'null'}"]
    if task.micro_batch is not None:
        settings += [f"micro_batch={task.micro_batch}"]
    if task.lr is not None:
        config = setup.recipe.train  # scale the rates of both optimizers together
        settings += [f"lr={task.lr}", f"muon_lr={config.muon_lr * task.lr / config.lr}"]
    metrics = setup.volumes.run(task.name) / "metrics.jsonl"
    # The checkpoint's line follows the step's; with other checkpoints, stop at the step itself.
    last_line = f'"kind": "{"train" if overrides else "checkpoint"}", "step": {task.steps},'
    _, seconds = setup.run_python(
        task.name,
        *("-m", "model.train", *setup.recipe_args, *settings, *overrides),
        *("--name", task.name, "--device", setup.device),
        is_done=lambda: not runs_to_end and last_line in _tail(metrics),
    )
    lines = read_metrics(metrics)
    steps = [line for line in lines if line["kind"] == "train"]
    if not steps or steps[-1]["step"] < task.steps:
        raise RunFailed(f"{task.name}: its metrics do not reach step {task.steps}")
    tokens = setup.recipe.train.global_batch_tokens
    return Measurement(
        [Step(line["step"], tokens / line["tokens_per_second"], line["loss"]) for line in steps],
        tokens,
        seconds,
        setup.micro_batch(task.micro_batch),
        max(line["memory_bytes"] for line in steps),
        next((line["loss"] for line in reversed(lines) if line["kind"] == "val"), None),
        _extra(lines, tokens),
    )


def _extra(lines: list[dict[str, Any]], tokens: int) -> dict[str, Any]:
    steps = [line for line in lines if line["kind"] == "train"]
    extra: dict[str, Any] = {}
    for name in ("mfu", "mfu_roofline"):
        shares = [line[name] for line in steps[len(steps) // 5 :] if line.get(name) is not None]
        extra[name] = round(median(shares), 4) if shares else None
    stalls = [line["stall_seconds"] for line in lines if line["kind"] == "checkpoint"]
    if stalls:
        step_seconds = median(tokens / line["tokens_per_second"] for line in steps)
        extra["checkpoint_stall_ms"] = round(stalls[-1] * 1e3, 2)
        extra["stall_share_every_100_steps"] = round(stalls[-1] / (100 * step_seconds), 5)
        extra["stalls"] = stalls
    return extra


def _tail(path: Path) -> str:
    try:
        return read_tail(path, TAIL_BYTES)
    except OSError:
        return ""


def train_as_in_readme(
    setup: Setup, name: str, args: list[str], is_done: Callable[[str], bool] = lambda output: False
) -> float:
    """Run a README command on the recipe's tokens until ``is_done(output)``; return its seconds."""

    def poll() -> bool:
        return is_done(setup.log_file(name).read_text(errors="replace"))

    args = ["train.py", *args, "--dataset=bench", "--out_dir=out"]
    folder = copy_nanogpt(setup)
    output, seconds = setup.run_python(name, *args, cwd=folder, is_done=poll, prefix=_prefix())
    is_done(output)  # with the lines since the last poll
    return seconds


def evaluate_nanogpt(setup: Setup, name: str, val_tokens: int) -> float:
    """Return the validation loss of its last checkpoint, over ``val_tokens`` (-1: all)."""
    args = [
        "-c",
        NANOGPT_EVALUATE,
        setup.device,
        str(setup.recipe.model.block_size),
        str(val_tokens),
    ]
    output, _ = setup.run_python(f"{name}-evaluate", *args, cwd=copy_nanogpt(setup))
    return float(output.split()[-1])


def train_nanogpt(setup: Setup, task: Task) -> Measurement:
    """Train the recipe's shape with nanoGPT's own choices.

    They are heads of at most 64, no biases, AdamW, float32 on the CPU and bf16 autocast on CUDA.
    """
    recipe, network = setup.recipe, setup.recipe.model
    folder = copy_nanogpt(setup)
    micro_batch = setup.micro_batch(task.micro_batch)
    wide_heads = network.n_embd // network.n_head > 64 and network.n_embd % 64 == 0
    evaluates = task.val_tokens is not None
    settings = {
        "dataset": "bench",
        "device": setup.device,
        "compile": setup.device == "cuda",
        "block_size": network.block_size,
        "batch_size": micro_batch,
        "gradient_accumulation_steps": recipe.sequences_per_step // micro_batch,
        "n_layer": network.n_layer,
        "n_head": network.n_embd // 64 if wide_heads else network.n_head,
        "n_embd": network.n_embd,
        "dropout": network.dropout,
        "max_iters": task.steps,
        "lr_decay_iters": task.steps,
        "log_interval": 1,
        "eval_iters": 1,
        # It evaluates and writes its checkpoint in the iteration of this number.
        "eval_interval": task.steps if evaluates else task.steps + 1,
        "always_save_checkpoint": evaluates,
        "beta2": recipe.train.beta2,
        "warmup_iters": min(100, task.steps // 10),
    }
    if task.lr is not None:
        settings |= {"learning_rate": task.lr, "min_lr": task.lr / 10}
    args = [f"--{key}={value}" for key, value in settings.items()]
    args = ["-c", NANOGPT_PRINT_PEAK_MEMORY, "train.py", *args]
    output, seconds = setup.run_python(task.name, *args, cwd=folder, prefix=_prefix())
    # Iteration 0 is left out: its time includes the evaluation before it.
    steps = [
        Step(int(number), float(ms) / 1e3, float(loss))
        for number, loss, ms in NANOGPT_ITERATION.findall(output)
        if number != "0"
    ]
    if not steps:
        raise RunFailed(f"{task.name}: its output has no iterations", output)
    val_loss = None
    if task.val_tokens is not None:
        val_loss = evaluate_nanogpt(setup, task.name, task.val_tokens)
    peak = NANOGPT_PEAK.search(output)
    tokens, peak_bytes = recipe.train.global_batch_tokens, int(peak[1]) if peak else None
    return Measurement(steps, tokens, seconds, micro_batch, peak_bytes, val_loss)


def copy_nanogpt(setup: Setup) -> Path:
    """Copy nanoGPT's Python files, and write the recipe's tokens in its layout; once per bench."""
    source, folder = Path(setup.baselines["nanogpt"]).expanduser(), setup.work / "nanogpt"
    if not (source / "train.py").exists():
        raise RunFailed(f"{source} is not a nanoGPT checkout: train.py is missing")
    if folder.exists():
        return folder
    (folder / "data/bench").mkdir(parents=True)
    for path in source.glob("*.py"):
        shutil.copy(path, folder)
    shutil.copytree(source / "config", folder / "config")
    for split in SPLITS:
        stream = setup.stream(split)
        stream.slice(0, len(stream)).astype("<u2").tofile(folder / f"data/bench/{split}.bin")
    if (
        setup.tokenizer.vocab_size != 50257
    ):  # without this file nanoGPT takes GPT-2's vocabulary, padded
        meta = pickle.dumps({"vocab_size": setup.tokenizer.vocab_size})
        (folder / "data/bench/meta.pkl").write_bytes(meta)
    return folder


def _prefix() -> list[str]:
    """Return a prefix that unsets our OpenMP setting: nanoGPT's users do not have it."""
    is_ours = os.environ.get("GOMP_SPINCOUNT") == GOMP_SPINCOUNT
    return ["env", "--unset=GOMP_SPINCOUNT"] if is_ours else []


def train_nanochat(setup: Setup, task: Task) -> Measurement:
    """Train nanochat's network; its own loader reads only Parquet files and its own tokenizer."""
    checkout = Path(setup.baselines["nanochat"]).expanduser().resolve()
    if not (checkout / "nanochat/gpt.py").exists():
        raise RunFailed(f"{checkout} is not a nanochat checkout: nanochat/gpt.py is missing")
    return _train_in_loop("nanochat", setup, task)


def _train_in_loop(name: str, setup: Setup, task: Task) -> Measurement:
    """Run bench/baseline_loop.py as a process and read the JSON lines that it prints."""
    task = replace(task, micro_batch=setup.micro_batch(task.micro_batch))
    args = ("-m", "bench.baseline_loop", name, encode(setup, task))
    output, seconds = setup.run_python(task.name, *args)
    lines = [json.loads(line) for line in output.splitlines() if line.startswith('{"')]
    steps = [Step(line["step"], line["seconds"], line["loss"]) for line in lines if "step" in line]
    if not steps or "peak_memory_bytes" not in lines[-1]:
        raise RunFailed(f"{task.name}: its output has no final line", output)
    extra = lines.pop()
    peak, val_loss = extra.pop("peak_memory_bytes"), extra.pop("val_loss")
    tokens, size = setup.recipe.train.global_batch_tokens, task.micro_batch or 1
    return Measurement(steps, tokens, seconds, size, peak, val_loss, extra)


TRAINERS: dict[str, Train] = {
    "ours": train_ours,
    "nanogpt": train_nanogpt,
    "nanochat": train_nanochat,
    "hf": lambda setup, task: _train_in_loop("hf", setup, task),
}


def select_trainers(setup: Setup, only: str | None) -> dict[str, Train]:
    """Return ours and the given baselines, by name, limited to the comma-separated ``only``."""
    selected = only.split(",") if only else list(TRAINERS)
    unknown = [name for name in (*setup.baselines, *selected) if name not in TRAINERS]
    if unknown:
        raise UserError(f"unknown trainer {unknown[0]!r}; expected one of {', '.join(TRAINERS)}")
    available = {"ours", *setup.baselines} & set(selected)
    return {name: train for name, train in TRAINERS.items() if name in available}
