"""A run that is stopped at any point ends with the weights of an uninterrupted one."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest

from job.exit_status import ExitStatus
from job.metrics import read_metrics
from job.run_record import read_record
from job.step_folders import PARTIAL, step_folder, steps
from model import checkpoint
from tests.model.conftest import Lab, Unbroken
from tests.waiting import wait_for


def final_bytes(run: Path) -> tuple[bytes, bytes]:
    """Return weights and optimizer of the newest checkpoint as bytes on disk."""
    folder = run / (run / "latest").read_text().strip()
    return (folder / "model.safetensors").read_bytes(), (
        folder / "optimizer.safetensors"
    ).read_bytes()


def losses(run: Path) -> dict[int, float]:
    return {
        m["step"]: m["loss"] for m in read_metrics(run / "metrics.jsonl") if m["kind"] == "train"
    }


@pytest.mark.parametrize(
    "overrides", [(), ("dropout=0.1", "model.variant=gpt2")], ids=["plain", "dropout"]
)
def test_weights_are_bit_equal_after_kills_at_several_points(
    lab: Lab, unbroken: Unbroken, overrides: tuple[str, ...]
) -> None:
    for step in (5, 25, 40):  # before the first checkpoint, between two, at one
        assert (
            lab.train_until_step("killed", step, *overrides, how=signal.SIGKILL) == -signal.SIGKILL
        )
    lab.train("killed", *overrides)
    assert final_bytes(lab.run_folder("killed")) == final_bytes(unbroken(*overrides))
    assert losses(lab.run_folder("killed")) == losses(unbroken(*overrides))
    record = read_record(lab.run_folder("killed"))
    assert record is not None
    assert [a.reason for a in record.attempts] == ["killed"] * 3 + ["finished"]
    assert record.status == "finished"


def test_weights_are_bit_equal_after_kills_around_a_change_of_window(lab: Lab) -> None:
    words = ("max_steps=30", "n_layer=3", "attention_pattern=SSL", "window_size=16", "eval_every=8")
    words = (*words, "checkpoint_every=8")
    schedule = "window_schedule=[[0, 4], [20, 16]]"
    lab.train("unbroken", *words, schedule)
    for step in (
        12,
        26,
    ):  # resumes from step 8, before the change, and from step 24, after it
        assert (
            lab.train_until_step("killed", step, *words, schedule, how=signal.SIGKILL)
            == -signal.SIGKILL
        )
    lab.train("killed", *words, schedule)
    run = lab.run_folder("unbroken")
    assert final_bytes(lab.run_folder("killed")) == final_bytes(run)
    assert losses(lab.run_folder("killed")) == losses(run)
    lab.train("constant", *words)
    assert losses(lab.run_folder("constant"))[16] != losses(run)[16]
    # Evaluations during the run use its last window, as `evaluate` does.
    for step in steps(run):
        if step > 16:
            shutil.rmtree(step_folder(run, step))
    out, _ = lab.run("evaluate", "--name", "unbroken", "eval_tokens=1024", "--json")
    found, lines = json.loads(out), read_metrics(run / "metrics.jsonl")
    assert found["step"] == 16
    logged = {line["step"]: line["loss"] for line in lines if line["kind"] == "val"}
    assert found["loss"] == pytest.approx(logged[16], abs=1e-6)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT], ids=str)
def test_a_signal_writes_a_checkpoint_of_the_current_step(
    lab: Lab, unbroken: Unbroken, how: signal.Signals
) -> None:
    assert lab.train_until_step("stopped", 15, how=how) == ExitStatus.UNFINISHED
    run = lab.run_folder("stopped")
    record = read_record(run)
    assert record is not None
    assert (record.status, record.attempts[-1].reason) == ("unfinished", how.name)
    newest = checkpoint.newest(run, report=pytest.fail)
    assert newest is not None
    assert newest.step == record.step >= 15
    lab.train("stopped")
    record = read_record(run)
    assert record is not None
    assert record.attempts[-1].first_step == newest.step
    assert final_bytes(run) == final_bytes(unbroken())
    assert losses(run) == losses(unbroken())


def test_a_damaged_checkpoint_is_skipped_with_a_warning(lab: Lab, unbroken: Unbroken) -> None:
    assert lab.train_until_step("damaged", 35, how=signal.SIGKILL) == -signal.SIGKILL
    run = lab.run_folder("damaged")
    newest = step_folder(run, steps(run)[-1])
    data = bytearray((newest / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (newest / "model.safetensors").write_bytes(data)
    _, err = lab.train("damaged")
    assert f"skipping a damaged checkpoint: {newest.name}: model.safetensors has changed" in err
    assert final_bytes(run) == final_bytes(unbroken())


def test_a_partial_checkpoint_is_removed(lab: Lab) -> None:
    assert lab.train_until_step("half", 25, how=signal.SIGKILL) == -signal.SIGKILL
    run = lab.run_folder("half")
    full = step_folder(run, steps(run)[-1])
    partial = run / f"{PARTIAL}step_00000030"
    shutil.copytree(full, partial, dirs_exist_ok=True)
    (partial / "manifest.json").unlink()
    lab.train("half")
    assert not partial.exists()


def test_latest_is_repaired_after_a_kill_before_its_update(lab: Lab) -> None:
    # All steps are trained and saved; the next attempt still has to update `latest`.
    lab.train("stale")
    run = lab.run_folder("stale")
    (run / "latest").write_text("step_00000050\n")
    record = read_record(run)
    assert record is not None
    record.status = "running"
    record.write(run)
    lab.train("stale")
    assert (run / "latest").read_text() == "step_00000060\n"


def test_a_kill_between_the_last_checkpoint_and_the_end_leaves_no_old_one(lab: Lab) -> None:
    lab.train("a", "max_steps=20", "keep_last=1")
    run = lab.run_folder("a")
    shutil.copytree(step_folder(run, 20), step_folder(run, 10))
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "status": "running"}))
    lab.train("a", "max_steps=20", "keep_last=1")
    assert steps(run) == [20]


def test_a_finished_run_shows_its_sample_and_does_not_change(lab: Lab) -> None:
    lab.train("done")
    before = final_bytes(lab.run_folder("done"))
    out, err = lab.train("done")
    assert "is already finished" in err
    assert f"to train a new run: runner host train {lab.recipe} --name done-2" in err
    assert out.startswith("the ")
    assert final_bytes(lab.run_folder("done")) == before


def test_other_settings_are_refused_and_shown(lab: Lab) -> None:
    lab.train("started", "max_steps=20")
    _, err = lab.train("started", "max_steps=20", "lr=1e-3", status=ExitStatus.USAGE)
    assert "train.lr: 0.003 → 0.001" in err
    assert "--name" in err
    lab.train("started", "max_steps=20", "log_every=2")  # a setting that does not change the result


def test_an_extended_run_equals_one_of_that_length(lab: Lab, unbroken: Unbroken) -> None:
    words = ("schedule=constant", "dropout=0.1")
    lab.train("longer", *words, "max_steps=20")
    _, err = lab.train("longer", *words, "max_steps=40")
    assert "resuming run 'longer' from step 20" in err
    long = unbroken(*words, "max_steps=40")
    assert final_bytes(lab.run_folder("longer")) == final_bytes(long)
    assert losses(lab.run_folder("longer")) == losses(long)
    lab.train("longer", *words, "max_steps=40")  # finished
    _, err = lab.train("longer", *words[1:], "max_steps=60", status=ExitStatus.USAGE)
    assert "train.schedule: 'constant' → 'cosine'" in err


def test_a_run_refuses_a_second_process(lab: Lab) -> None:
    first = lab.start("train", str(lab.recipe), "max_steps=100000", "--name", "busy")
    wait_for((lab.run_folder("busy") / "metrics.jsonl").exists, 120)
    _, err = lab.train("busy", "max_steps=100000", status=ExitStatus.ERROR)
    assert "is already active" in err
    first.send_signal(signal.SIGTERM)
    assert first.wait(60) == ExitStatus.UNFINISHED


def test_the_last_and_the_best_checkpoints_are_kept(lab: Lab) -> None:
    lab.train("kept", "keep_last=2")
    run = lab.run_folder("kept")
    state = json.loads((step_folder(run, 60) / "state.json").read_text())
    assert set(steps(run)) == {50, 60, state["progress"]["best_step"]}


def test_run_and_dataset_survive_a_lost_record(lab: Lab, unbroken: Unbroken) -> None:
    """A disk can leave an empty run.json after a power cut."""
    lab.train_until_step("lost", 35, how=signal.SIGKILL)
    run = lab.run_folder("lost")
    (run / "run.json").write_bytes(b"")
    states = {path: path.read_text() for path in run.glob("step_*/state.json")}
    for path, text in states.items():
        tree = json.loads(text)
        path.write_text(json.dumps({**tree, "dataset": {**tree["dataset"], "fingerprint": "x"}}))
    _, err = lab.train("lost", status=ExitStatus.ERROR)
    assert "run 'lost' was trained on a different dataset" in err
    for path, text in states.items():
        path.write_text(json.dumps({**json.loads(text), "dataset": {}}))
    assert "run.json" in lab.train("lost", status=ExitStatus.ERROR)[1]
    for path, text in states.items():
        path.write_text(text)
    lab.train("lost")
    assert final_bytes(run) == final_bytes(unbroken())
