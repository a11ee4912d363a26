"""nanoGPT's own scripts, unmodified. Skipped unless GPT_RUNNER_NANOGPT names a checkout.

git clone https://github.com/karpathy/nanoGPT ../nanoGPT
GPT_RUNNER_NANOGPT=../nanoGPT python -m pytest tests/runner/targets/modal/test_nanogpt.py
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.runner.targets.modal.conftest import ROOT, CloudFixture

NANOGPT = os.environ.get("GPT_RUNNER_NANOGPT", "")

PIPELINE = str(ROOT / "configs" / "nanogpt_shakespeare.yaml")

# Small enough for a CPU: one block, a checkpoint every 10 steps.
TINY_MODEL = (
    "--n_layer=1 --n_embd=32 --eval_iters=1 --eval_interval=10 --log_interval=1 "
    "--always_save_checkpoint=True"
)

SAMPLE = "sample.args=--num_samples=1 --max_new_tokens=40"
WORDS = ("pipeline", PIPELINE, "--dir", "../nanoGPT", SAMPLE)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not Path(NANOGPT, "train.py").is_file(),
        reason="GPT_RUNNER_NANOGPT does not name a nanoGPT checkout",
    ),
]


@pytest.fixture
def text() -> str:
    """Return the text that prepare.py would download."""
    return "\n".join(f"{n} times {n} is {n * n}, said the queen to the king." for n in range(4000))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Clone the checkout."""
    subprocess.run(["git", "clone", "-q", NANOGPT, str(tmp_path / "nanoGPT")], check=True)
    return tmp_path / "nanoGPT"


def test_prepares_trains_and_samples_on_the_host(
    cloud: CloudFixture, folder: Path, text: str
) -> None:
    (folder / "data" / "shakespeare_char" / "input.txt").write_text(text)
    out, _ = cloud.run(
        "host", *WORDS, f"train.args={TINY_MODEL} --max_iters=20", OMP_NUM_THREADS="1"
    )
    assert "length of dataset in characters" in out
    assert "saving checkpoint to out-shakespeare-char" in out
    assert "Loading meta from data/shakespeare_char/meta.pkl" in out
    assert out.rstrip().endswith("---------------")
    kept = cloud.checkout / "volumes" / "checkpoints" / "nanoGPT" / "out-shakespeare-char"
    assert (kept / "ckpt.pt").stat().st_size > 100_000


def test_checkpoint_survives_a_preemption(
    strict_cloud: CloudFixture, folder: Path, text: str
) -> None:
    cloud = strict_cloud
    (folder.parent / "input.txt").write_text(text)  # untracked by git, so it is not uploaded
    place = "nanoGPT/data/shakespeare_char/input.txt"
    cloud.run("push", "data", str(folder.parent / "input.txt"), "--dest", place, "-y")
    steps = f"train.args={TINY_MODEL} --max_iters=400"
    process = cloud.start("cloud", *WORDS, steps, "train.gpu=null", "sample.gpu=null", "-y")
    cloud.modal.wait_until(lambda: cloud.modal.log().count("saving checkpoint") >= 2, 120)
    cloud.modal.preempt()
    out, err = cloud.finish(process)
    ends = [attempt["reason"] for attempt in cloud.ledger("nanogpt-shakespeare-train")["attempts"]]
    assert ends == ["preempted", "finished"]
    assert "runner: resuming with --init_from=resume" in err
    first, second = out.split("Resuming training from out-shakespeare-char")
    saved = [int(step) for step in re.findall(r"^step (\d+): .*\nsaving", first, re.MULTILINE)]
    steps_after = [int(step) for step in re.findall(r"^step (\d+):", second, re.MULTILINE)]
    assert steps_after[0] == saved[-1] > 0
    assert steps_after[-1] == 400
    assert second.rstrip().endswith("---------------")
    assert (cloud.volume("checkpoints") / "nanoGPT" / "out-shakespeare-char" / "ckpt.pt").is_file()
