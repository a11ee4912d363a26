"""Training: the same losses for any number of processes, logs, errors, initial weights."""

from __future__ import annotations

import json
import signal

import pytest

from job.exit_status import ExitStatus, RecipeError
from job.metrics import read_metrics
from job.paths import CONFIGS
from job.recipe import TrainConfig, load
from job.run_record import read_record
from job.schedules import learning_rate
from job.step_folders import step_folder, steps
from tests.model.conftest import Lab, Unbroken, free_port
from tests.model.test_resume import final_bytes, losses


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(lab: Lab) -> None:
    lab.train("one", "max_steps=30", "micro_batch=4")
    lab.train("two", "max_steps=30", "micro_batch=4", processes=2)
    one, two = losses(lab.run_folder("one")), losses(lab.run_folder("two"))
    assert len(one) == 30
    assert max(abs(one[step] - two[step]) for step in one) < 1e-5
    val = [
        [
            m["loss"]
            for m in read_metrics(lab.run_folder(name) / "metrics.jsonl")
            if m["kind"] == "val"
        ]
        for name in ("one", "two")
    ]
    assert val[0] == pytest.approx(val[1], abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("extra", [("optimizer=muon",), ("shard=true", "optimizer=muon")])
def test_ddp_and_fsdp_with_muon_have_the_losses_of_one_process(
    lab: Lab, unbroken: Unbroken, extra: tuple[str, ...]
) -> None:
    lab.train("two", "max_steps=10", "micro_batch=2", *extra, processes=2)
    one, two = losses(unbroken("max_steps=10", "optimizer=muon")), losses(lab.run_folder("two"))
    assert len(two) == 10
    assert max(abs(one[step] - two[step]) for step in two) < 1e-5


@pytest.mark.slow
def test_a_sharded_run_resumes_in_one_process(lab: Lab) -> None:
    words = ("optimizer=muon", "shard=true", "micro_batch=2")
    lab.train_until_step("two", 15, *words, how=signal.SIGTERM, processes=2)
    lab.train("two", *words, processes=1)
    lab.train("one", *words)
    one, two = losses(lab.run_folder("one")), losses(lab.run_folder("two"))
    assert len(two) == 60
    assert max(abs(one[step] - two[step]) for step in one) < 1e-4


@pytest.mark.slow
def test_a_run_of_two_processes_stops_and_resumes(lab: Lab, unbroken: Unbroken) -> None:
    # torchrun forwards the signal and has its own exit status; the record has the result
    lab.train_until_step("two", 15, how=signal.SIGTERM, processes=2)
    record = read_record(lab.run_folder("two"))
    assert record is not None
    assert record.status == "unfinished"
    assert record.step >= 15
    lab.train("two", processes=1)  # a different number of processes
    one, two = losses(unbroken()), losses(lab.run_folder("two"))
    assert max(abs(one[step] - two[step]) for step in one) < 1e-4


def test_accumulating_gradients_changes_nothing(lab: Lab, unbroken: Unbroken) -> None:
    lab.train(
        "parts", "max_steps=20", "micro_batch=3"
    )  # of 8 sequences two at a time: 3 does not divide 8
    full, parts = losses(unbroken("max_steps=20")), losses(lab.run_folder("parts"))
    assert max(abs(full[step] - parts[step]) for step in full) < 1e-5


def test_a_growing_batch_continues_in_the_data(lab: Lab) -> None:
    words = ("max_steps=20", "batch_schedule=[[5, 512], [12, 1024]]")
    lab.train("run", *words, "micro_batch=4")
    lines = [
        line
        for line in read_metrics(lab.run_folder("run") / "metrics.jsonl")
        if line["kind"] == "train"
    ]
    tokens = [line["tokens"] for line in lines]
    assert [tokens[step - 1] for step in (1, 5, 6, 12, 13, 20)] == [
        256,
        1280,
        1792,
        4864,
        5888,
        13056,
    ]
    lab.train_until_step("cut", 10, *words, "micro_batch=2", how=signal.SIGTERM)
    lab.train("cut", *words, "micro_batch=4")
    full, cut = losses(lab.run_folder("run")), losses(lab.run_folder("cut"))
    assert max(abs(full[step] - cut[step]) for step in full) < 1e-5


@pytest.mark.parametrize(
    "schedule", ["[[5]]", "[[9, 256], [5, 512]]", "[[5, 100]]", "[[9999, 256]]"]
)
def test_an_invalid_batch_schedule_is_an_error(schedule: str) -> None:
    with pytest.raises(RecipeError, match="batch_schedule"):
        load(CONFIGS / "quickstart.yaml", [f"batch_schedule={schedule}"])


def test_a_gpu_kernel_is_refused_on_a_cpu(lab: Lab) -> None:
    _, err = lab.train("run", "train.attention=cudnn", "--device", "cpu", status=ExitStatus.USAGE)
    assert "argument 'train.attention=cudnn': cudnn is a GPU kernel; on cpu use auto" in err
    assert not lab.run_folder("run").exists()


def test_less_memory_changes_nothing(lab: Lab, unbroken: Unbroken) -> None:
    lab.train("parts", "max_steps=20", "loss_chunk=60", "activation_checkpointing=true")
    full, parts = losses(unbroken("max_steps=20")), losses(lab.run_folder("parts"))
    assert max(abs(full[step] - parts[step]) for step in full) < 1e-5


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
    assert "\x1b[" not in err  # no colors without a terminal
    record = read_record(lab.run_folder("run"))
    assert record is not None
    assert (record.status, record.step, record.max_steps) == ("finished", 60, 60)
    assert record.versions["torch"].startswith("2.")


def test_samples_during_training_do_not_change_it(lab: Lab) -> None:
    lab.train("run", "max_steps=30", "sample_every=10")
    lab.train("plain", "max_steps=30")
    samples = sorted(path.name for path in (lab.run_folder("run") / "samples").iterdir())
    assert samples == ["step_00000010.txt", "step_00000020.txt", "step_00000030.txt"]
    assert losses(lab.run_folder("run")) == losses(lab.run_folder("plain"))


@pytest.mark.slow
def test_two_machines_have_the_losses_of_one(lab: Lab) -> None:
    lab.train("one", "max_steps=10")
    port = free_port()
    words = (str(lab.recipe), "max_steps=10", "--name", "two")
    machines = [lab.start("train", *words, processes=1, machine=(n, 2, port)) for n in range(2)]
    for machine in machines:
        out, err = machine.communicate(timeout=300)
        assert machine.returncode == 0, out + err
    one, two = losses(lab.run_folder("one")), losses(lab.run_folder("two"))
    assert len(two) == 10
    assert max(abs(one[step] - two[step]) for step in two) < 1e-5


def test_a_nan_loss_stops_the_run_and_reports_step_and_batch(lab: Lab) -> None:
    _, err = lab.train(
        "wild", "lr=1e30", "grad_clip=0", "warmup_steps=0", status=ExitStatus.JOB_FAILED
    )
    assert ": the loss is " in err
    assert "its batch starts at tokens [" in err
    record = read_record(lab.run_folder("wild"))
    assert record is not None
    assert record.status == "failed"
    assert record.attempts[-1].reason is not None
    assert "the loss is" in record.attempts[-1].reason


def test_an_invalid_prompt_is_reported_before_training(lab: Lab) -> None:
    words = ("data.dataset=letters", "tokenizer=chars", "prompt=the Ω")
    _, err = lab.train("greek", *words, status=ExitStatus.USAGE)
    assert "argument 'prompt=the Ω': the character 'Ω' (U+03A9) is not among the" in err
    assert err.rstrip().endswith("give a different prompt: prompt=TEXT")
    assert not lab.run_folder("greek").exists()


def test_a_damaged_recipe_of_a_run_is_reported_with_its_line(lab: Lab) -> None:
    lab.train("started", "max_steps=10")
    (lab.run_folder("started") / "recipe.yaml").write_text("model: {n_layer: [\n")
    (lab.run_folder("started") / "metrics.jsonl").write_text('null\n{"kind": "tr')
    _, err = lab.train("started", "max_steps=10", status=ExitStatus.USAGE)
    assert "Traceback" not in err
    assert "started/recipe.yaml:" in err


def test_a_block_longer_than_the_data_is_reported_with_its_argument(lab: Lab) -> None:
    words = ("max_steps=2", "warmup_steps=0", "block_size=131072", "global_batch_tokens=131072")
    _, err = lab.train("long", *words, status=ExitStatus.USAGE)
    assert "argument 'block_size=131072': block_size (131072) is longer than" in err
    assert "Traceback" not in err


def test_a_run_refuses_another_text_of_the_same_length(lab: Lab) -> None:
    lab.train("first", "max_steps=20")
    record = read_record(lab.run_folder("first"))
    assert record is not None
    text = lab.folder / "text.txt"
    assert (record.dataset["source"], record.dataset["train_tokens"]) == (str(text), 13_986)
    record.status = "running"  # as after SIGKILL
    record.write(lab.run_folder("first"))
    other = lab.folder / "reversed.txt"
    other.write_text(text.read_text()[::-1])
    lab.run("prepare", str(lab.recipe), "--source", str(other), "--force")
    _, err = lab.train("first", "max_steps=20", status=ExitStatus.ERROR)
    assert f"source was {other}, now {text}" in err
    lab.train("second", "max_steps=20", f"data.source={other}")  # a new run accepts and records it
    record = read_record(lab.run_folder("second"))
    assert record is not None
    assert record.dataset["source"] == str(other)
    original = text.read_text()
    text.write_text(original[::-1])
    lab.run("prepare", str(lab.recipe), "--force")
    _, err = lab.train("first", "max_steps=20", status=ExitStatus.ERROR)
    assert "run 'first' was trained on a different dataset: 13986 training and " in err
    text.write_text(original)
    lab.run("prepare", str(lab.recipe), "--force")
    lab.train("first", "max_steps=20")


def test_a_run_starts_from_the_weights_of_another(lab: Lab) -> None:
    lab.train("first", "max_steps=40")
    lab.train("second", "max_steps=10", "init_from=first", "lr=1e-4", "warmup_steps=0")
    assert losses(lab.run_folder("second"))[1] < losses(lab.run_folder("first"))[5]
    assert final_bytes(lab.run_folder("first")) != final_bytes(lab.run_folder("second"))
    _, err = lab.train("third", "init_from=first", "n_layer=3", status=ExitStatus.ERROR)
    assert "does not fit the recipe's model" in err


@pytest.mark.slow
def test_a_sharded_run_with_damaged_checkpoints_starts_again_from_its_initial_weights(
    lab: Lab,
) -> None:
    lab.train("first", "max_steps=20")
    words = (
        "max_steps=10",
        "init_from=first",
        "lr=1e-4",
        "warmup_steps=0",
        "shard=true",
        "micro_batch=2",
    )
    lab.train("second", *words, processes=2)
    run = lab.run_folder("second")
    before, weights = losses(run), final_bytes(run)
    for step in steps(run):
        (step_folder(run, step) / "model.safetensors").write_bytes(b"")
    record = read_record(run)
    assert record is not None
    record.status = "running"  # as after SIGKILL
    record.write(run)
    _, err = lab.train("second", *words, processes=2)
    assert "skipping a damaged checkpoint" in err
    assert losses(run) == before
    assert final_bytes(run) == weights


def test_damaged_or_missing_initial_weights_create_no_run(lab: Lab) -> None:
    lab.train("first", "max_steps=20")
    damaged = lab.run_folder("first") / "step_00000020"
    weights = damaged / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    _, err = lab.train("second", "max_steps=10", f"init_from={damaged}", status=ExitStatus.ERROR)
    assert "Traceback" not in err
    assert "is damaged: step_00000020: model.safetensors has changed since it was written" in err
    assert f"init_from={damaged.parent}" in err
    lab.train("second", "max_steps=10", "init_from=frist", status=ExitStatus.ERROR)
    # A run whose newest checkpoint is damaged provides the previous one.
    _, err = lab.train("second", "max_steps=10", "warmup_steps=0", f"init_from={damaged.parent}")
    assert "skipping a damaged checkpoint" in err
    assert losses(lab.run_folder("second"))[1] < losses(lab.run_folder("first"))[5]


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
    assert "runs: run" in err


def test_the_learning_rate_warms_up_and_decays() -> None:
    config = TrainConfig(max_steps=100, global_batch_tokens=2, lr=1.0, min_lr=0.1, warmup_steps=10)
    rates = [learning_rate(step, config) for step in range(100)]
    assert rates[0] == pytest.approx(1 / 11)
    assert rates[10] == 1.0
    assert rates[55] == pytest.approx(0.55)
    assert 0.1 < rates[99] < 0.11
    assert learning_rate(100, config) == pytest.approx(0.1)
    linear = config.model_copy(update={"schedule": "linear", "decay_steps": 20})
    assert [learning_rate(step, linear) for step in (79, 80, 90)] == pytest.approx([1.0, 1.0, 0.55])
    constant = config.model_copy(update={"schedule": "constant"})
    assert learning_rate(99, constant) == 1.0


def test_initial_weights_of_other_tokens_are_refused(lab: Lab) -> None:
    text = lab.folder / "text.txt"
    lab.train("first", "max_steps=10", "data.tokenizer=chars", "data.dataset=first")
    other = lab.folder / "upper.txt"
    other.write_text(text.read_text().upper())
    words = ["max_steps=10", "data.tokenizer=chars", "data.dataset=second", f"data.source={other}"]
    words += ["init_from=first", "prompt=THE"]
    _, err = lab.train("second", *words, status=ExitStatus.ERROR)
    assert "first learned tokenizer chars with other tokens than the dataset's chars" in err
    assert not lab.run_folder("second").exists()


def test_initial_weights_of_another_function_are_refused_with_the_key(lab: Lab) -> None:
    lab.train("first", "max_steps=5", "n_head=2")
    words = ("max_steps=5", "warmup_steps=0", "n_head=4")
    run = lab.run_folder("first")
    for source in ("first", str(run), str(run / "step_00000005")):
        _, err = lab.train("second", *words, f"init_from={source}", status=ExitStatus.ERROR)
        assert "model.n_head is 2, not 4" in err
    (run / "recipe.yaml").rename(run / "recipe.bak")
    _, err = lab.train("second", *words, "init_from=first", status=ExitStatus.ERROR)
    assert "has no recipe.yaml or no tokenizer.json" in err
    assert not lab.run_folder("second").exists()


@pytest.mark.parametrize("job", ["evaluate", "sample", "export"])
def test_the_network_of_a_trained_run_cannot_be_overridden(lab: Lab, job: str) -> None:
    lab.train("first", "max_steps=5", "n_head=2")
    _, err = lab.run(job, "--name", "first", "n_head=4", status=ExitStatus.USAGE)
    assert "argument 'n_head=4': run 'first' was trained with model.n_head=2" in err


def test_any_seed_works_with_dropout(lab: Lab) -> None:
    words = ("max_steps=2", "warmup_steps=0", "dropout=0.1", "variant=gpt2")
    lab.train("first", *words, f"train.seed={2**63 - 1}")
    lab.run("sample", "--name", "first", f"seed={2**63 - 1}", "max_new_tokens=2")
