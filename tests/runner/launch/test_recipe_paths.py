"""The files and runs that a recipe names are checked in the plan, before a job starts."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from job.files import file_problem, text_problem
from job.run_record import RunStatus
from runner.target import RunInfo

GONE = "no such file"


@pytest.fixture
def odd(checkout: Path) -> Path:
    """Make files of each kind that no job can read as text."""
    os.mkfifo(checkout / "fifo")
    (checkout / "folder").mkdir()
    (checkout / "broken").symlink_to("nowhere")
    (checkout / "latin1.txt").write_bytes(b"caf\xe9")
    return checkout


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("data.source=fifo", "a FIFO, not a regular file"),
        ("source=/dev/null", "a device, not a regular file"),
        ("data.source=broken", "broken link"),
        ("prompt=@fifo", "a FIFO, not a regular file"),
        ("prompt=@folder", "a folder, not a regular file"),
        ("prompt=@gone", GONE),
        ("data.source=/vol/data/gone.txt", "no such file, folder or glob"),
        ("data.source=/vol/data/*/gone.txt", "no such file, folder or glob"),
        ("data.source=/vol/dat/text.txt", "no such file, folder or glob"),
        ("data.source=/workspace/gone.txt", "no such file, folder or glob"),
        ("prompt=@/vol/data/gone.txt", GONE),
        ("init_from=/vol/checkpoints/gone", "no run or folder of that name"),
        ("init_from=/vol/checkpoints/new", "run 'new' has no checkpoint"),
        ("init_from=/vol/checkpoints/old n_head=4", "model.n_head is 12, not 4"),
        ("sample.prompt=@latin1.txt", "not UTF-8 text: unexpected end of data at byte 3"),
        ("init_from=fifo", "not a run, not a checkpoint folder"),
        ("init_from=folder", "not a run, not a checkpoint folder"),
        ("init_from=gone", "no run or folder of that name; `runner runs` lists the runs"),
        ("init_from=/gone/too", "no run or folder of that name"),
        ("init_from=olt", "no run or folder of that name; did you mean 'old'?"),
        ("init_from=new", "run 'new' has no checkpoint"),
        ("init_from=old n_head=4", "model.n_head is 12, not 4"),
        ("init_from=other", "model.n_layer is 6, not 3"),
        ("init_from=gpt3", "gpt3/config.json is not a GPT-2, its model_type is 'gpt3'"),
    ],
)
def test_files_that_the_job_cannot_use_are_refused(
    type_, fake, odd, make_run, setting, problem
) -> None:
    fake.has = {"is_dataset_ready": False}
    make_run("old", step=10)
    make_run("new")
    if "other" in setting:
        recipe = make_run("other", step=10) / "recipe.yaml"
        recipe.write_text(recipe.read_text() + "model: {n_layer: 6}\n")
        setting += " n_layer=3"
    (odd / "gpt3").mkdir()
    (odd / "gpt3" / "config.json").write_text(json.dumps({"model_type": "gpt3"}))
    result = type_(f"runner host {setting} --dry-run")
    assert (result.exit_code, fake.plans) == (2, [])
    assert problem in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_weights_of_a_run_or_its_checkpoint_are_accepted(type_, checkout, make_run) -> None:
    step = make_run("old", step=10) / "step_00000010"
    for source in ("old", step, os.path.relpath(step, checkout)):
        assert type_(f"runner host init_from={source} --dry-run").exit_code == 0


@pytest.mark.parametrize("line", ["source={} init_from={} prompt=@{}", "own"])
def test_a_path_on_a_volume_is_found_in_its_folder(type_, checkout, fake, make_run, line) -> None:
    make_run("old", step=10)
    (checkout / "volumes/data").mkdir()
    (checkout / "volumes/data/text.txt").write_text("the ")
    recipe = (checkout / "configs" / "warm.yaml").read_text().replace("stdlib", "/vol/data/*.txt")
    recipe += "  init_from: /vol/checkpoints/old\nsample: {prompt: '@/vol/data/text.txt'}\n"
    (checkout / "configs" / "own.yaml").write_text(recipe)
    fake.has = {"is_dataset_ready": False, "is_container": False, "volumes": ()}
    line = line.format("/vol/data/*.txt", "/vol/checkpoints/old", "/vol/data/text.txt")
    result = type_(f"runner host {line} --dry-run")
    assert result.exit_code == 0, result.stderr
    values = {word.partition("=")[2] for word in fake.plans[0].overrides}
    assert values == {"volumes/data/*.txt", "volumes/checkpoints/old", "@volumes/data/text.txt"}


@pytest.mark.parametrize("line", ["init_from=old", "own"])
def test_a_run_wins_over_a_folder_of_its_name(type_, checkout, fake, make_run, line) -> None:
    make_run("old", step=10)
    (checkout / "old").mkdir()
    recipe = (checkout / "configs" / "warm.yaml").read_text()
    (checkout / "configs" / "own.yaml").write_text(f"{recipe}  init_from: old\n")
    assert type_(f"runner host {line} --dry-run").exit_code == 0
    assert fake.plans[0].overrides == (("init_from=old",) if "=" in line else ())


def test_weights_and_prompt_matter_only_until_the_run_has_them(type_, make_run) -> None:
    make_run("warm", step=50)
    assert type_("runner host warm init_from=gone --dry-run").exit_code == 0
    assert type_("runner host warm prompt=@gone --dry-run").exit_code == 2
    make_run("quickstart", step=100)
    assert type_("runner host prompt=@gone --dry-run").exit_code == 0  # shows its sample


def test_the_prompt_of_sample_and_resume_is_checked(type_, cli, checkout, fake, make_run) -> None:
    make_run("warm", step=50)
    fake.states.append(RunInfo("warm", "train", "host", RunStatus.UNFINISHED, step=50))
    (checkout.parent / "mine.txt").write_text("the ")
    cli.cwd = checkout / "configs"
    for line in ("runner host sample --name warm {}", "runner resume warm {}"):
        result = type_(line.format("prompt=@gone.txt"))
        assert (result.exit_code, fake.did) == (2, [])
        assert f"sample.prompt=@gone.txt: {GONE}" in result.stderr
        type_(line.format("prompt=@../../mine.txt --dry-run"))
        assert fake.plans[-1].overrides == (f"prompt=@{checkout.parent}/mine.txt",)


@pytest.mark.parametrize("where", ["recipe", "sweep", "checkout"])
def test_paths_in_a_sweep_are_relative_to_its_file_the_recipe_or_the_checkout(
    type_, checkout, fake, tmp_path, where
) -> None:
    folders = {"recipe": tmp_path / "r", "sweep": tmp_path / "s", "checkout": checkout}
    for folder in folders.values():
        folder.mkdir(exist_ok=True)
    recipe = (checkout / "configs" / "warm.yaml").read_text()
    (folders["recipe"] / "own.yaml").write_text(recipe.replace("stdlib", "text.txt"))
    space = "space: {list: [{lr: 1e-3}, {lr: 2e-3, source: gone.txt, dataset: d2}]}"
    sweep = folders["sweep"] / "s.yaml"
    sweep.write_text(f"recipe: ../r/own.yaml\n{space}\nmetric: val_loss\n")
    text = folders[where] / "text.txt"
    text.touch()
    fake.has = {"is_dataset_ready": False}
    result = type_(f"runner sweep {sweep} --no-smoke --dry-run")
    assert (result.exit_code, fake.did) == (2, [])
    assert f"data.source=gone.txt: {GONE}" in result.stderr
    expected = ("lr=0.001",) if where == "checkout" else ("lr=0.001", f"data.source={text}")
    assert fake.plans[0].overrides == expected


def test_unreadable_file_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret"
    path.touch(0)
    if os.geteuid() == 0:  # root reads every file
        monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert (file_problem(path), text_problem(path)) == ("permission denied",) * 2
    assert file_problem(tmp_path / "a\0b") == "embedded null byte"


@pytest.mark.parametrize(
    "line", ["host evaluate --multiple-choice {}", "chat warm --prompt-file {}"]
)
@pytest.mark.parametrize(("name", "problem"), [("fifo", "a FIFO, not a"), ("gone", GONE)])
def test_a_text_file_given_as_an_option_is_checked(
    type_, fake, odd, make_run, line, name, problem
) -> None:
    make_run("warm", step=50)
    result = type_("runner " + line.format(name))
    assert (result.exit_code, fake.did) == (2, [])
    assert f"{line.split()[2]} {name}: {problem}" in result.stderr


@pytest.mark.parametrize("line", ["host sample", "host evaluate", "host export", "chat", "serve"])
def test_the_network_of_a_run_cannot_be_overridden(type_, fake, make_run, line) -> None:
    make_run("warm", step=50)
    option = "" if line in ("chat", "serve") else "--name "
    for setting in ("n_head=4", "model.n_layer=3", "data.tokenizer=chars"):
        refused = type_(f"runner {line} {option}warm {setting}")
        assert (refused.exit_code, fake.did) == (2, [])
        assert f"error: argument '{setting}': run 'warm' was trained with " in refused.stderr
