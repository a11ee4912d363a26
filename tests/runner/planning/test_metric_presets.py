"""Presets of metrics, chosen by the folder's content and tested with the programs' output."""

from __future__ import annotations

from pathlib import Path

import pytest

from job.user_command.metric_sources import OutputMetrics
from runner.errors import RunnerError
from runner.planning.metric_presets import (
    OTHER,
    PRESETS,
    are_known,
    find_preset,
    read_metrics,
)

# For each program: a line of its source, its output, and its (step, max_steps, values).
PROGRAMS = {
    "nanoGPT": (
        'print(f"iter {iter_num}: loss {lossf:.4f}, time {dt*1000:.2f}ms")',
        "Overriding: max_iters = 20\n"
        "step 10: train loss 3.1, val loss 3.2\n"
        "iter 10: loss 3.0000, t",
        [(10, 20, {"val_loss": 3.2}), (10, 20, {"loss": 3.0})],
    ),
    "modded-nanogpt": (
        'print0(f"step:{step}/{train_steps} val_loss:{val_loss:.4f} step_avg:{x}ms")',
        "step:125/1490 val_loss:4.2801 train_time:7ms step_avg:5ms\nstep:126/1490 train_time:7ms",
        [(125, 1490, {"val_loss": 4.2801})],
    ),
    "nanochat": (
        "from nanochat.gpt import GPT",
        "Step 00010 | Validation bpb: 1.5\n"
        "step 00010/00021 (4.7%) | loss: 7.5 | lrm: 1.00 | dt: 1ms | tok/sec: 5,000 | bf16_mfu: 1\n"
        "train bpb: 1.3\nval bpb: 1.4\nCORE metric: 0.25\nChatCORE metric: 0.5\n"
        "Step 7/467 | Average reward: 0.125 | Average sequence length: 90.00",
        [
            (10, 0, {"val_bpb": 1.5}),
            (10, 21, {"loss": 7.5, "tokens_per_second": 5000.0}),
            (10, 21, {"val_bpb": 1.4}),
            (10, 21, {"core_metric": 0.25}),
            (10, 21, {"chatcore_metric": 0.5}),
            (10, 21, {"reward": 0.125}),
        ],
    ),
    "minGPT": (
        'print(f"iter_dt {trainer.iter_dt:.2f}ms; iter {trainer.iter_num}: train loss {loss:.5f}")',
        "trainer:\n    max_iters: 520\niter_dt 3.21ms; iter 10: train loss 2.50000\n"
        "train final score: 677/9500 = 7.13% correct\ntest final score: 30/500 = 6.00% correct",
        [(10, 520, {"loss": 2.5}), (10, 520, {"test_accuracy": 0.06})],
    ),
    "word_language_model": (
        "print('| epoch {:3d} | {:5d}/{:5d} batches | lr {:02.2f} | ms/batch {:5.2f} | '",
        "| epoch   1 |   200/ 2983 batches | lr 20.00 | ms/batch 9.4 | loss  7.63 | ppl 2063\n"
        "| end of epoch   1 | time: 30s | valid loss  5.82 | valid ppl 335\n"
        "| epoch   2 |   200/ 2983 batches | lr 20.00 | ms/batch 9.4 | loss  6.63 | ppl 763\n"
        "| End of training | test loss  5.12 | test ppl   167.38",
        [
            (200, 0, {"loss": 7.63, "lr": 20.0}),
            (200, 0, {"val_loss": 5.82}),
            (3183, 0, {"loss": 6.63, "lr": 20.0}),
            (3183, 0, {"test_loss": 5.12}),
        ],
    ),
    "Hugging Face Trainer": (
        "from transformers import Trainer\ntrainer = Trainer(model=model)",
        "Map: 100%|##| 70/70 [00:00<00:00]\r  0%|  | 0/30 [00:00<?, ?it/s]\r 33%|3 | 10/30 [00:01<"
        "\n{'loss': '2.45', 'grad_norm': '1.2', 'learning_rate': '1e-05', 'epoch': '1'}\n"
        "100%|#| 4/4 [00:00<00:00]\r{'eval_loss': 2.5, 'epoch': 1.0}",
        [(10, 30, {"loss": 2.45, "grad_norm": 1.2, "lr": 1e-5}), (10, 30, {"val_loss": 2.5})],
    ),
    "Lightning": (
        "import lightning as L\nclass Model(L.LightningModule):",
        "Epoch 0:  50%|##| 10/20 [00:01<, v_num=0, train_loss_step=2.5]\r"
        "Epoch 1:  50%|##| 10/20 [00:01<, v_num=0, train_loss=1.5, val_loss=1.7]",
        [(10, 0, {"loss": 2.5}), (30, 0, {"loss": 1.5, "val_loss": 1.7})],
    ),
    # build-nanogpt, llama2.c, ng-video-lecture, makemore, LLMs-from-scratch, litgpt, Fabric,
    # microgpt and short scripts
    "a typical program": (
        "import lightning as L\nfabric = L.Fabric()",
        "using loss scale 65536, warmup step 5\nvalidation loss: 10.9\n"
        "step     0 | loss: 9.5 | lr 8e-07 | norm: 1.3 | dt: 1.45ms | tok/sec: 123.45\n"
        "20 | loss 8.5 | lr 1e-4 | 321.11ms | mfu 1.00%\n"
        "step 30: train loss 7.5, val loss 7.6\n"
        "step 40 train loss: 6.5 test loss: 6.6\n"
        "Ep 1 (Step 000050): Train loss 5.5, Val loss 5.6\n"
        "Epoch 1 | iter 60 step 1 | loss train: 4.5, val: n/a | iter time: 512.22 ms (step)\n"
        "Epoch 1 | iter 70 step 1 | loss train: 4.4, val: 4.6 | iter time: 512.22 ms (step)\n"
        "epoch: 0 - iteration: 80 - loss 3.5\nval loss 3.6\n"
        "step   90 / 100 | loss 2.5\nstep=95 train_loss=1.5 val/loss=1.6\n"
        "{'loss': 1.4, 'step': 99}\nlossless 3, Loss after epoch 100: nan",
        [
            (0, 0, {"val_loss": 10.9}),
            (0, 0, {"loss": 9.5}),
            (20, 0, {"loss": 8.5}),
            (30, 0, {"loss": 7.5, "val_loss": 7.6}),
            (40, 0, {"loss": 6.5, "test_loss": 6.6}),
            (50, 0, {"loss": 5.5, "val_loss": 5.6}),
            (60, 0, {"loss": 4.5}),
            (70, 0, {"loss": 4.4, "val_loss": 4.6}),
            (80, 0, {"loss": 3.5}),
            (80, 0, {"val_loss": 3.6}),
            (90, 100, {"loss": 2.5}),
            (95, 100, {"loss": 1.5, "val_loss": 1.6}),
            (99, 100, {"loss": 1.4}),
        ],
    ),
}


