"""Our recipe shakespeare_char_cpu against nanoGPT's CPU recipe, one after the other on this machine.

    git clone https://github.com/karpathy/nanoGPT ../nanoGPT
    python bench/nanogpt_cpu.py ../nanoGPT --text input.txt [--pairs 1] [key=value ...]

Both train on 12 x 64 characters a step with 4 layers, 4 heads, 128 channels: nanoGPT 2,000 steps, ours as
many as the recipe says. Each is timed as a whole
process, start-up, evaluations and checkpoints included, and its final weights are measured by one ruler:
the mean loss over the whole validation set in windows of 64. The checkout of nanoGPT is not changed but for
its own data/ and output folders.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# The line of nanoGPT's README for a machine with no GPU.
NANOGPT = [
    "train.py",
    "config/train_shakespeare_char.py",
    "--device=cpu",
    "--compile=False",
    "--eval_iters=20",
    "--log_interval=100",
    "--block_size=64",
    "--batch_size=12",
    "--n_layer=4",
    "--n_head=4",
    "--n_embd=128",
    "--max_iters=2000",
    "--lr_decay_iters=2000",
    "--dropout=0.0",
]

# Run in nanoGPT's folder: the loss of its checkpoint over the whole validation set.
RULER = """
import pickle, numpy as np, torch
from model import GPT, GPTConfig
saved = torch.load("out-shakespeare-char/ckpt.pt", map_location="cpu", weights_only=False)
network = GPT(GPTConfig(**saved["model_args"])).eval()
network.load_state_dict(saved["model"])
tokens = torch.from_numpy(np.fromfile("data/shakespeare_char/val.bin", dtype=np.uint16).astype(np.int64))
n = (len(tokens) - 1) // 64
x, y = tokens[: n * 64].view(n, 64), tokens[1 : n * 64 + 1].view(n, 64)
with torch.no_grad():
    losses = [network(a, b)[1].item() * len(a) for a, b in zip(x.split(128), y.split(128))]
print(sum(losses) / n)
"""


def timed(command: list[str], cwd: Path, environ: dict[str, str]) -> tuple[float, str]:
    """Wall seconds and the output of a command that must succeed."""
    started = time.perf_counter()
    done = subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return time.perf_counter() - started, done.stdout


def nanogpt(folder: Path, text: Path) -> tuple[float, float]:
    """Seconds and validation loss of nanoGPT."""
    environ = dict(os.environ)
    shutil.copy(text, folder / "data/shakespeare_char/input.txt")
    timed([sys.executable, "prepare.py"], folder / "data/shakespeare_char", environ)
    seconds, _ = timed([sys.executable, *NANOGPT], folder, environ)
    _, loss = timed([sys.executable, "-c", RULER], folder, environ)
    return seconds, float(loss.split()[-1])


def ours(text: Path, overrides: list[str]) -> tuple[float, float]:
    """Seconds and validation loss of ours, from nothing but prepared data."""
    with tempfile.TemporaryDirectory() as volumes:
        environ = {
            **os.environ,
            **{f"{name.upper()}_PATH": f"{volumes}/{name}" for name in ("data", "checkpoints", "cache")},
        }
        recipe = ["shakespeare_char_cpu", *overrides]
        prepare = ["-m", "model.prepare", "shakespeare_char_cpu", "--source", str(text.resolve())]
        timed([sys.executable, *prepare], ROOT, environ)
        seconds, _ = timed([sys.executable, "-m", "model.train", *recipe, "--name", "bench"], ROOT, environ)
        _, result = timed(
            [sys.executable, "-m", "model.evaluate", "--name", "bench", "--json"], ROOT, environ
        )
        return seconds, json.loads(result)["loss"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("nanogpt", type=Path, help="a checkout of nanoGPT")
    parser.add_argument("--text", type=Path, required=True, help="tinyshakespeare's input.txt")
    parser.add_argument("--pairs", type=int, default=1)
    parser.add_argument("overrides", nargs="*", help="of our recipe")
    arguments = parser.parse_intermixed_args()
    print(f"{'pair':>4}  {'nanoGPT':>16}  {'ours':>16}  {'time':>6}")
    for pair in range(arguments.pairs):
        (a, loss_a), (b, loss_b) = (
            nanogpt(arguments.nanogpt, arguments.text),
            ours(arguments.text, arguments.overrides),
        )
        print(f"{pair + 1:>4}  {a:6.1f} s {loss_a:.4f}   {b:6.1f} s {loss_b:.4f}   {b / a:5.2f}x", flush=True)


if __name__ == "__main__":
    main()
