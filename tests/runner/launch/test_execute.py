"""Launches from the command line to the exit status, on a fake target."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from runner.errors import RunnerError
from runner.launch.execute import confirm
from runner.project import is_checkout
from runner.target import RunInfo


class TestPlan:
    def test_dry_run_prints_the_plan_and_stops(self, type_, fake) -> None:
        result = type_("runner host --dry-run")
        assert (result.exit_code, result.stdout, fake.did) == (0, "", [])
        assert "python -m model.train configs/quickstart.yaml --name quickstart" in result.stderr
        assert "trains 100 steps" in result.stderr

    def test_dry_run_as_json_is_data(self, type_) -> None:
        result = type_("runner host prepare warm --dry-run --json")
        plan = json.loads(result.stdout)
        assert (plan["job"], plan["recipe"], result.stderr) == ("prepare", "configs/warm.yaml", "")

    def test_the_same_dry_run_gives_the_same_plan(self, type_, fake) -> None:
        type_("runner host warm lr=1e-3 --dry-run")
        type_("runner host lr=1e-3 warm --dry-run")
        assert fake.plans[0] == fake.plans[1]

    def test_name_renames_the_run(self, type_, fake) -> None:
        type_("runner host warm --name mine")
        assert fake.did == ["start mine", "follow mine"]

    def test_run_with_a_checkpoint_resumes(self, type_, make_run) -> None:
        make_run("warm", step=50)
        assert "resumes from step 50 of 100" in type_("runner host warm --dry-run").stderr

    def test_sample_takes_the_newest_run(self, type_, make_run, fake) -> None:
        for time, name in enumerate(["old", "new", "older"]):
            record = make_run(name, step=50) / "run.json"
            os.utime(record, (100 - abs(time - 1), 100 - abs(time - 1)))
        type_("runner host sample")
        assert fake.plans[0].run == "new"

    def test_no_color_without_a_terminal(self, type_) -> None:
        assert "\x1b" not in type_("runner host --dry-run").stderr

    def test_no_color_variable_disables_colors(self, type_, cli) -> None:
        cli.terminal = True
        assert "\x1b" in type_("runner host --dry-run").stderr
        cli.environ["NO_COLOR"] = "1"
        assert "\x1b[3" not in type_("runner host --dry-run").stderr


class TestPrepare:
    def test_options_are_passed_to_corpus_prepare(self, type_, fake) -> None:
        assert type_("runner host prepare warm --shards 3 --force").exit_code == 0
        assert fake.plans[0].process.command[2:] == (
            "corpus.prepare",
            "configs/warm.yaml",
            "--shards",
            "3",
            "--force",
        )

    def test_published_dataset_replaces_the_recipe(self, type_, fake) -> None:
        fake.has = {"secrets": ("HF_TOKEN",)}
        assert type_("runner host prepare fineweb10B --shards 9").exit_code == 0
        (plan,) = fake.plans
        assert plan.process.command[2:] == ("corpus.prepare", "fineweb10B", "--shards", "9")
        assert (plan.run, plan.process.secrets) == ("prepare-fineweb10B", ("HF_TOKEN",))

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("train --shards 9", "write data.shards=9"),
            ("sample --shards 9", "--shards is an option of prepare, not of sample; remove"),
            ("--force", "--force is an option of prepare, not of train"),
            ("prepare fineweb10B --source x", "remove --source x"),
            ("prepare fineweb10B val_fraction=0.5", "remove val_fraction=0.5"),
            ("fineweb10B", "is not a job"),
            ("--force -- python x.py", "--force is an option of prepare, not of command"),
        ],
    )
    def test_options_of_prepare_are_refused_for_other_jobs(
        self, type_, fake, line: str, message: str
    ) -> None:
        result = type_(f"runner host {line}")
        assert (result.exit_code, message in result.stderr, fake.did) == (2, True, []), (
            result.stderr
        )


LIMIT = "stopped: it reached its --{0}; to resume: `runner resume warm --{0} {1}`\n"


@pytest.mark.parametrize(
    ("code", "state", "status", "message"),
    [
        (0, None, 0, ""),
        (101, None, 101, "to resume, run the same command again:\n  runner host warm"),
        (2, None, 2, ""),
        (1, None, 100, "the job failed with exit status 1; see its log: `runner logs warm`"),
        (137, None, 100, "often for lack of memory"),
        (130, None, 130, "interrupted"),
        (None, None, 130, ""),  # detached
        # Under torchrun, the record tells that the run is unfinished.
        (1, {"status": "unfinished", "ended": 200.0}, 101, ""),
        (1, {"status": "unfinished", "ended": 50.0}, 100, ""),  # of an older attempt
        # A signal after the run has finished is no failure.
        (143, {"status": "finished", "ended": 200.0}, 0, ""),
        (130, {"status": "finished", "ended": 200.0}, 0, ""),
        (137, {"status": "finished", "ended": 200.0}, 0, ""),
        (1, {"status": "finished", "ended": 200.0}, 100, "failed"),
        (104, {"end_reasons": ("preempted", "budget")}, 104, LIMIT.format("max-cost", "MORE")),
        (
            101,
            {"end_reasons": ("preempted", "run-timeout")},
            101,
            LIMIT.format("timeout", "LONGER"),
        ),
        # Another launch of the run refused this one.
        (1, {"status": "running", "alive": True}, 1, "the run did not start"),
    ],
)
def test_status_of_the_job_becomes_that_of_the_runner(
    type_, fake, code: int | None, state: dict[str, Any] | None, status: int, message: str
) -> None:
    fake.code = code
    if state is not None:
        ended = {"status": "unfinished", "ended": 200.0} if "end_reasons" in state else {}
        fake.states = [RunInfo("warm", "train", "host", **ended, **state)]
    result = type_("runner host warm")
    assert (result.exit_code, message in result.stderr) == (status, True), result.stderr
    resumes = "run the same command again" in result.stderr
    assert resumes is (status == 101 and "stopped" not in message)
    assert ("failed" in result.stderr) is (status == 100)
    assert ("to resume" in result.stderr) is (code is not None and status in (101, 104, 130))
    if message.startswith("stopped"):
        assert result.stderr.endswith(message)


class TestDetach:
    def test_returns_the_name_of_the_run_immediately(self, type_, fake) -> None:
        result = type_("runner host warm --detach")
        assert (result.exit_code, result.stdout, fake.did) == (0, "warm\n", ["start warm"])
        assert "runner logs warm --follow" in result.stderr

    def test_as_json(self, type_) -> None:
        result = type_("runner host warm --detach --json")
        assert json.loads(result.stdout) == {
            "run": "warm",
            "target": "host",
            "job": "train",
            "id": "1",
        }


class TestConfirmation:
    """A target that bills asks for confirmation."""

    def test_finished_training_is_shown_without_a_new_launch(self, type_, fake, make_run) -> None:
        fake.price = "This costs $3."
        folder = make_run("warm", step=100, val_loss=1.5)
        (folder / "samples").mkdir()
        for step, text in ((50, "once"), (100, "in the end")):
            (folder / "samples" / f"step_{step:08d}.txt").write_text(text)
        result = type_("runner host warm")
        assert (result.exit_code, result.stdout) == (0, "in the end\n")
        assert "run 'warm' is already finished: 100 steps, validation loss 1.5000" in result.stderr
        assert "to train again: `runner host configs/warm.yaml --name warm-2`" in result.stderr
        assert json.loads(type_("runner host warm --detach --json").stdout)["val_loss"] == 1.5
        assert "shows its sample" in type_("runner host warm --dry-run").stderr
        assert fake.did == []
        assert type_("runner host warm max_steps=200 -y").exit_code == 0
        assert fake.did == ["start warm", "follow warm"]

    def test_unbilled_target_starts_the_job_which_shows_the_run(
        self, type_, fake, make_run
    ) -> None:
        make_run("warm", step=100)
        type_("runner host warm")
        assert fake.did == ["start warm", "follow warm"]

    def test_question_without_a_terminal_is_refused(self, type_, fake) -> None:
        fake.price = "This costs $3."
        result = type_("runner host warm")
        assert (result.exit_code, fake.did) == (2, [])
        assert "pass -y to confirm:\n  runner host warm -y" in result.stderr

    def test_the_question_of_a_pipeline_without_a_terminal_is_refused(self, cli) -> None:
        with pytest.raises(RunnerError) as refused:
            confirm(cli, "train: this costs $3.", False, "\nStart them?")
        expected = "train: this costs $3. This is not a terminal; pass -y to confirm:\n  runner -y"
        assert refused.value.message == expected

    def test_yes_answers(self, type_, fake) -> None:
        fake.price = "This costs $3."
        assert type_("runner host warm -y").exit_code == 0
        assert fake.did == ["start warm", "follow warm"]


class TestUsageErrors:
    """Each error is one line with exit status 2, and starts no job."""

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("runner host trian", "did you mean 'train'?"),
            ("runner status a b", "unexpected 'b'; `runner status --help` shows the usage"),
            ("runner init ''", "unexpected ''; `runner init --help` shows the usage"),
            ("runner runs --tag", "requires an argument; `runner runs --help` shows the usage"),
            ("runner pipeline x.yaml", "a job runs on a target: `runner host pipeline`"),
            ("runner host lr=abc", "argument 'lr=abc': train.lr: expected a number, got 'abc'"),
            ("runner host learning_rate=1", "did you mean 'train.lr'?"),
            (
                "runner host configs/wam.yaml",
                "recipe file configs/wam.yaml does not exist; did you mean 'warm'?",
            ),
            ("runner host --name ../up", "is not a valid run name"),
            ("runner host --source a.txt", "write data.source=a.txt"),
            ("runner host --output x", "--output is an option of export, not of train"),
            (
                "runner host prepare --device cpu",
                "--device is an option of train, sample, evaluate, chat, serve, roofline, run, "
                "not of prepare",
            ),
            ("runner host prepare --gpu 2", "--gpu is an option of train, not of prepare"),
            ("runner host --gpu 0", "--gpu 0: expected an integer of at least 1"),
            (
                "runner host --gpu h100:2",
                "--gpu h100:2: expected a number of GPUs; GPU types are for Modal: "
                "`runner cloud --gpu h100:2`",
            ),
            ("runner cloud --gpu 8", "'8' is a number of GPUs without a type; write both: H100:8"),
            ("runner cloud --nodes 64", "--nodes 64: expected an integer from 1 to 32"),
            ("runner cloud --cores inf", "--cores inf: expected a number of at least 0.125"),
            ("runner serve --port 99999", "--port 99999: expected a port from 1 to 65535"),
            (
                "runner host --max-cost 5",
                "--max-cost is an option of `runner cloud`, not of host; remove --max-cost",
            ),
            (
                "runner host --timeout 1h",
                "--timeout is an option of `runner cloud`, not of host; remove --timeout",
            ),
            (
                "runner cloud --queue",
                "--queue is an option of `runner host` or `runner local`, not of cloud; "
                "remove --queue",
            ),
            (
                "runner cloud --timeout 12",
                "--timeout 12: 12 has no unit; write 12m, 12h or 12d",
            ),
            (
                "runner host timeout=abc",
                "resources.timeout: expected a duration such as 90m, 12h or 3d, got 'abc'",
            ),
            ("runner bogus", "unknown command 'bogus'; `runner --help` lists the commands"),
            ("runner lgos", "unknown command 'lgos'; did you mean 'logs'?"),
            ("runner host sample --nodes 2", "unknown option --nodes; `runner host sample --help`"),
            (
                "runner estimate nope",
                "error: unknown recipe 'nope'; the recipes in configs/ are quickstart, warm\n",
            ),
            ("runner doctor --parity nope", "error: unknown recipe 'nope'; the recipes in"),
            (
                "runner host pipeline warm",
                "error: warm is a recipe, not a pipeline; run `runner host warm`\n",
            ),
            (
                "runner local pipeline nope.yaml",
                "pipeline file nope.yaml does not exist; docs/commands.md describes the file",
            ),
            (
                "runner spend --since 1.9.2026",
                "--since 1.9.2026: expected a day such as 2026-09-01 or a month such as 2026-09",
            ),
            (
                "runner new foo",
                "unknown template 'foo'; expected experiment, as in `runner new experiment ...`",
            ),
            (
                "runner emit",
                "missing system; expected slurm, k8s, skypilot or dstack, as in "
                "`runner emit slurm`; "
                "`runner emit --help` shows the usage",
            ),
            (
                "runner emit pbs",
                "unknown system 'pbs'; expected slurm, k8s, skypilot or dstack",
            ),
            ("runner host --nme x", "unknown option --nme; did you mean '--name'?"),
            ("runner estimate sample", "`runner estimate` is for training only; remove sample"),
            ("runner host --lr 1e-3", "unknown option --lr; write a recipe setting as lr=1e-3"),
            ("runner host --max-steps=5 warm", "write a recipe setting as max_steps=5"),
            ("runner host --learning_rate 1", "write a recipe setting as train.lr=1"),
            ("runner host LR=1e-3", "did you mean 'train.lr'?"),
            ("runner host lr = 1e-3", "write lr=1e-3"),
            ("runner host --device gpu", "--device gpu: expected cpu, cuda or mps"),
        ],
    )
    def test_error_is_one_line(self, type_, fake, line: str, message: str) -> None:
        result = type_(line)
        assert result.exit_code == 2
        assert message in result.stderr
        assert "Traceback" not in result.stderr
        assert (result.stdout, fake.did) == ("", [])

    def test_sweep_or_pipeline_in_place_of_a_recipe_is_named(self, type_, checkout, fake) -> None:
        (checkout / "configs" / "lrs.yaml").write_text("recipe: warm\nspace:\n  lr: [1, 2]\n")
        (checkout / "configs" / "steps.yml").write_text("name: steps\nstages: {}\n")
        for line, words in (
            ("lrs", "lrs is a sweep; run `runner sweep lrs`"),
            ("configs/lrs.yaml", "run `runner sweep configs/lrs.yaml`"),
            ("steps", "steps is a pipeline; run `runner host pipeline steps`"),
            ("nothing.yaml", "nothing.yaml does not exist; the recipes in configs/ are quickstart"),
        ):
            for command in ("runner host", "runner host prepare", "runner estimate"):
                result = type_(f"{command} {line}")
                assert (result.exit_code, words in result.stderr) == (2, True), result.stderr
        assert fake.did == []

    def test_run_in_place_of_a_recipe_is_named(self, type_, make_run) -> None:
        make_run("mine")
        assert (
            "'mine' is a run, not a job or a recipe; use --name mine"
            in type_("runner host mine").stderr
        )

    def test_error_in_a_recipe_is_reported_with_its_line(self, type_, checkout) -> None:
        path = checkout / "configs" / "warm.yaml"
        path.write_text(path.read_text().replace("max_steps", "max_step"))
        result = type_("runner host warm")
        assert result.exit_code == 2
        assert (
            f"{path}:6: train.max_step: unknown key; did you mean 'train.max_steps'?"
            in result.stderr
        )

    def test_sampling_without_a_run(self, type_, make_run) -> None:
        (make_run("command") / "recipe.yaml").unlink()
        result = type_("runner host sample")
        assert result.exit_code == 102
        assert "no trained run yet" in result.stderr

    @pytest.mark.parametrize("words", ["host sample --name warm", "chat warm", "serve warm"])
    def test_a_missing_run_on_an_empty_volume(self, type_, words: str) -> None:
        result = type_(f"runner {words}")
        assert result.exit_code == 102
        assert result.stderr == (
            "error: no run 'warm' (no runs yet; `runner local` or `runner host` trains the first "
            "one)\n"
        )

    def test_the_newest_run_that_is_sampled_from_has_a_recipe(self, type_, fake, make_run) -> None:
        os.utime(make_run("warm", step=50) / "run.json", (50, 50))
        (make_run("command") / "recipe.yaml").unlink()
        assert type_("runner host sample").exit_code == 0
        assert fake.plans[0].run == "warm"

    def test_file_that_is_renamed_during_the_listing_hides_no_run(
        self, type_, fake, make_run, monkeypatch
    ) -> None:
        folder, found = make_run("warm", step=50), Path.iterdir
        gone = folder / ".run.json.1.tmp"
        monkeypatch.setattr(
            Path, "iterdir", lambda p: [*found(p), *([gone] if p == folder else [])]
        )
        assert type_("runner host sample").exit_code == 0

    def test_sampling_from_a_missing_run(self, type_, make_run) -> None:
        make_run("warm", step=50)
        result = type_("runner host sample --name wram")
        assert result.exit_code == 102
        assert "did you mean 'warm'?" in result.stderr

    def test_a_setting_is_checked_against_the_runs_recipe(self, type_, make_run) -> None:
        make_run("warm", step=50)
        result = type_("runner host sample temperature=hot")
        assert result.exit_code == 2
        assert "expected a number, got 'hot'" in result.stderr

    def test_outside_of_any_checkout(self, type_, cli, tmp_path, monkeypatch) -> None:
        monkeypatch.setattr("runner.project.INSTALLED", tmp_path)
        cli.cwd = tmp_path
        result = type_("runner host")
        assert result.exit_code == 1
        assert "is not in a checkout of gpt-runner" in result.stderr

    def test_other_project_with_a_model_is_not_a_checkout(self, cli, tmp_path) -> None:
        other = tmp_path / "other"
        (other / "model").mkdir(parents=True)
        (other / "docker-compose.yml").touch()
        assert not is_checkout(other)
        assert is_checkout(cli.cwd)

    def test_debug_shows_the_traceback(self, type_) -> None:
        assert "Traceback" in type_("runner --debug host trian").stderr

    def test_unknown_error_is_one_line(self, type_, fake) -> None:
        fake.has = {"no_such_fact": 1}
        result = type_("runner host")
        assert result.exit_code == 1
        assert "this is a bug in the runner" in result.stderr
        assert "Traceback" not in result.stderr


@pytest.mark.parametrize("line", ["run {0}", "pipeline {0}", "--dir {0} -- true", "{0}"])
def test_link_to_itself_is_an_error_of_one_line(type_, cli, line) -> None:
    for suffix in (".py", ".yaml"):
        (cli.cwd / f"loop{suffix}").symlink_to(f"loop{suffix}")
    name = "./loop.py" if line.startswith("run") else "./loop.yaml"
    result = type_(f"runner host {line.format(name)} --dry-run")
    assert result.exit_code in (1, 2)
    assert "bug in the runner" not in result.stderr
    assert "loop" in result.stderr


class TestPaths:
    def test_folder_below_the_checkout_works(self, type_, cli, checkout, fake) -> None:
        cli.cwd = checkout / "configs"
        assert type_("runner host ./warm.yaml").exit_code == 0
        assert fake.plans[0].recipe == "configs/warm.yaml"

    def test_path_is_relative_to_the_current_folder(self, type_, cli, checkout, fake) -> None:
        cli.cwd = checkout / "configs"
        (checkout / "configs" / "text.txt").touch()
        type_("runner host data.source=text.txt --dry-run")
        assert fake.plans[0].overrides == ("data.source=configs/text.txt",)

    def test_path_above_the_current_folder(self, type_, cli, checkout, fake) -> None:
        cli.cwd = checkout / "configs"
        (checkout.parent / "text.txt").touch()
        type_("runner host data.source=../../text.txt --dry-run")
        assert fake.plans[0].overrides == (f"data.source={checkout.parent}/text.txt",)

    @pytest.mark.parametrize(
        "line", ["data.source=gone.txt", "warm source=gone/*.txt", "prepare --source gone.txt"]
    )
    def test_missing_text_is_refused_if_it_is_needed(self, type_, fake, checkout, line) -> None:
        fake.has = {"is_dataset_ready": False}
        result = type_(f"runner host {line} --dry-run")
        assert result.exit_code == 2
        assert ": no such file, folder or glob; correct the path" in result.stderr
        assert "data.source=gone" in result.stderr
        (checkout / "gone").mkdir()
        for path in (checkout / "gone.txt", checkout / "gone" / "a.txt"):
            path.touch()
        assert type_(f"runner host {line} --dry-run").exit_code == 0

    def test_text_that_is_not_needed_or_elsewhere_may_be_missing(self, type_, fake) -> None:
        line = "runner host data.source=gone.txt --dry-run"
        fake.has = {"is_dataset_ready": True}
        assert type_(line).exit_code == 0
        forced = type_("runner host prepare source=gone.txt --force --dry-run")
        assert forced.exit_code == 2
        fake.has = {"is_dataset_ready": False}
        for source in ("https://example.com/gone.txt", "stdlib"):
            assert type_(line.replace("gone.txt", source)).exit_code == 0
        fake.has = {"is_configured": False}
        assert type_(line).exit_code == 2

    def test_path_that_the_job_resolves_is_not_changed(self, type_, cli, checkout, fake):
        (checkout / "texts").mkdir()
        recipe = checkout / "configs" / "warm.yaml"
        recipe.write_text(recipe.read_text().replace("source: stdlib", "source: texts"))
        assert type_("runner host warm --dry-run").exit_code == 0
        assert fake.plans[0].overrides == ()

    @pytest.mark.parametrize("source", ["../texts/*.txt", "texts/*.txt"])
    def test_path_in_a_recipe_is_relative_to_its_folder_or_the_current_one(
        self, type_, cli, checkout, tmp_path, fake, source
    ) -> None:
        cli.cwd = tmp_path / "mine"
        (cli.cwd / "texts").mkdir(parents=True)
        (cli.cwd / "configs").mkdir()
        recipe = (checkout / "configs" / "warm.yaml").read_text()
        own = recipe.replace("source: stdlib", f"source: {source}")
        (cli.cwd / "configs" / "own.yaml").write_text(own)
        assert type_(f"runner host {cli.cwd}/configs/own.yaml --dry-run").exit_code == 0
        type_(f"runner host {cli.cwd}/configs/own.yaml --dry-run data.source=stdlib")
        assert [plan.overrides for plan in fake.plans] == [
            (f"data.source={cli.cwd}/texts/*.txt",),
            ("data.source=stdlib",),
        ]
