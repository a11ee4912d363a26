"""`runner compare`: differences, results, one plot."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest
from PIL import Image

from runner.runs.attempts import AttemptLog, CloudAttempt
from runner.runs.history import History
from runner.target import RunInfo
from runner.targets.modal.runs import MirroredRuns
from runner.views.compare import best_of, differences, png, to_json
from tests.runner.fake_run import fill_run
from tests.runner.fake_target import FakeTarget


@pytest.fixture
def two(make_run, fake) -> None:
    commits = {
        "warm": {"commit": "aaaabbbbccccdddd", "dirty": False},
        "cool": {"commit": "1234", "dirty": True},
    }
    for name, lr in (("warm", 1e-2), ("cool", 1e-3)):
        fill_run(make_run(name, step=100), lr=lr, git=commits[name], parameters=868352)
    fake.states = [
        RunInfo("warm", "train", "host", "finished", step=100, max_steps=100, attempts=1, cost=1.5),
        RunInfo("cool", "train", "host", "finished", step=100, max_steps=100, attempts=2),
    ]


def cells(stdout: str) -> dict[str, list[str]]:
    """Return the rows of the table by name; names and cells have no double spaces."""
    lines = [line for line in stdout.split("\n\n")[0].splitlines()[1:] if line]
    return {
        line.split("  ")[0]: [cell.strip() for cell in line.split("  ") if cell.strip()][1:]
        for line in lines
    }


def test_the_table_shows_differences_and_results(type_, two) -> None:
    result = type_("runner compare warm cool")
    assert result.exit_code == 0
    rows = cells(result.stdout)
    assert rows["train.lr"] == ["0.01", "0.001"]
    assert "train.max_steps" not in rows  # identical in both
    assert "name" not in rows
    assert rows["tokens/s"] == ["2,000", "2,000"]
    assert rows["MFU"] == ["25.0%", "25.0%"]
    assert rows["training time"] == ["50s", "50s"]
    assert rows["cost"] == ["$1.50", "–"]
    assert rows["commit"] == ["aaaabbbbcc", "1234 and changes"]
    assert rows["best validation"][1].startswith("1.2")


def test_a_returned_value_that_has_a_row_is_not_repeated(type_, two, make_run, fake) -> None:
    result = {"exit_status": 0, "val_loss": 2.5, "test_loss": 3.5}
    make_run("nano", job="command", val_loss=2.5, result=result)
    fake.states.append(RunInfo("nano", "command", "host", "finished"))
    rows = cells(type_("runner compare warm nano").stdout)
    assert rows["test_loss"][1] == "3.5"
    assert "validation loss" in rows
    assert "val_loss" not in rows


def test_all_curves_share_one_plot(type_, two) -> None:
    by_step = type_("runner compare warm cool").stdout
    assert "━ warm   ━ cool" in by_step
    assert "\x1b" not in by_step
    last = {"step": "100", "tokens": "100k", "time": "50s"}
    for axis, end in last.items():
        plot = type_(f"runner compare warm cool --by {axis}").stdout.splitlines()
        assert plot[-2].split()[-1] == end
        assert axis in plot[-1]


def test_json_has_unrounded_numbers(type_, two) -> None:
    tree = json.loads(type_("runner compare warm cool --json").stdout)
    assert tree["differences"] == {"train.lr": {"warm": 0.01, "cool": 0.001}}
    warm, cool = tree["runs"]
    assert (warm["run"], warm["train_seconds"]) == ("warm", 50.0)
    assert (warm["cost"], cool["cost"]) == (1.5, None)
    assert cool["val_loss"] == pytest.approx(cool["train_loss"] + 0.05)
    assert warm["recipe"]["model.bias"] is False


def test_the_png_has_a_color_for_each_run(type_, two, checkout: Path) -> None:
    assert type_("runner compare warm cool --png curves.png").exit_code == 0
    picture = Image.open(io.BytesIO((checkout / "curves.png").read_bytes())).convert("RGB")
    assert picture.width > 1000
    counts = {color: count for count, color in picture.getcolors(2**24)}
    for color in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)):
        assert counts.get(color, 0) > 500


def test_many_runs_have_a_row_each(type_, make_run, fake) -> None:
    names = [f"run{i}" for i in range(6)]
    for i, name in enumerate(names):
        fill_run(make_run(name, step=20), steps=20, lr=(i + 1) / 1000)
    fake.states = [
        RunInfo(name, "train", "host", "finished", step=20, max_steps=20) for name in names
    ]
    lines = type_(f"runner compare {' '.join(names)}").stdout.splitlines()
    assert lines[0].split()[:2] == ["run", "lr"]
    assert [line.split()[:2] for line in lines[1:3]] == [["run0", "0.001"], ["run1", "0.002"]]


def test_a_run_without_curves_can_be_compared(type_, make_run, fake) -> None:
    make_run("empty")
    fill_run(make_run("warm", step=20), steps=20)
    fake.states = [RunInfo(name, "train", "host", "lost") for name in ("empty", "warm")]
    result = type_("runner compare empty warm")
    assert result.exit_code == 0, result.stderr
    assert "training loss" in result.stdout
    assert png([History(fake.states[0])], "time")  # an empty chart, not an error


def test_a_key_that_an_older_recipe_lacks_is_a_difference() -> None:
    state = RunInfo("a", "train", "host", "finished")
    recipes = ({"train.lr": 1}, {"train.lr": 1, "train.new": True})
    runs = [History(state, recipe=recipe) for recipe in recipes]
    assert differences(runs) == {"train.new": [None, True]}


def test_the_best_value_of_a_row_is_found() -> None:
    found = [
        {"val_loss": 1.2, "tokens_per_second": 2000.0, "mfu": 0.25, "status": "finished"},
        {"val_loss": 1.1, "tokens_per_second": 900.0, "mfu": 0.25, "status": "lost"},
        {"val_loss": None},
    ]
    names = ("validation loss", "tokens/s", "MFU", "training loss", "status")
    assert [best_of(name, found) for name in names] == [1, 0, None, None, None]


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0)])
def test_a_diverged_run_is_never_the_best(order: tuple[int, ...]) -> None:
    losses = [math.nan, 1.1, 1.2]
    values = [{"val_loss": losses[i], "tokens_per_second": losses[i]} for i in order]
    assert best_of("validation loss", values) == order.index(1)
    assert best_of("tokens/s", values) == order.index(2)
    assert best_of("validation loss", values[:1]) is None


def test_a_comparison_with_a_diverged_run_is_valid_json(type_, two, checkout: Path) -> None:
    path = checkout / "volumes" / "checkpoints" / "cool"
    (path / "metrics.jsonl").unlink()
    tree = json.loads((path / "run.json").read_text())
    tree |= {"val_loss": math.nan, "train_loss": math.inf, "best_val_loss": math.nan}
    (path / "run.json").write_text(json.dumps(tree))
    (path / "recipe.yaml").write_text("train: {lr: .nan}")
    result = type_("runner compare warm cool --json")
    cool = json.loads(result.stdout, parse_constant=pytest.fail)["runs"][1]
    assert (cool["val_loss"], cool["recipe"]["train.lr"]) == (None, None)
    assert type_("runner compare warm cool").exit_code == 0


def test_equal_nan_settings_are_not_a_difference() -> None:
    state = RunInfo("a", "train", "host", "finished")
    runs = [History(state, recipe={"train.lr": float("nan")}) for _ in range(2)]
    assert differences(runs) == {}
    assert to_json(runs)["differences"] == {}


def test_a_png_replaces_only_a_png(type_, two, checkout: Path) -> None:
    (checkout / "thesis.tex").write_text("mine")
    result = type_("runner compare warm cool --png thesis.tex")
    assert (result.exit_code, "exists and is not a PNG" in result.stderr) == (2, True)
    assert (checkout / "thesis.tex").read_text() == "mine"
    for _ in range(2):
        assert type_("runner compare warm cool --png c.png").exit_code == 0


@pytest.fixture
def seeds(two, make_run, fake) -> None:
    for name in ("seed2", "seed10", "seed1"):
        fill_run(make_run(name, step=20), steps=20)
        fake.states.append(RunInfo(name, "train", "host", "finished", step=20, max_steps=20))


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("'seed*'", ["seed1", "seed10", "seed2"]),
        ("'seed?' warm", ["seed1", "seed2", "warm"]),
        ("seed2 'seed*'", ["seed2", "seed1", "seed10"]),
        ("'seed*' seed1 '*1'", ["seed10", "seed2", "seed1"]),
    ],
)
def test_a_pattern_expands_to_matching_runs(type_, seeds, words: str, names: list[str]) -> None:
    result = type_(f"runner compare {words} --json")
    assert result.exit_code == 0, result.stderr
    assert [run["run"] for run in json.loads(result.stdout)["runs"]] == names


def test_a_pattern_without_any_runs(type_) -> None:
    result = type_("runner compare 'seed*'")
    assert result.exit_code == 102
    assert "no run matches 'seed*'; no runs yet" in result.stderr


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("compare warm", 2, "needs two or more different runs"),
        ("compare warm warm", 2, "needs two or more different runs"),
        ("compare 'wa*'", 2, "'wa*' matches only warm"),
        ("compare 'sead*'", 102, "no run matches 'sead*'; the runs are cool, warm; `runner runs`"),
        ("compare warm cold", 102, "did you mean 'cool'?"),
        ("compare warm cool --png no/such/x.png", 2, "no folder "),
        ("compare warm cool --png configs", 2, "is a folder; use --png configs/curves.png"),
        ("report warm --output no/such/x.html", 2, "no folder "),
        ("report warm --output configs/", 2, "--output configs/warm.html"),
    ],
)
def test_a_mistake_is_named(type_, two, checkout: Path, line: str, code: int, message: str) -> None:
    result = type_(f"runner {line}")
    assert (result.exit_code, message in result.stderr) == (code, True), result.stderr
    assert not (checkout / "no").exists()


def test_a_missing_matplotlib_names_the_install_command(type_, two, monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = type_("runner compare warm cool --png x.png")
    assert (result.exit_code, "-m pip install 'jinja2" in result.stderr) == (1, True)
    assert type_("runner compare warm cool").exit_code == 0


def test_a_pulled_copy_is_read_if_its_target_is_unreachable(
    type_, two, make_run, cli, checkout, tmp_path
) -> None:
    copies = MirroredRuns(checkout / "volumes" / "checkpoints", "cloud")
    cli.targets["cloud"] = FakeTarget(tmp_path / "there", name="cloud", copies=copies)
    attempt = {"started": 5.0, "ended": 9.0, "launch": {"target": "cloud"}}
    folder = make_run("there", step=100, attempts=[attempt])
    fill_run(folder)
    billed = CloudAttempt("fc-1", "c", 0.0, 3600.0, usd_per_hour=4.0, ended=3600.0)
    AttemptLog([billed], call="fc-1", status=0).write(folder)
    result = type_("runner compare warm there --json")
    assert result.exit_code == 0, result.stderr
    assert "reading the pulled copy" in result.stderr
    copy = json.loads(result.stdout)["runs"][1]
    assert (copy["target"], copy["status"], copy["cost"]) == ("cloud", "finished", 4.0)
    assert copy["step"] == 100


@pytest.mark.parametrize("words", [("compare", "warm", "cool"), ("runs",), ("status", "warm")])
def test_a_closed_pipe_is_not_an_error(make_run, spawn, words: tuple[str, ...]) -> None:
    for name, lr in (("warm", 1e-2), ("cool", 1e-3)):
        fill_run(make_run(name, step=100), lr=lr)
    process = spawn(*words)
    process.stdout.close()
    assert (process.wait(60), process.stderr.read()) == (0, "")
