"""nanochat's own scripts, unmodified. Skipped unless GPT_RUNNER_NANOCHAT names a checkout.

git clone https://github.com/karpathy/nanochat ../nanochat
pip install rustbpe kernels filelock wandb
GPT_RUNNER_NANOCHAT=../nanochat python -m pytest tests/runner/targets/modal/test_nanochat.py
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runner.nanochat_data import write_base
from tests.runner.targets.modal.conftest import ROOT, CloudFixture

NANOCHAT = os.environ.get("GPT_RUNNER_NANOCHAT", "")

# Small enough for a CPU: two blocks, 1,024 tokens, sequences of 64.
TINY = (
    "tokenizer.args=--vocab-size=1024 --max-chars=500000",
    "train.args=--depth=2 --head-dim=16 --max-seq-len=64 --device-batch-size=2 "
    "--total-batch-size=128 --eval-every=10 --eval-tokens=256 --sample-every=-1 --save-every=10 "
    "--num-iterations=20",
    "evaluate.args=--max-per-task=4 --split-tokens=256",
    "sft.args=--num-iterations=4 --eval-every=4 --eval-tokens=256 --chatcore-every=-1",
    "chat_eval.args=-x 2 -m 8",
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not Path(NANOCHAT, "nanochat", "gpt.py").is_file(),
        reason="GPT_RUNNER_NANOCHAT does not name a nanochat checkout",
    ),
]


@pytest.mark.parametrize("target", ["host", "cloud"])
def test_stages_run_from_the_tokenizer_to_the_evaluation(
    cloud: CloudFixture, tmp_path: Path, target: str
) -> None:
    folder = tmp_path / "nanochat"
    subprocess.run(["git", "clone", "-q", NANOCHAT, str(folder)], check=True)
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") * 20
    if target == "host":
        write_base(folder / "base", text)
    else:
        write_base(tmp_path / "base", text)
        cloud.run("push", "data", str(tmp_path / "base"), "--dest", "nanochat", "-y")
    no_gpu = [f"{stage}.gpu=null" for stage in ("train", "evaluate", "sft", "chat_eval")]
    words = ("pipeline", str(ROOT / "configs" / "nanochat.yaml"), "--dir", "../nanochat", *TINY)
    variables = {"OMP_NUM_THREADS": "1", "VIRTUAL_ENV": sys.prefix}
    process = cloud.start(target, *words, *no_gpu, "-y", **variables)
    out, err = process.communicate(timeout=1800)
    assert process.returncode == 0, out + err
    assert "data: skipped: its outputs exist" in err
    assert "Step 00020 | Validation bpb:" in out
    assert "CORE metric:" in out
    assert "ChatCORE metric:" in out
    volume = cloud.volume("data") if target == "cloud" else cloud.checkout / "volumes" / "data"
    assert list((volume / "nanochat" / "chatsft_checkpoints").glob("*/model_*.pt"))
    _, err = cloud.run(target, *words, *no_gpu, "--dry-run", **variables)
    assert "train: skipped: it finished" in err
    assert "sft: skipped: it finished" in err
