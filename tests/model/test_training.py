"""Training: the same curve for any number of processes, what is logged, and when it stops itself."""

from __future__ import annotations

import json

import pytest
import torch

from model.batches import micro_batch_size
from model.exit_status import ExitStatus
from model.metrics import read_metrics
from model.optim import learning_rate, make_optimizer
from model.recipe import TrainConfig
from model.runs import read_record
from tests.model.conftest import Lab
from tests.model.test_gpt import network
from tests.model.test_resume import final_bytes, losses


@pytest.mark.slow
def test_two_processes_give_the_curve_of_one(lab: Lab) -> None:
    lab.train("one", "max_steps=30", "micro_batch=4")
    lab.train("two", "max_steps=30", "micro_batch=4", processes=2)
    one, two = losses(lab.run_folder("one")), losses(lab.run_folder("two"))
    assert len(one) == 30
    assert max(abs(one[step] - two[step]) for step in one) < 1e-5
    val = [
        [m["loss"] for m in read_metrics(lab.run_folder(name) / "metrics.jsonl") if m["kind"] == "val"]
        for name in ("one", "two")
    ]
    assert val[0] == pytest.approx(val[1], abs=1e-5)


@pytest.mark.slow
def test_a_run_of_two_processes_stops_and_goes_on(lab: Lab) -> None:
    import signal

    # torchrun hands the signal to its processes and exits in its own way; the record tells the rest
    lab.train_until_step("two", 15, how=signal.SIGTERM, processes=2)
    record = read_record(lab.run_folder("two"))
    assert record is not None
    assert record.status == "unfinished"
    assert record.step >= 15
    lab.train("two", processes=1)  # on another number of processes
    lab.train("one")
    one, two = losses(lab.run_folder("one")), losses(lab.run_folder("two"))
    assert max(abs(one[step] - two[step]) for step in one) < 1e-4


def test_accumulating_gradients_changes_nothing(lab: Lab) -> None:
    lab.train("whole", "max_steps=20", "micro_batch=8")
    lab.train("parts", "max_steps=20", "micro_batch=3")  # 8 sequences: taken two at a time
    whole, parts = losses(lab.run_folder("whole")), losses(lab.run_folder("parts"))
    assert max(abs(whole[step] - parts[step]) for step in whole) < 1e-5


def test_it_learns_and_logs_each_step_once(lab: Lab) -> None:
    _, err = lab.train("run")
    lines = read_metrics(lab.run_folder("run") / "metrics.jsonl")
    steps = [m["step"] for m in lines if m["kind"] == "train"]
    assert steps == list(range(1, 61))
    first, last = lines[0], [m for m in lines if m["kind"] == "train"][-1]
    assert last["loss"] < 0.6 * first["loss"]
    assert {"tokens", "lr", "grad_norm", "tokens_per_second", "memory_bytes"} <= first.keys()
    assert [m["step"] for m in lines if m["kind"] == "val"] == [20, 40, 60]
    assert any((lab.run_folder("run") / "tensorboard").iterdir())
    assert "validation loss" in (lab.run_folder("run") / "log.txt").read_text()
    assert "step 60/60" in err
    assert "\x1b[" not in err  # off a terminal there is no colour
    record = read_record(lab.run_folder("run"))
    assert record is not None
    assert (record.status, record.step, record.max_steps) == ("finished", 60, 60)
    assert record.versions["torch"].startswith("2.")


def test_a_loss_that_is_no_number_stops_the_run_with_step_and_batch(lab: Lab) -> None:
    _, err = lab.train("wild", "lr=1e30", "grad_clip=0", "warmup_steps=0", status=ExitStatus.JOB_FAILED)
    assert "in step" in err
    assert "begins at tokens [" in err
    record = read_record(lab.run_folder("wild"))
    assert record is not None
    assert record.status == "failed"
    assert record.attempts[-1].reason is not None
    assert "the loss is" in record.attempts[-1].reason


def test_a_block_longer_than_the_data_is_named_with_its_line(lab: Lab) -> None:
    _, err = lab.train("long", "max_steps=2", "warmup_steps=0", "block_size=131072", "global_batch_tokens=131072", status=ExitStatus.USAGE)  # fmt: skip
    assert "argument 'block_size=131072': block_size (131072) is longer than" in err
    assert "Traceback" not in err


def test_a_run_begins_with_the_weights_of_another(lab: Lab) -> None:
    lab.train("first", "max_steps=40")
    lab.train("second", "max_steps=10", "init_from=first", "lr=1e-4", "warmup_steps=0")
    assert losses(lab.run_folder("second"))[1] < losses(lab.run_folder("first"))[5]
    assert final_bytes(lab.run_folder("first")) != final_bytes(lab.run_folder("second"))
    _, err = lab.train("third", "init_from=first", "n_layer=3", status=ExitStatus.ERROR)
    assert "does not fit the recipe's model" in err


def test_sample_and_evaluate_read_a_run(lab: Lab) -> None:
    lab.train("run", "max_steps=40")
    out, _ = lab.run("sample", "--name", "run", "prompt=the cat", "num_samples=2", "--json")
    samples = json.loads(out)["samples"]
    assert len(samples) == 2
    assert all(s.startswith("the cat") for s in samples)
    out, _ = lab.run("evaluate", "--name", "run", "--json")
    result = json.loads(out)
    assert result["perplexity"] == pytest.approx(2.718281828 ** result["loss"], rel=1e-6)
    assert result["bits_per_byte"] == pytest.approx(result["loss"] / 0.6931472, rel=1e-2)
    _, err = lab.run("sample", "--name", "rum", status=ExitStatus.NOT_FOUND)
    assert "there are: run" in err


def test_the_learning_rate_warms_up_and_decays() -> None:
    config = TrainConfig(max_steps=100, global_batch_tokens=2, lr=1.0, min_lr=0.1, warmup_steps=10)
    rates = [learning_rate(step, config) for step in range(100)]
    assert rates[0] == pytest.approx(1 / 11)
    assert rates[10] == 1.0
    assert rates[55] == pytest.approx(0.55)
    assert 0.1 <= rates[99] < 0.11
    linear = config.model_copy(update={"schedule": "linear", "decay_steps": 20})
    assert [learning_rate(step, linear) for step in (79, 80, 90)] == pytest.approx([1.0, 1.0, 0.55])
    constant = config.model_copy(update={"schedule": "constant"})
    assert learning_rate(99, constant) == 1.0


def test_decay_is_on_matrices_only() -> None:
    optimizer = make_optimizer(
        network("gpt2"), TrainConfig(max_steps=9, global_batch_tokens=2), torch.device("cpu")
    )
    for group in optimizer.param_groups:
        assert all((p.dim() >= 2) == (group["weight_decay"] > 0) for p in group["params"])


@pytest.mark.parametrize(("sequences", "most", "size"), [(12, 12, 12), (12, 16, 12), (12, 5, 4), (7, 3, 1)])
def test_micro_batches_are_of_one_size(sequences: int, most: int, size: int) -> None:
    assert micro_batch_size(sequences, most) == size
