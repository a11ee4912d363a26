"""Pipelines: the file, skipped stages, and the first failure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from job.exit_status import RecipeError
from job.run_record import RunRecord
from runner.launch.pipeline import decide, output_exists
from runner.launch.pipeline_config import load_pipeline
from runner.request import PersistOption, UserCommand
from tests.runner.conftest import ROOT
from tests.runner.fake_target import FakeTarget
from tests.runner.nanogpt_folder import make_folder
from tests.waiting import wait_for

PIPELINE = """\
name: letters
dir: ../nano
persist:
  data: data
  out: checkpoints
stages:
  prepare:
    command: python data/letters/prepare.py
    outputs: [data/letters/train.bin]
  train:
    command: python train.py
    on_cpu: --max_iters=4
    gpu: T4
    outputs: [out/c*.pt]
    resume_with: --init_from=resume
    resume_if: out/ckpt.pt
  show:
    command: cat out/ckpt.pt
"""


def write(folder: Path, text: str = PIPELINE) -> Path:
    path = folder / "letters.yaml"
    path.write_text(text)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "nano")


class TestFile:
    @pytest.mark.parametrize("name", ["nanogpt_shakespeare", "modded_nanogpt", "nanochat"])
    def test_pipelines_of_the_project_prepare_without_a_gpu(self, name: str) -> None:
        stages = load_pipeline(ROOT / "configs" / f"{name}.yaml").stages
        training = list(stages).index("train")
        assert all(stage.gpu is None for stage in list(stages.values())[:training])
        assert stages["train"].gpu
        if name == "nanochat":
            assert "torchrun" not in stages["train"].argv(has_gpu=False)
            assert "--fp8" in stages["train"].argv(has_gpu=True)

    def test_pipelines_of_the_project_are_valid(self) -> None:
        pipeline = load_pipeline(ROOT / "configs" / "nanogpt_shakespeare.yaml")
        assert list(pipeline.stages) == ["prepare", "train", "sample"]
        assert pipeline.stages["prepare"].gpu is None
        assert "--device=cpu" in pipeline.stages["train"].argv(has_gpu=False)
        assert "--device=cpu" not in pipeline.stages["train"].argv(has_gpu=True)

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            (
                "gpu: T4",
                "gpus: T4",
                "letters.yaml:13: stages.train.gpus: unknown key; did you mean 'stages.train.gpu'",
            ),
            ("persist:", "keep:", ":3: keep: unknown key; did you mean 'persist'"),
            (
                "command: cat out/ckpt.pt",
                "gpu: T4",
                ":17: stages.show.command: missing; the pipeline must set it",
            ),
            (
                "  out: checkpoints",
                "  out: checkpoint",
                ":3: --persist out=checkpoint: unknown volume 'checkpoint'",
            ),
            (
                "outputs: [out/c*.pt]",
                "outputs: [ckpt.pt]",
                ":14: ckpt.pt is not in a persisted path",
            ),
            (
                "command: python train.py",
                "command: python 'train.py",
                ":11: invalid shell syntax in command",
            ),
            ("name: letters", "name: [x]", ":1: name: expected text, got ['x']"),
            ("    resume_with: --init_from=resume\n", "", ":15: resume_if needs resume_with"),
        ],
    )
    def test_error_is_reported_with_its_line(
        self, tmp_path: Path, old: str, new: str, message: str
    ) -> None:
        assert old in PIPELINE
        with pytest.raises(RecipeError) as caught:
            load_pipeline(write(tmp_path, PIPELINE.replace(old, new)))
        assert message in str(caught.value)

    def test_overrides_from_the_command_line(self, tmp_path: Path) -> None:
        pipeline = load_pipeline(write(tmp_path), ["train.args=--lr=1e-3 --x=2", "dir=/elsewhere"])
        assert pipeline.stages["train"].argv(True)[-2:] == ("--lr=1e-3", "--x=2")
        assert pipeline.dir == "/elsewhere"
        with pytest.raises(RecipeError, match="did you mean"):
            load_pipeline(write(tmp_path), ["train.arg=1"])
        with pytest.raises(RecipeError, match=r"did you mean 'persist\.out'"):
            load_pipeline(write(tmp_path), ["keep.out=checkpoints/new"])


@pytest.mark.parametrize(
    ("status", "same", "missing", "asked", "runs"),
    [
        (None, False, ["a"], False, True),
        (None, False, [], False, False),
        ("finished", True, [], False, False),
        ("finished", True, ["a"], False, True),
        ("finished", True, [], True, True),
        ("finished", False, [], False, True),
        ("unfinished", True, [], False, True),
        ("failed", True, [], False, True),
    ],
)
def test_decide_runs_or_skips_a_stage(
    status: str | None, same: bool, missing: list[str], asked: bool, runs: bool
) -> None:
    record = RunRecord("r", status=status) if status else None  # type: ignore[arg-type]
    assert decide(record, same, ["a"], missing, asked)[0] is runs
    assert decide(record, same, [], [], asked)[0] is True
    if status:
        assert decide(record, same, ["a"], missing, asked, changed="train")[0] is True


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("out/*/model_{step}.pt", True),
        ("out/d6/model_000500.pt", True),
        ("out/*/optim_*.pt", False),
        ("elsewhere/*.pt", False),
        ("$OUT_DIR/*.csv", True),
    ],
)
def test_names_of_outputs_can_have_wildcards(tmp_path: Path, path: str, found: bool) -> None:
    target = FakeTarget(tmp_path, "cloud")
    for place in ("data/nano/d6/model_000500.pt", "checkpoints/r/core.csv"):
        file = tmp_path / "volumes" / place
        file.parent.mkdir(parents=True)
        file.touch()
    command = UserCommand((), tmp_path, persist=(PersistOption("out", "data", "nano"),))
    assert output_exists(target, path, command, "r") is found


@pytest.fixture
def run(spawn, checkout: Path, folder: Path):
    """Return ``run("train", status=0)``, which runs the pipeline and returns its output."""
    write(checkout)

    def run_pipeline(*words: str, status: int = 0) -> tuple[str, str]:
        process = spawn("host", "pipeline", "letters.yaml", *words)
        out, err = process.communicate(timeout=60)
        assert process.returncode == status, err
        return out, err

    return run_pipeline


class TestHost:
    def test_stages_run_in_order_and_are_skipped_when_done(self, run) -> None:
        out, err = run()
        assert out.splitlines()[0] == "prepared", err
        assert out.endswith("iter 4: loss 1.0\n4")
        assert "train: runs: out/c*.pt is missing" in err
        out, err = run()
        assert out == "4"
        assert "prepare: skipped: it finished" in err
        out, err = run("train.args=--max_iters=6")
        assert "train: runs: its command has changed; it starts from the beginning" in err
        assert "from its beginning: the command changed since the last attempt" in err
        assert "resuming" not in out
        assert out.endswith("6")
        _, err = run("prepare.args=--again", "train.args=--max_iters=6", "--dry-run")
        assert "prepare: runs: its command has changed" in err
        assert "train: runs: stage prepare runs before it" in err

    def test_stopped_stage_refuses_other_arguments(
        self, run, spawn, folder: Path, checkout: Path
    ) -> None:
        (folder / "data" / "letters" / "train.bin").write_text("x")
        line = ("host", "pipeline", "letters.yaml", "train")
        process = spawn(*line, "train.args=--max_iters=40 --pause=0.2")
        ckpt = checkout / "volumes" / "checkpoints" / "nano" / "out" / "ckpt.pt"
        wait_for(lambda: ckpt.exists() and ckpt.read_text() == "3")
        process.terminate()
        assert process.wait(60) == 101
        left = ckpt.read_text()
        _, err = run("train", "train.args=--max_iters=5", status=2)
        assert "--max_iters=40 --pause=0.2\n→ python train.py --max_iters=4 --max_iters=5" in err
        assert "`runner resume letters-train`" in err
        assert ckpt.read_text() == left
        out, err = run("train", "train.args=--max_iters=5 --init_from=resume")
        assert f"resuming at {left}" in out, err

    def test_first_failure_stops_the_pipeline_and_the_next_call_continues(self, run) -> None:
        out, err = run("train.args=nothing.py", status=100)
        assert out.startswith("prepared")
        assert "not started: show; run the same command again to continue with train" in err
        out, err = run()
        assert "prepare: skipped" in err
        assert out.endswith("4")

    def test_detached_pipeline_continues_and_the_same_command_shows_it(
        self, spawn, folder: Path, checkout: Path
    ) -> None:
        write(checkout)
        line = ("host", "pipeline", "letters.yaml", "train.args=--max_iters=60 --pause=0.05")
        out, err = spawn(*line, "--detach").communicate(timeout=60)
        assert out == "letters\n", err
        process, again = spawn(*line), spawn(*line, "--detach")
        out, err = again.communicate(timeout=60)
        assert (out, "pipeline letters is already running" in err) == ("letters\n", True), err
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert "pipeline letters is already running" in err
        assert "letters-train is running" in err
        assert "iter 60: loss 1.0" in out
        messages = checkout / "volumes" / "cache" / ".pipelines" / "letters" / "output.txt"
        assert "stage show, 3 of 3" in messages.read_text()
        shown = json.loads(
            (checkout / "volumes/checkpoints/letters-show/run.json").read_text("utf-8")
        )
        assert (shown["status"], len(shown["attempts"])) == ("finished", 1)

    def test_stop_of_a_stage_ends_the_detached_pipeline(
        self, spawn, folder: Path, checkout: Path
    ) -> None:
        write(checkout)
        line = ("host", "pipeline", "letters.yaml", "train.args=--max_iters=6000 --pause=0.05")
        assert spawn(*line, "--detach").wait(60) == 0
        checkpoints = checkout / "volumes" / "checkpoints"
        wait_for((checkpoints / "nano" / "out" / "ckpt.pt").exists)
        attached = spawn(*line)
        wait_for(lambda: "already running" in attached.stderr.readline())
        assert spawn("stop", "letters-train").wait(60) == 0
        err = attached.communicate(timeout=60)[1]
        assert attached.returncode == 101, err
        assert not (checkpoints / "letters-show").exists()

    def test_named_stage_runs_alone(self, run) -> None:
        assert run("prepare")[0] == "prepared\n"
        assert run("prepare")[0] == "prepared\n"
        assert "did you mean 'prepare'?" in run("prepar", status=2)[1]

    def test_plan_as_json(self, run) -> None:
        stages = json.loads(run("--dry-run", "--json")[0])
        assert [stage["stage"] for stage in stages] == ["prepare", "train", "show"]
        assert stages[1]["plan"]["run"] == "letters-train"

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (("pipeline",), "`pipeline` needs a file"),
            (("pipeline", "nothing.yaml"), "pipeline file nothing.yaml does not exist"),
            (
                ("pipeline", "letters.yaml", "--gpu", "2"),
                "--gpu is an option of train, not of pipeline",
            ),
            (
                ("pipeline", "letters.yaml", "--persist", "out=data"),
                "write it in the pipeline's file, as `persist`",
            ),
            (("pipeline", "letters.yaml", "--dir", "../none"), "or give another with --dir"),
            (("pipeline", "letters.yaml", "--", "ls"), "appears before --"),
            (("pipeline", "letters.yaml", "--name", "../up"), "is not a valid run name"),
        ],
    )
    def test_error_is_reported(
        self, spawn, folder: Path, checkout: Path, words, message: str
    ) -> None:
        write(checkout)
        process = spawn("host", *words)
        assert message in process.communicate(timeout=60)[1]
        assert process.returncode == 2


def test_pipeline_is_not_a_recipe(type_, checkout: Path) -> None:
    (checkout / "configs" / "letters.yaml").write_text(PIPELINE)
    result = type_("runner host lettrs")
    assert "letters" not in result.stderr
    result = type_("runner host configs/letters.yaml")
    assert result.exit_code == 2
    assert "is a pipeline; run `runner host pipeline configs/letters.yaml`" in result.stderr
