"""The plan is a pure value, and says all that a launch will do."""

from __future__ import annotations

import builtins
import json
import os
import subprocess
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest

from job.recipe import Recipe
from runner.errors import RunnerError
from runner.jobs import JOBS
from runner.paths import path_in
from runner.plan import Plan, TargetState, Volume
from runner.planning.plan import make_plan
from runner.planning.show import rows
from runner.request import Request
from runner.runs.store import is_dataset_ready
from runner.target import LocalVolume

SETTINGS = Recipe.model_validate(
    {
        "name": "warm",
        "data": {"dataset": "letters"},
        "train": {"max_steps": 100, "global_batch_tokens": 2048},
    }
)

REQUEST = Request(JOBS["train"], "warm", Path("/home/me/gpt/configs/warm.yaml"), settings=SETTINGS)

VOLUMES = tuple(
    Volume(name, f"/home/me/gpt/volumes/{name}", f"/vol/{name}")
    for name in ("data", "checkpoints", "cache")
)

INSIDE = TargetState(
    target="local", checkout="/home/me/gpt", workspace="/workspace", volumes=VOLUMES, image="gpt"
)

HERE = replace(
    INSIDE,
    target="host",
    contained=False,
    image=None,
    workspace="/home/me/gpt",
    volumes=tuple(replace(volume, inside=volume.here) for volume in VOLUMES),
)


def plan(facts: TargetState = INSIDE, **request: object) -> Plan:
    return make_plan(replace(REQUEST, **request), facts)


class TestPurity:
    def test_the_same_input_gives_the_same_plan(self) -> None:
        assert plan() == plan()

    def test_it_touches_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def touched(*_: object, **__: object) -> None:
            raise AssertionError("a plan has no side effects")

        for module, name in (
            (subprocess, "Popen"),
            (os, "stat"),
            (os, "mkdir"),
            (os, "open"),
            (builtins, "open"),
        ):
            monkeypatch.setattr(module, name, touched)
        made = plan(source="/home/me/texts/a.txt", job=JOBS["prepare"], gpus=1)
        rows(made)
        monkeypatch.undo()
        assert made.job == "prepare"

    def test_it_can_not_be_changed(self) -> None:
        with pytest.raises(FrozenInstanceError):
            plan().run = "other"  # type: ignore[misc]

    def test_it_can_be_written_as_json(self) -> None:
        assert json.loads(json.dumps(plan().facts()))["run"] == "warm"


class TestCommand:
    def test_training(self) -> None:
        command = plan(overrides=("lr=1e-3",), device="cpu").command
        assert command == (
            "python",
            "-m",
            "model.train",
            "configs/warm.yaml",
            "lr=1e-3",
            "--name",
            "warm",
            "--device",
            "cpu",
        )

    def test_several_gpus_are_processes_under_torchrun(self) -> None:
        command = plan(replace(INSIDE, gpus=8), gpus=8).command
        assert command[:4] == ("torchrun", "--standalone", "--nproc-per-node=8", "-m")
        assert command[4:6] == ("--", "model.train")

    def test_torchrun_leaves_time_for_a_checkpoint(self) -> None:
        environment = dict(plan(replace(INSIDE, gpus=2), gpus=2).environment)
        assert environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] == "100"
        assert "TORCH_ELASTIC_SHUTDOWN_TIMEOUT" not in dict(plan().environment)

    def test_preparing_names_no_run(self) -> None:
        command = plan(job=JOBS["prepare"], run="prepare-letters").command
        assert command == ("python", "-m", "corpus.prepare", "configs/warm.yaml")

    def test_sampling_reads_a_run_and_no_recipe(self) -> None:
        facts = replace(INSIDE, step=100)
        command = plan(
            facts, job=JOBS["sample"], recipe=None, overrides=("temperature=0.5",)
        ).command
        assert command == ("python", "-m", "model.sample", "temperature=0.5", "--name", "warm")

    def test_an_export_goes_into_the_runs_folder(self) -> None:
        command = plan(replace(INSIDE, step=100), job=JOBS["export"], recipe=None).command
        assert command[-2:] == ("--output", "/vol/checkpoints/warm/huggingface")

    def test_json_is_passed_on(self) -> None:
        assert plan(as_json=True).command[-1] == "--json"

    def test_the_launch_is_told_to_the_record(self) -> None:
        facts = replace(INSIDE, gpus=2, git=(("commit", "abc"), ("dirty", True)))
        launch = json.loads(dict(plan(facts, gpus=2).environment)["RUN_LAUNCH"])
        assert launch == {
            "target": "local",
            "gpu": "2",
            "image": "gpt",
            "git": {"commit": "abc", "dirty": True},
        }


