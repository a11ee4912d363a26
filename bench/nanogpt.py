"""Run karpathy/nanoGPT's own train.py, unmodified, in a copy of its checkout."""

from __future__ import annotations

import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from bench.results import Measurement, RunFailed, Step
from bench.setup import Setup, Task
from job import GOMP_SPINCOUNT

ITERATION = re.compile(r"^iter (\d+): loss ([\d.]+|nan), time ([\d.]+)ms", re.MULTILINE)
EVALUATION = re.compile(r"^step (\d+): train loss [\d.]+, val loss ([\d.]+)", re.MULTILINE)
PEAK = re.compile(r"^peak memory (\d+)", re.MULTILINE)

# Runs a script unchanged, then prints the peak memory. Imports torch only if the script did.
PRINT_PEAK_MEMORY = """
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
EVALUATE = """
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
README_CPU = [
    *("config/train_shakespeare_char.py", "--device=cpu", "--compile=False", "--eval_iters=20"),
    *("--log_interval=100", "--block_size=64", "--batch_size=12", "--n_layer=4", "--n_head=4"),
    *("--n_embd=128", "--max_iters=2000", "--lr_decay_iters=2000", "--dropout=0.0"),
]
README_GPU = ["config/train_shakespeare_char.py"]


def train_as_in_readme(
    setup: Setup, name: str, args: list[str], is_done: Callable[[str], bool] = lambda output: False
) -> float:
    """Run a README command on the recipe's tokens until its end or ``is_done(its output)``.

    Returns the wall seconds.
    """

    def poll() -> bool:
        return is_done(setup.log_file(name).read_text(errors="replace"))

    args = ["train.py", *args, "--dataset=bench", "--out_dir=out"]
    folder = copy_checkout(setup)
    output, seconds = setup.run_python(name, *args, cwd=folder, is_done=poll, prefix=_prefix())
    is_done(output)  # with the lines since the last poll
    return seconds


def evaluate(setup: Setup, name: str, val_tokens: int) -> float:
    """Return the validation loss of its last checkpoint, over ``val_tokens`` (-1: all)."""
    args = ["-c", EVALUATE, setup.device, str(setup.recipe.model.block_size), str(val_tokens)]
    output, _ = setup.run_python(f"{name}-evaluate", *args, cwd=copy_checkout(setup))
    return float(output.split()[-1])


def train(setup: Setup, task: Task) -> Measurement:
    """Train the recipe's shape with nanoGPT's own choices.

    They are heads of at most 64, no biases, AdamW, float32 on the CPU and bf16 autocast on CUDA.
    """
    recipe, network = setup.recipe, setup.recipe.model
    folder = copy_checkout(setup)
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
    args = ["-c", PRINT_PEAK_MEMORY, "train.py", *args]
    output, seconds = setup.run_python(task.name, *args, cwd=folder, prefix=_prefix())
    # Iteration 0 is left out: its time includes the evaluation before it.
    steps = [
        Step(int(number), float(ms) / 1e3, float(loss))
        for number, loss, ms in ITERATION.findall(output)
        if number != "0"
    ]
    if not steps:
        raise RunFailed(f"{task.name}: its output has no iterations", output)
    val_loss = None
    if task.val_tokens is not None:
        val_loss = evaluate(setup, task.name, task.val_tokens)
    peak = PEAK.search(output)
    tokens, peak_bytes = recipe.train.global_batch_tokens, int(peak[1]) if peak else None
    return Measurement(steps, tokens, seconds, micro_batch, peak_bytes, val_loss)


def copy_checkout(setup: Setup) -> Path:
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
    for split in ("train", "val"):
        stream = setup.stream(split)
        stream.slice(0, len(stream)).astype("<u2").tofile(folder / f"data/bench/{split}.bin")
    if setup.vocab_size != 50257:  # without this file nanoGPT takes GPT-2's vocabulary, padded
        meta = pickle.dumps({"vocab_size": setup.vocab_size})
        (folder / "data/bench/meta.pkl").write_bytes(meta)
    return folder


def _prefix() -> list[str]:
    """Return a prefix that unsets our OpenMP setting: nanoGPT's users do not have it."""
    is_ours = os.environ.get("GOMP_SPINCOUNT") == GOMP_SPINCOUNT
    return ["env", "--unset=GOMP_SPINCOUNT"] if is_ours else []
