"""Out of memory, losses or weights that become NaN, and an emulated number format."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

from job.exit_status import ExitStatus
from job.paths import CHECKOUT
from job.recipe import load
from job.run_record import read_record
from job.run_session import dtype_warnings
from job.step_folders import steps
from model import device as devices
from tests.model.conftest import Lab
from tests.model.test_resume import final_bytes, losses

# A network that runs out of memory with more than {most} sequences.
SMALL_MEMORY = """
import os, torch
from model.gpt import GPT
full = GPT.forward
def forward(self, ids, targets=None):
    loss = full(self, ids, targets)
    if self.training and ids.size(0) > {most} and os.environ.get("RANK", "1") == "1":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\\nmore lines")
    return loss
GPT.forward = forward
from job.arguments import leave
from model.train import main
leave(main({words!r}))
"""

NAN_WEIGHTS = """
import torch, model.step as steps
run = steps.StepRunner.run
def poisoned(self, step):
    result = run(self, step)
    if step == 24:
        with torch.no_grad():
            self.network.wte.weight[0, 0] = float("inf")
    return result
steps.StepRunner.run = poisoned
from model.train import main
raise SystemExit(main({words!r}))
"""

# The first evaluation returns NaN.
NAN_FIRST_EVALUATION = """
import math, model.trainer as trainer
real, losses = trainer.validation_loss, []
def at_first(*given):
    losses.append(real(*given))
    return losses[-1] if losses[1:] else (math.nan, 1)
trainer.validation_loss = at_first
from model.train import main
raise SystemExit(main({words!r}))
"""


def words(lab: Lab, name: str, *overrides: str) -> list[str]:
    return [str(lab.recipe), "variant=gpt2", *overrides, "--name", name]


def test_out_of_memory_halves_the_micro_batch_and_changes_nothing_else(lab: Lab) -> None:
    common = ("max_steps=20", "dropout=0.1")
    code = SMALL_MEMORY.format(most=3, words=words(lab, "small", *common, "micro_batch=8"))
    _, err = lab.run_python(code)
    assert "out of memory with micro_batch 8: continuing with 4, in 2 micro-batches" in err
    assert "with micro_batch 4: continuing with 2, in 4 micro-batches" in err
    lab.run("train", *words(lab, "from_the_start", *common, "micro_batch=2"))
    assert losses(lab.run_folder("small")) == losses(lab.run_folder("from_the_start"))
    assert final_bytes(lab.run_folder("small")) == final_bytes(lab.run_folder("from_the_start"))


def test_both_processes_halve_the_micro_batch_if_one_runs_out_of_memory(lab: Lab) -> None:
    # The modern network has buffers, which DDP must not broadcast.
    script, common = lab.folder / "small.py", ("variant=modern", "max_steps=20")
    script.write_text(
        SMALL_MEMORY.format(most=3, words=words(lab, "small", *common, "micro_batch=4"))
    )
    _, err = lab.run(str(script), processes=2)
    assert "out of memory with micro_batch 4: continuing with 2, in 2 micro-batches" in err
    lab.run("train", *words(lab, "from_the_start", *common, "micro_batch=2"), processes=2)
    assert losses(lab.run_folder("small")) == losses(lab.run_folder("from_the_start"))
    assert final_bytes(lab.run_folder("small")) == final_bytes(lab.run_folder("from_the_start"))


def test_a_single_sequence_that_does_not_fit_fails_the_run(lab: Lab) -> None:
    code = SMALL_MEMORY.format(most=0, words=words(lab, "none"))
    _, err = lab.run_python(code, status=ExitStatus.JOB_FAILED)
    assert "too little memory for one sequence (CUDA out of memory" in err
    assert "Traceback" not in err
    record = read_record(lab.run_folder("none"))
    assert record is not None
    assert record.status == "failed"


def test_auto_selects_a_micro_batch_on_a_cpu(lab: Lab) -> None:
    _, err = lab.train("auto", "max_steps=10", "micro_batch=auto")
    assert "(1 x 8 x 32) on cpu" in err


def test_non_finite_weights_are_never_written(lab: Lab) -> None:
    # Row 0 of the embedding is a byte that the text does not have, so the loss stays finite.
    code = NAN_WEIGHTS.format(words=words(lab, "wild", "variant=modern", "max_steps=60"))
    _, err = lab.run_python(code, status=ExitStatus.JOB_FAILED)
    folder = lab.run_folder("wild")
    assert (folder / "latest").read_text().strip() == "step_00000020"
    assert steps(folder)[-1] == 20
    assert "the weights after step 30 are NaN or infinite" in err
    assert f"train.init_from={folder}/step_00000020" in err
    record = read_record(folder)
    assert record is not None
    assert record.attempts[-1].reason is not None
    assert "are NaN or infinite" in record.attempts[-1].reason


def test_stop_on_nan_can_be_switched_off(lab: Lab) -> None:
    overrides = ("lr=1e30", "grad_clip=0", "warmup_steps=0", "max_steps=30", "stop_on_nan=false")
    _, err = lab.train("wild", *overrides, status=ExitStatus.JOB_FAILED)
    assert err.count("stop_on_nan is false: training continues") == 1
    assert "step 30/30" in err
    assert "the last loss is nan" in err


def test_a_nan_evaluation_is_not_the_best(lab: Lab) -> None:
    overrides = (
        "max_steps=30",
        "eval_every=10",
        "checkpoint_every=30",
        "keep_last=1",
        "stop_on_nan=false",
    )
    lab.run_python(NAN_FIRST_EVALUATION.format(words=words(lab, "wild", *overrides)))
    record = read_record(lab.run_folder("wild"))
    assert record is not None
    assert record.best_val_loss == record.val_loss
    assert steps(lab.run_folder("wild")) == [30]


def test_a_mistake_in_the_recipe_is_reported_before_torch_is_imported(tmp_path: Path) -> None:
    """The import takes seconds."""
    recipe = tmp_path / "bad.yaml"
    recipe.write_text("train: {max_steps: 0x12zz}\n")
    code = (
        "import sys; from model.train import main; status = main(sys.argv[1:])\n"
        "sys.exit('torch was imported' if 'torch' in sys.modules else status)"
    )
    command = [sys.executable, "-c", code, str(recipe)]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (ExitStatus.USAGE, "")
    assert "bad.yaml:1: train.max_steps: expected an integer, got '0x12zz'" in done.stderr


def test_a_number_format_that_the_device_emulates_gets_a_warning(lab: Lab) -> None:
    is_emulated = not devices.has_bfloat16(torch.device("cpu"))
    for job, *words in (
        ("train", str(lab.recipe), "--name", "forced", "dtype=bfloat16", "max_steps=2"),
        ("evaluate", "--name", "forced"),
    ):
        _, shown = lab.run(job, *words)
        assert ("warning: dtype=bfloat16: this device has no known" in shown) == is_emulated
    _, shown = lab.train("chosen", "max_steps=2")
    assert "warning: dtype" not in shown
    _, shown = lab.run("evaluate", "--name", "forced", "dtype=auto")
    assert "warning: dtype" not in shown
    forced = load(lab.recipe, ["dtype=bfloat16"])
    assert dtype_warnings(forced, has_bfloat16=True) == []
    (warning,) = dtype_warnings(forced, has_bfloat16=False)
    assert warning.endswith("30 times as long as in float32. Use dtype=auto")
