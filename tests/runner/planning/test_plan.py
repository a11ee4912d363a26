"""make_plan is pure, and a plan has everything that a launch will do."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest

from job.recipe import Recipe
from job.run_record import RunRecord, RunStatus
from runner.errors import RunnerError
from runner.launch.execute import rows
from runner.paths import path_in
from runner.plan import ImageState, JobEnvironment, Plan, TargetState, Volume
from runner.planning.plan import make_plan
from runner.request import (
    BenchmarkRequest,
    ExportRequest,
    PrepareRequest,
    Request,
    SampleRequest,
    TargetOptions,
    TrainRequest,
)
from runner.runs.volume import is_dataset_ready
from runner.target import LocalVolume
from tests.runner.fake_target import change_state

SETTINGS = Recipe.model_validate(
    {
        "name": "warm",
        "data": {"dataset": "letters"},
        "train": {"max_steps": 100, "global_batch_tokens": 2048},
    }
)

RECIPE = Path("/home/me/gpt/configs/warm.yaml")
TRAIN = TrainRequest(run="warm", recipe=RECIPE, settings=SETTINGS)
SAMPLE = SampleRequest(run="warm")

VOLUMES = tuple(
    Volume(name, f"/home/me/gpt/volumes/{name}", f"/vol/{name}")
    for name in ("data", "checkpoints", "cache")
)

CONTAINER = TargetState(
    "local", "/home/me/gpt", JobEnvironment("/workspace", VOLUMES), image=ImageState("gpt")
)

HOST = TargetState(
    "host",
    "/home/me/gpt",
    JobEnvironment(
        "/home/me/gpt",
        tuple(replace(volume, container_path=volume.host_path) for volume in VOLUMES),
        is_container=False,
    ),
)


def plan(state: TargetState = CONTAINER, request: Request = TRAIN, **changes: Any) -> Plan:
    """Return the plan of a training, with changes of its request."""
    return make_plan(replace(request, **changes), state)


def with_wandb() -> Recipe:
    train = SETTINGS.train.model_copy(update={"wandb_project": "p"})
    return SETTINGS.model_copy(update={"train": train})


class TestPurity:
    def test_the_same_input_gives_the_same_plan(self) -> None:
        assert plan() == plan()

    def test_it_has_no_side_effects(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object, **__: object) -> None:
            raise AssertionError("a plan has no side effects")

        for name in ("subprocess.Popen", "os.stat", "os.mkdir", "os.open", "builtins.open"):
            monkeypatch.setattr(name, fail)
        made = plan(request=PrepareRequest(run="p", recipe=RECIPE, source="/home/me/texts/a.txt"))
        rows(made)
        monkeypatch.undo()
        assert made.job == "prepare"

    def test_a_plan_is_immutable(self) -> None:
        with pytest.raises(FrozenInstanceError):
            plan().run = "other"  # type: ignore[misc]

    def test_a_plan_as_json(self) -> None:
        tree = json.loads(json.dumps(plan().to_json()))
        assert (tree["run"], tree["image"], tree["gpus"]) == ("warm", "gpt", 1)
        assert tree["command"][:3] == ["python", "-m", "model.train"]


class TestCommand:
    def test_training(self) -> None:
        command = plan(overrides=("lr=1e-3",), device="cpu").process.command
        words = "python -m model.train configs/warm.yaml lr=1e-3 --name warm --device cpu"
        assert command == tuple(words.split())

    def test_several_gpus_are_processes_under_torchrun_which_waits_for_a_checkpoint(self) -> None:
        process = plan(replace(CONTAINER, gpus=8), gpus=8).process
        words = "torchrun --standalone --nproc-per-node=8 -m -- model.train"
        assert process.command[:6] == tuple(words.split())
        assert dict(process.environment)["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] == "100"
        assert "TORCH_ELASTIC_SHUTDOWN_TIMEOUT" not in dict(plan().process.environment)

    def test_python_path_of_the_user_comes_after_the_packages_of_the_job(self) -> None:
        options = TargetOptions(environment=(("PYTHONPATH", "src"),))
        environment = JobEnvironment("/here", VOLUMES, variables=(("PYTHONPATH", "/ours:/x"),))
        for state, expected in (
            (CONTAINER, "/workspace:src"),
            (replace(CONTAINER, environment=environment), "/ours:src"),
        ):
            made = plan(state, target_options=options).process
            assert dict(made.environment)["PYTHONPATH"] == expected

    @pytest.mark.parametrize(
        ("request_", "words"),
        [
            (
                PrepareRequest(run="prepare-letters", recipe=RECIPE, settings=SETTINGS),
                "corpus.prepare configs/warm.yaml",
            ),
            (
                SampleRequest(run="warm", overrides=("temperature=0.5",)),
                "serving.sample temperature=0.5 --name warm",
            ),
            (
                ExportRequest(run="warm"),
                "serving.export --name warm --output /vol/checkpoints/warm/huggingface",
            ),
            (BenchmarkRequest(run="roofline"), "bench.roofline"),
        ],
    )
    def test_other_jobs(self, request_: Request, words: str) -> None:
        command = plan(change_state(CONTAINER, step=100), request_).process.command
        assert command == ("python", "-m", *words.split())

    def test_json_is_passed_on(self) -> None:
        assert plan(as_json=True).process.command[-1] == "--json"

    def test_the_record_gets_the_launch(self) -> None:
        state = replace(CONTAINER, gpus=2, git=(("commit", "abc"), ("dirty", True)))
        launch = json.loads(dict(plan(state, gpus=2).process.environment)["RUN_LAUNCH"])
        git = {"commit": "abc", "dirty": True}
        expected = {"target": "local", "gpu": "2", "recipe": "warm", "image": "gpt", "git": git}
        assert launch == expected


class TestPaths:
    """A path is the same on every target, so that a run can be resumed on a different one."""

    @pytest.mark.parametrize("state", [HOST, CONTAINER])
    def test_only_a_path_in_the_checkout_is_relative_to_it(self, state: TargetState) -> None:
        made = plan(state, overrides=("data.source=/home/me/gpt/texts/a.txt",))
        assert made.overrides == ("data.source=texts/a.txt",)
        outside = ("data.source=/home/me/texts/*.jsonl",)
        assert plan(state, overrides=outside).overrides == outside

    def test_names_of_the_hub_are_not_paths(self, tmp_path: Path) -> None:
        (tmp_path / "gpt2").mkdir()
        assert [path_in(f"init_from={name}") for name in ("gpt2", "hf://me/small")] == [None, None]
        assert path_in("source=gpt2") == "gpt2"
        assert path_in("train.init_from=./gpt2") == "./gpt2"

    def test_a_folder_outside_is_mounted_read_only(self) -> None:
        mount = plan(overrides=("data.source=/home/me/texts/*.jsonl",)).volumes[-1]
        assert mount == Volume("mount", "/home/me/texts", "/home/me/texts", writable=False)

    @pytest.mark.parametrize("key", ["data.source", "source"])
    def test_text_is_not_needed_on_a_different_machine_once_the_dataset_is_ready(
        self, key: str
    ) -> None:
        override, ready = f"{key}=/home/me/texts", {"is_dataset_ready": True}
        away = replace(CONTAINER, environment=replace(CONTAINER.environment, can_mount=False))
        assert plan(replace(away, **ready), overrides=(override,)).overrides == (override,)
        prepare = PrepareRequest(run="prepare", recipe=RECIPE, settings=SETTINGS, force=True)
        for state, request in ((away, TRAIN), (replace(away, **ready), prepare)):
            with pytest.raises(RunnerError, match="upload it first"):
                plan(state, request, overrides=(override,))
        with pytest.raises(RunnerError, match="upload it first"):
            plan(replace(away, **ready), overrides=("init_from=/home/me/hf",))

    def test_a_system_folder_is_not_mounted_over(self) -> None:
        made = plan(overrides=("source=/usr/share/dict/words",))
        assert made.overrides == ("source=/vol/given/usr/share/dict/words",)
        assert made.volumes[-1].container_path == "/vol/given/usr/share/dict/words"

    def test_a_path_in_a_volume_is_translated(self) -> None:
        recipe = Path("/home/me/gpt/volumes/checkpoints/warm/recipe.yaml")
        assert plan(recipe=recipe).recipe == "/vol/checkpoints/warm/recipe.yaml"

    def test_an_export_into_the_checkout_is_refused(self) -> None:
        request = ExportRequest(run="warm", output=Path("/home/me/gpt/out"))
        with pytest.raises(RunnerError, match="read-only"):
            plan(change_state(CONTAINER, step=1), request)


IF_SECRET_HAS_IT = ", if the secret mine has WANDB_API_KEY; else to wandb/ in its folder"
OFFLINE = ", offline in its folder: WANDB_API_KEY is neither in the environment nor .env"


class TestSteps:
    @pytest.mark.parametrize(
        ("changes", "step"),
        [
            ({}, "trains 100 steps"),
            ({"step": 50}, "resumes from step 50 of 100"),
            ({"step": 100}, "finished at step 100: shows its sample; --name starts a new run"),
            ({"is_dataset_ready": False}, "prepares the dataset letters first"),
            ({"image": ImageState("gpt", False)}, "builds the image first (some minutes, once)"),
        ],
    )
    def test_of_a_training(self, changes: dict[str, object], step: str) -> None:
        assert step in plan(change_state(CONTAINER, **changes)).steps

    def test_pretrained_weights_are_downloaded_and_may_need_a_token(self) -> None:
        train = SETTINGS.train.model_copy(update={"init_from": "hf://me/small", "max_steps": 0})
        settings = SETTINGS.model_copy(update={"train": train})
        state = replace(
            CONTAINER, is_pretrained_cached=False, secrets=("WANDB_API_KEY", "HF_TOKEN")
        )
        made = plan(state, settings=settings)
        assert made.steps == (
            "downloads the weights hf://me/small first",
            "evaluates hf://me/small without training",
        )
        assert made.process.secrets == ("HF_TOKEN",)
        cached = plan(replace(state, is_pretrained_cached=True), settings=settings)
        assert cached.steps[0].startswith("evaluates")
        finished = plan(change_state(state, step=0), settings=settings)
        assert finished.steps[0].startswith("finished at step 0")

    def test_a_secret_is_named_if_the_recipe_needs_it(self) -> None:
        state = replace(CONTAINER, secrets=("WANDB_API_KEY", "HF_TOKEN"))
        assert plan(state).process.secrets == ()
        assert plan(state, settings=with_wandb()).process.secrets == ("WANDB_API_KEY",)

    @pytest.mark.parametrize(
        ("secrets", "options", "then"),
        [
            (("WANDB_API_KEY",), {}, ""),
            ((), {"forwarded_env": ("WANDB_API_KEY",)}, ""),
            ((), {"environment": (("WANDB_API_KEY", "x"),)}, ""),
            ((), {"modal_secrets": ("mine",)}, IF_SECRET_HAS_IT),
            ((), {}, OFFLINE),
        ],
    )
    def test_tracker_step_names_the_destination_of_the_data(
        self, secrets: tuple[str, ...], options: dict[str, Any], then: str
    ) -> None:
        state, target_options = replace(CONTAINER, secrets=secrets), TargetOptions(**options)
        made = plan(state, settings=with_wandb(), target_options=target_options)
        assert made.steps[-1] == f"logs to Weights & Biases, project p{then}"
        record = RunRecord("warm", trackers={"wandb": "https://wandb.ai/me/p/runs/1"})
        resumed = plan(change_state(state, record=record, step=50), settings=with_wandb())
        assert ("tracker", "https://wandb.ai/me/p/runs/1") in rows(resumed)

    def test_notification_url_is_a_secret_only_of_runs(self) -> None:
        state = replace(CONTAINER, secrets=("GPT_RUNNER_NOTIFY",))
        assert plan(state).process.secrets == ("GPT_RUNNER_NOTIFY",)
        reports = ("-m", "job.notify", "warm", *plan(CONTAINER).process.command)
        assert plan(state).process.command == ("python", *reports)
        modal = replace(state, environment=replace(state.environment, reports_end=True))
        assert plan(modal).process.command == plan(CONTAINER).process.command
        assert plan(state, sweep="lr").process.secrets == ()
        prepare = PrepareRequest(run="p", recipe=RECIPE)
        assert plan(state, prepare).process.secrets == ()


class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "of_request", "message", "code"),
        [
            ({"missing_modules": ("torch",)}, {}, "install it:\n  pip install t\n", 1),
            (
                {"missing_modules": ("numpy", "torch")},
                {},
                "needs numpy, torch, which this Python lacks; install them:\n  pip install t\n",
                1,
            ),
            ({"active": "running on local"}, {}, "runner stop warm", 1),
            (
                {"gpus": 0},
                {"gpus": 4},
                "--gpu 4: local has no GPUs; remove --gpu, or add --device cpu for 4 processes",
                2,
            ),
            ({"gpus": 1}, {"gpus": 4}, "--gpu 4: local has 1 GPU; use fewer", 2),
            ({"gpus": 0, "gpu_remedy": "do this"}, {"gpus": 2}, "local has no GPUs; do this", 2),
            ({"is_container": False}, {"gpus": 2, "device": "mps"}, "mps is a single GPU", 2),
            ({}, {"device": "mps"}, "which local can't use; run `runner host`", 2),
            ({}, {"request": SAMPLE}, "has no checkpoint yet", 102),
            (
                {"record": RunRecord("warm", status=RunStatus.FINISHED)},
                {"request": SAMPLE},
                "runner local /home/me/gpt/volumes/checkpoints/warm/recipe.yaml --name warm-2",
                102,
            ),
        ],
    )
    def test_impossible_launch(
        self, changes: dict[str, Any], of_request: dict[str, Any], message: str, code: int
    ) -> None:
        state = change_state(CONTAINER, install_command="pip install t", **changes)
        with pytest.raises(RunnerError) as caught:
            plan(state, **of_request)
        assert message in caught.value.message
        assert caught.value.exit_code == code

    def test_processes_on_the_cpu_need_no_gpu(self) -> None:
        assert plan(replace(CONTAINER, gpus=0), gpus=2, device="cpu").process.gpus == 2


def test_a_dataset_is_ready_by_its_files_and_not_by_its_name(tmp_path: Path) -> None:
    data, folder = LocalVolume(tmp_path), tmp_path / "train.bin"
    assert is_dataset_ready(data, "train.bin") is False
    folder.mkdir()
    (folder / "val_000000.bin").touch()
    assert is_dataset_ready(data, "train.bin") is False
    (folder / "a_train_000001.bin").touch()
    assert is_dataset_ready(data, "train.bin") is None
    (folder / "meta.json").touch()
    assert is_dataset_ready(data, "train.bin") is True
