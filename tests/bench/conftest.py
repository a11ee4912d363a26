"""A tiny recipe, and a script with the output of nanoGPT's train.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.model.conftest import Lab, lab

__all__ = ["lab"]

# Each of its steps takes 2 ms per sequence.
TRAIN = """
import sys
given = dict(word[2:].split("=") for word in sys.argv[1:] if "=" in word)
assert open("data/bench/train.bin", "rb").read(2)
print("step 0: train loss 4.2000, val loss 4.1000")
for i in range(int(given.get("max_iters", 3)) + 1):
    ms = 900.0 if i == 0 else 2.0 * int(given.get("batch_size", 1))
    print(f"iter {i}: loss {4 - i / 100:.4f}, time {ms:.2f}ms, mfu 1.00%")
"""


@pytest.fixture
def nanogpt_folder(tmp_path: Path) -> Path:
    """Make a fake nanoGPT checkout."""
    folder = tmp_path / "nanoGPT"
    (folder / "config").mkdir(parents=True)
    (folder / "train.py").write_text(TRAIN)
    return folder


@pytest.fixture
def bench_args(lab: Lab) -> list[str]:
    """Return the arguments of a bench on the tiny recipe: recipe, text and device."""
    return [str(lab.recipe), "--text", str(lab.folder / "text.txt"), "--device", "cpu"]


def read_results(path: Path) -> list[dict]:
    """Read the result lines of a bench."""
    return [json.loads(line) for line in path.read_text().splitlines()]