@pytest.mark.parametrize("name", [preset.name for preset in (*PRESETS, OTHER)])
def test_lines_of_the_program(tmp_path: Path, name: str) -> None:
    source, output, expected = PROGRAMS[name]
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "go.py").write_text(f"{source}\n")
    preset = find_preset(tmp_path, ["torchrun", "-m", "scripts.go"])
    assert preset.name == name
    metrics = OutputMetrics(preset.patterns)
    metrics.add("stdout", f"{output}\n".encode())
    assert [tuple(row) for row in metrics.rows()] == expected


def test_losses_without_a_step_are_counted() -> None:
    metrics = OutputMetrics(OTHER.patterns)
    metrics.add("stdout", b"val loss 3.5\nloss: 3.0\nloss: 2.9\nval loss: 2.8\n")
    assert [row.step for row in metrics.rows()] == [0, 1, 2, 2]
    metrics.add("stdout", b"step 1 loss: 2.7\n")
    assert [row.step for row in metrics.rows()] == [1]


def test_given_patterns_replace_the_preset(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(PROGRAMS["nanoGPT"][0])
    assert are_known(read_metrics([], tmp_path, ["python", "x.py"]))
    assert not are_known(read_metrics([], tmp_path / "empty", ["python", "x.py"]))
    assert read_metrics(["none"], tmp_path, ["python", "train.py"]) == ()
    assert read_metrics([r"loss=l=(\d)"], tmp_path, []) == (("loss", r"l=(\d)"),)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("loss", "expected NAME=REGEX, such as"),
        ("loss=loss", "'loss' has no group; put the number in parentheses"),
        ("loss=(", "invalid regular expression '('"),
        ("lo ss=(.)", "invalid name 'lo ss'"),
        ("none loss=(.)", "--metric none reads nothing; remove it"),
    ],
)
def test_errors_are_named(tmp_path: Path, option: str, message: str) -> None:
    options = option.split() if option.startswith("none") else [option]
    with pytest.raises(RunnerError) as caught:
        read_metrics(options, tmp_path, [])
    assert message in caught.value.message
