"""karpathy/nanoGPT: its own train.py, unmodified, through its command line, in a copy of the checkout."""

from __future__ import annotations

import pickle
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from bench.contenders import Task
from bench.measured import Measured, Step
from bench.process import Failed, watch
from bench.setup import Setup

WRAPPER = Path(__file__).resolve().parent.parent / "whole_script.py"
LINE = re.compile(r"^iter (\d+): loss ([\d.]+|nan), time ([\d.]+)ms", re.MULTILINE)

# Run in the copy: the loss of its checkpoint over the first windows of the validation set, ours and its alike.
RULER = """
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
print("ruler", total / n)
"""


# Its README's lines for Shakespeare's characters: on a machine with no GPU, and on one with a GPU.
README_CPU = [
    *[
        "config/train_shakespeare_char.py",
        "--device=cpu",
        "--compile=False",
        "--eval_iters=20",
        "--log_interval=100",
    ],
    *[
        "--block_size=64",
        "--batch_size=12",
        "--n_layer=4",
        "--n_head=4",
        "--n_embd=128",
        "--max_iters=2000",
    ],
    *["--lr_decay_iters=2000", "--dropout=0.0"],
]
README_GPU = ["config/train_shakespeare_char.py"]
EVALUATION = re.compile(r"^step (\d+): train loss [\d.]+, val loss ([\d.]+)", re.MULTILINE)


def readme(
    setup: Setup, name: str, words: list[str], until: Callable[[str], bool] = lambda text: False
) -> float:
    """Run a line of its README on the recipe's tokens, to its end or ``until(what it printed)``; wall seconds."""
    folder, log = copy(setup), setup.work / f"{name}.log"
    command = [sys.executable, "train.py", *words, "--dataset=bench", "--out_dir=out"]

    def reached() -> bool:
        return until(log.read_text(errors="replace"))

    seconds = watch(command, folder, setup.environ, log, setup.results.left(), reached)
    reached()  # it may have ended between two looks
    return seconds


def ruler(setup: Setup, name: str, val_tokens: int) -> float:
    """The loss of its last checkpoint over the first ``val_tokens`` of the validation set, -1 for all."""
    words = ["-c", RULER, setup.device, str(setup.recipe.model.block_size), str(val_tokens)]
    out, _ = setup.python(f"{name}-ruler", *words, cwd=copy(setup))
    return float(out.split()[-1])


def train(setup: Setup, task: Task) -> Measured:
    """The recipe's shape with nanoGPT's own choices: heads of 64 at most, no biases, AdamW, fp32 or bf16 autocast."""
    recipe, network = setup.recipe, setup.recipe.model
    folder = copy(setup)
    sequences = recipe.sequences_per_step
    micro_batch = setup.micro_batch(task.micro_batch)
    wide = network.n_embd // network.n_head > 64 and network.n_embd % 64 == 0
    settings = {
        "dataset": "bench",
        "device": setup.device,
        "compile": setup.device == "cuda",
        "block_size": network.block_size,
        "batch_size": micro_batch,
        "gradient_accumulation_steps": sequences // micro_batch,
        "n_layer": network.n_layer,
        "n_head": network.n_embd // 64 if wide else network.n_head,
        "n_embd": network.n_embd,
        "dropout": network.dropout,
        "max_iters": task.steps,
        "lr_decay_iters": task.steps,
        "log_interval": 1,
        "eval_iters": 1,
        # It evaluates and writes its checkpoint in the iteration of that number.
        "eval_interval": task.steps if task.val_tokens is not None else task.steps + 1,
        "always_save_checkpoint": task.val_tokens is not None,
        "beta2": recipe.train.beta2,
        "warmup_iters": min(100, task.steps // 10),
    }
    if task.lr is not None:
        settings |= {"learning_rate": task.lr, "min_lr": task.lr / 10}
    words = [f"--{key}={value}" for key, value in settings.items()]
    log = setup.work / f"{task.name}.log"
    command = [sys.executable, str(WRAPPER), "train.py", *words]
    seconds = watch(command, folder, setup.environ, log, setup.results.left())
    text = log.read_text(errors="replace")
    # Iteration 0 is timed with the evaluation before it.
    steps = [
        Step(int(n), float(ms) / 1e3, float(loss)) for n, loss, ms in LINE.findall(text) if n != "0"
    ]
    if not steps:
        raise Failed(f"{task.name}: no iterations in its output", text)
    val_loss = None
    if task.val_tokens is not None:
        val_loss = ruler(setup, task.name, task.val_tokens)
    peak = re.search(r"^peak memory (\d+)", text, re.MULTILINE)
    tokens = recipe.train.global_batch_tokens
    return Measured(steps, tokens, seconds, micro_batch, int(peak[1]) if peak else None, val_loss)


def copy(setup: Setup) -> Path:
    """The checkout's Python files and the recipe's tokens in nanoGPT's layout."""
    source, folder = Path(setup.peers["nanogpt"]).expanduser(), setup.work / "nanogpt"
    if not (source / "train.py").exists():
        raise Failed(f"{source} is no checkout of nanoGPT: it has no train.py")
    if folder.exists():
        return folder
    (folder / "data/bench").mkdir(parents=True)
    for path in source.glob("*.py"):
        shutil.copy(path, folder)
    shutil.copytree(source / "config", folder / "config")
    for split in ("train", "val"):
        stream = setup.stream(split)
        stream.slice(0, len(stream)).astype("<u2").tofile(folder / f"data/bench/{split}.bin")
    if setup.vocab_size != 50257:  # without this file it takes GPT-2's, padded
        (folder / "data/bench/meta.pkl").write_bytes(pickle.dumps({"vocab_size": setup.vocab_size}))
    return folder