class TestPaths:
    """A path means the same on every target, else a run could not go on on another one."""

    @pytest.mark.parametrize("facts", [HERE, INSIDE])
    def test_what_lies_in_the_checkout_is_relative_to_it(self, facts: TargetState) -> None:
        made = plan(facts, overrides=("data.source=/home/me/gpt/texts/a.txt",))
        assert made.overrides == ("data.source=texts/a.txt",)

    def test_the_hubs_names_are_no_paths(self, tmp_path: Path) -> None:
        (tmp_path / "gpt2").mkdir()
        assert [path_in(f"init_from={name}") for name in ("gpt2", "hf://me/small")] == [None, None]
        assert path_in("source=gpt2") == "gpt2"
        assert path_in("train.init_from=./gpt2") == "./gpt2"

    @pytest.mark.parametrize("facts", [HERE, INSIDE])
    def test_what_lies_outside_keeps_its_name(self, facts: TargetState) -> None:
        made = plan(facts, overrides=("data.source=/home/me/texts/*.jsonl",))
        assert made.overrides == ("data.source=/home/me/texts/*.jsonl",)

    def test_and_is_mounted_read_only(self) -> None:
        made = plan(overrides=("data.source=/home/me/texts/*.jsonl",))
        assert made.volumes[-1] == Volume(
            "given", "/home/me/texts", "/home/me/texts", writable=False
        )

    def test_a_system_folder_is_not_mounted_over(self) -> None:
        made = plan(overrides=("source=/usr/share/dict/words",))
        assert made.overrides == ("source=/vol/given/usr/share/dict/words",)
        assert made.volumes[-1].inside == "/vol/given/usr/share/dict/words"

    def test_what_lies_in_a_volume_is_found_there(self) -> None:
        recipe = Path("/home/me/gpt/volumes/checkpoints/warm/recipe.yaml")
        assert plan(recipe=recipe).recipe == "/vol/checkpoints/warm/recipe.yaml"

    def test_an_export_can_not_go_into_the_code(self) -> None:
        with pytest.raises(RunnerError, match="read-only"):
            plan(
                replace(INSIDE, step=1),
                job=JOBS["export"],
                recipe=None,
                into=Path("/home/me/gpt/out"),
            )


class TestWords:
    @pytest.mark.parametrize(
        ("facts", "words"),
        [
            ({}, "trains 100 steps"),
            ({"step": 50}, "goes on from step 50 of 100"),
            ({"step": 100}, "finished at step 100: shows its sample; --name starts another run"),
            ({"dataset_ready": False}, "prepares the dataset letters first; it is not there yet"),
            (
                {"image_built": False},
                "builds the image first, which takes some minutes and is done once",
            ),
        ],
    )
    def test_what_it_will_do(self, facts: dict[str, object], words: str) -> None:
        assert words in plan(replace(INSIDE, **facts)).steps

    def test_published_weights_are_said_to_be_downloaded_and_may_need_a_token(self) -> None:
        asked = SETTINGS.model_copy(
            update={
                "train": SETTINGS.train.model_copy(
                    update={"init_from": "hf://me/small", "max_steps": 0}
                )
            }
        )
        facts = replace(INSIDE, weights_ready=False, secrets=("WANDB_API_KEY", "HF_TOKEN"))
        made = plan(facts, settings=asked)
        assert made.steps == (
            "downloads the weights hf://me/small first",
            "measures hf://me/small, trains nothing",
        )
        assert made.secrets == ("HF_TOKEN",)
        assert (
            plan(replace(facts, weights_ready=True), settings=asked).steps[0].startswith("measures")
        )
        assert (
            plan(replace(facts, step=0), settings=asked).steps[0].startswith("finished at step 0")
        )

    def test_a_secret_is_named_where_the_recipe_asks_for_it(self) -> None:
        facts = replace(INSIDE, secrets=("WANDB_API_KEY", "HF_TOKEN"))
        asked = SETTINGS.model_copy(
            update={"train": SETTINGS.train.model_copy(update={"wandb_project": "p"})}
        )
        assert plan(facts).secrets == ()
        assert plan(facts, settings=asked).secrets == ("WANDB_API_KEY",)

    def test_a_key_that_is_missing_is_said(self) -> None:
        asked = SETTINGS.model_copy(
            update={"train": SETTINGS.train.model_copy(update={"wandb_project": "p"})}
        )
        assert any("no WANDB_API_KEY" in words for words in plan(settings=asked).steps)


class TestMeasurement:
    def test_it_needs_neither_recipe_nor_run(self) -> None:
        made = plan(
            replace(INSIDE, step=None),
            job=JOBS["roofline"],
            recipe=None,
            settings=None,
            run="roofline",
        )
        assert made.command[-2:] == ("-m", "bench.roofline")


class TestRefusals:
    @pytest.mark.parametrize(
        ("facts", "request_", "message", "code"),
        [
            ({"missing": ("torch",), "remedy": "pip install t"}, {}, "type:\n  pip install t\n", 1),
            ({"busy": "running on local"}, {}, "runner stop warm", 1),
            ({"gpus": 1}, {"gpus": 4}, "4 GPUs are asked for and local has 1", 2),
            ({"gpus": 0, "gpu_remedy": "do this"}, {"gpus": 2}, "has none; do this", 2),
            ({"contained": False}, {"gpus": 2, "device": "mps"}, "mps is one GPU", 2),
            ({}, {"device": "mps"}, "which local does not see; type: runner host", 2),
            ({}, {"job": JOBS["sample"], "recipe": None}, "has no checkpoint yet", 102),
            (
                {"finished": True},
                {"job": JOBS["sample"], "recipe": None},
                "its checkpoints are gone; to train it anew: runner local /home/me/gpt/volumes/checkpoints/warm/recipe.yaml --name warm-2",
                102,
            ),
        ],
    )
    def test_what_can_not_be_done(self, facts, request_, message: str, code: int) -> None:
        with pytest.raises(RunnerError) as caught:
            plan(replace(INSIDE, **facts), **request_)
        assert message in caught.value.message
        assert caught.value.exit_code == code

    def test_processes_on_the_cpu_need_no_gpu(self) -> None:
        assert plan(replace(INSIDE, gpus=0), gpus=2, device="cpu").gpus == 2


def test_a_dataset_is_judged_by_its_files_and_not_by_its_name(tmp_path: Path) -> None:
    data, folder = LocalVolume(tmp_path), tmp_path / "train.bin"
    assert is_dataset_ready(data, "train.bin") is False
    folder.mkdir()
    (folder / "val_000000.bin").touch()
    assert is_dataset_ready(data, "train.bin") is False
    (folder / "a_train_000001.bin").touch()
    assert is_dataset_ready(data, "train.bin") is None
    (folder / "meta.json").touch()
    assert is_dataset_ready(data, "train.bin") is True
