"""Recipes: typed, checked; each error is one line with the file, line and a suggestion."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from job.exit_status import RecipeError
from job.paths import CONFIGS
from job.recipe import changes, load

GOOD = """model:
  n_layer: 2
  n_head: 2
  n_embd: 32
  block_size: 32
data:
  dataset: d
train:
  max_steps: 10
  global_batch_tokens: 64
  lr: 1e-3
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "r.yaml"
    path.write_text(GOOD)
    return path


LONG = GOOD.replace(
    "  max_steps: 10\n",
    """  max_steps: 100
  warmup_steps: 20
  decay_steps: 40
  batch_schedule: [[50, 128], [90, 256]]
""",
)


class TestShorterRun:
    """A quick try with ``max_steps=10`` works although the recipe's schedules are longer."""

    def test_schedules_of_the_file_are_scaled_and_reported(self, recipe: Path) -> None:
        recipe.write_text(LONG)
        short = load(recipe, ["max_steps=10"])
        assert (short.train.warmup_steps, short.train.decay_steps) == (2, 4)
        assert short.train.batch_schedule == [[5, 128], [9, 256]]
        assert "warmup_steps 20 -> 2, decay_steps 40 -> 4, batch_schedule" in short.adjusted

    @pytest.mark.parametrize("steps", [1, 2, 3, 7])
    def test_any_number_of_steps_works(self, recipe: Path, steps: int) -> None:
        recipe.write_text(LONG)
        assert load(recipe, [f"max_steps={steps}"]).train.max_steps == steps

    @pytest.mark.parametrize("overrides", [[], ["max_steps=95"], ["max_steps=200"]])
    def test_schedules_that_fit_stay(self, recipe: Path, overrides: list[str]) -> None:
        recipe.write_text(LONG)
        kept = load(recipe, overrides)
        assert (kept.train.warmup_steps, kept.train.decay_steps) == (20, 40)
        assert kept.adjusted == ""

    def test_schedule_of_an_override_is_refused_if_it_does_not_fit(self, recipe: Path) -> None:
        recipe.write_text(LONG)
        with pytest.raises(RecipeError, match="must be below max_steps"):
            load(recipe, ["max_steps=10", "warmup_steps=20"])

    def test_contradiction_in_the_file_is_refused(self, recipe: Path) -> None:
        recipe.write_text(LONG.replace("max_steps: 100", "max_steps: 10"))
        with pytest.raises(RecipeError, match="must be below max_steps"):
            load(recipe)


# Pipelines and sweeps are in the same folder.
RECIPES = sorted(path for path in CONFIGS.glob("*.yaml") if "\ntrain:" in path.read_text())


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_of_the_project_is_valid(path: Path) -> None:
    assert load(path).name == path.stem


def test_values_are_typed(recipe: Path) -> None:
    loaded = load(recipe, ["compile=false", "top_k=null", "--beta2=0.99", "prompt=- [x]: y"])
    assert loaded.train.lr == 0.001
    assert loaded.train.compile is False
    assert loaded.sample.top_k is None
    assert loaded.train.beta2 == 0.99
    assert loaded.sample.prompt == "- [x]: y"


@pytest.mark.parametrize("value", ["1984", "2024-13-01", "1e-3", "true", "[x", "- [x]: y", "a: b"])
def test_text_settings_keep_their_spelling(recipe: Path, value: str) -> None:
    keys = (
        "sample.prompt",
        "data.source",
        "data.text_column",
        "train.wandb_project",
        "resources.gpu",
        "name",
    )
    loaded = load(recipe, [f"{key}={value}" for key in keys]).model_dump()
    for section, _, leaf in (key.partition(".") for key in keys):
        assert (loaded[section][leaf] if leaf else loaded[section]) == value
    assert load(recipe, ["data.dataset=1984"]).data.dataset == "1984"
    assert (
        load(recipe, ["wandb_project=null", "gpu=~", "prompt="]).model_dump()["sample"]["prompt"]
        == ""
    )
    assert (
        load(recipe, ["wandb_project=x", "wandb_project=null", "gpu=~"]).train.wandb_project is None
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("lr: 1e-3", "learning_rate: 1e-3"),
         ":11: train.learning_rate: unknown key; did you mean 'train.lr'?"),
        (("n_head: 2", "n_head: 3"), ":4: n_embd (32) must be a multiple of n_head (3)"),
        (("max_steps: 10", "max_steps: ten"),
         ":9: train.max_steps: expected an integer, got 'ten'"),
        (("max_steps: 10", "max_steps: 0"),
         ":9: max_steps=0 trains nothing: use at least 1, or name weights to evaluate "
         "(init_from=gpt2)"),
        (("  max_steps: 10\n", ""), ":8: train.max_steps: missing"),
        (("block_size: 32", "block_size: 48"),
         ":10: global_batch_tokens (64) must be a multiple of model.block_size (48); "
         "the nearest is 48"),
        (("model:", "modle:"), ":1: modle: unknown key; did you mean 'model'?"),
        (("lr: 1e-3", "lr: [1"), "not valid YAML"),
        (("  lr: 1e-3", " lr: 1e-3"),
         ":11: not valid YAML: expected <block end>, but found '<block mapping start>'; "
         "check the indentation of this line"),
        (("  lr: 1e-3", "\tlr: 1e-3"), "indent with spaces instead of tabs"),
        (("lr: 1e-3", "lr: a: b"),
         ":11: not valid YAML: mapping values are not allowed here; quote a value that contains "
         "': ', or check the indentation of this line"),
        (("lr: 1e-3", "lr\n  eval_every: 5"), "write `key: value`"),
        (("lr: 1e-3", "lr: 1e-3\n  lr: 2e-3"),
         ":12: duplicate key train.lr (first defined at line 11)"),
        (("model:", "- model:"), "not valid YAML"),
        (("lr: 1e-3", "wandb_project: 2024-13-01"),
         ":11: not valid YAML: invalid value 2024-13-01 (month must be in 1..12); "
         "if it is text, quote it"),
        (("lr: 1e-3", "lr: !!timestamp soon"), ":11: not valid YAML: invalid value soon"),
        (("lr: 1e-3", "lr: 1e-3 # \a"),
         ":11: not valid YAML: it has the character U+0007; delete it"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_error_in_the_file_names_its_line(
    recipe: Path, change: tuple[str, str], message: str
) -> None:
    recipe.write_text(GOOD.replace(*change))
    with pytest.raises(RecipeError) as error:
        load(recipe)
    assert message in str(error.value)
    assert str(recipe) in str(error.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lrr=1", "argument 'lrr=1': unknown key 'lrr'; did you mean 'train.lr'?"),
        ("batch_size=1", "did you mean 'train.micro_batch'?"),
        ("lr=fast", "argument 'lr=fast': train.lr: expected a number, got 'fast'"),
        ("compile=maybe", "compile: expected true or false or 'auto', got 'maybe'"),
        ("variant=modrn", "did you mean 'modern'?"),
        ("n_embd=33", "argument 'n_embd=33': n_embd (33) must be a multiple of n_head (2)"),
        ("source=s3://a/b", "can't download s3://a/b: only http:// and https:// addresses"),
        ("source=https://[::1", "can't download https://[::1: Invalid IPv6 URL"),
        ("source=http:///x", "can't download http:///x: it names no host"),
        ("source=http://a:99999/x", "can't download http://a:99999/x: Port out of range"),
        ("nonsense", "expected key=value"),
        ("lr=2024-13-01", "argument 'lr=2024-13-01': invalid value 2024-13-01"),
        ("dataset=null", "expected text, got None"),
        ("eval_tasks=core", "expected a list, got 'core'; write it in brackets, as in [A, B]"),
        ("window_pattern=SL", "did you mean 'model.attention_pattern'?"),
    ],
)
def test_error_in_an_override_names_the_argument(recipe: Path, override: str, message: str) -> None:
    with pytest.raises(RecipeError) as error:
        load(recipe, [override])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("variant=gpt2 attention_pattern=SL window_size=8",
         "GPT-2 sees the whole context in every block"),
        ("attention_pattern=SL", "attention_pattern SL needs a window_size; try 8"),
        ("window_size=8", "window_size has no effect without an S in attention_pattern"),
        ("attention_pattern=SL window_size=64", "window_size (64) must be at most block_size (32)"),
        ("attention_pattern=SX window_size=8",
         "expected the letters S (window) and L (whole context), such as SSSL, got 'SX'"),
        ("attention_pattern=SL window_size=8 window_schedule=[[0,4]]",
         "must end with model.window_size (8)"),
        ("attention_pattern=SL window_size=8 window_schedule=[[0,64],[5,8]]",
         "no window longer than block_size"),
        ("attention_pattern=SL window_size=8 window_schedule=[[5,4],[5,8]]",
         "invalid stage [5, 8]; expected [STEP, TOKENS] with increasing steps"),
        ("attention_pattern=SL window_size=8 window_schedule=[[0,4],[10,8]]",
         "below max_steps (10)"),
        ("window_schedule=[[0,8]]", "must end with model.window_size (None)"),
    ],
)  # fmt: skip
def test_invalid_windows_are_refused(recipe: Path, overrides: str, message: str) -> None:
    assert load(
        recipe,
        [
            "variant=modern",
            "attention_pattern=SSL",
            "window_size=8",
            "window_schedule=[[0,4],[9,8]]",
        ],
    )
    with pytest.raises(RecipeError) as error:
        load(recipe, ["variant=modern", *overrides.split()])
    assert message in str(error.value)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"none\.yaml: no such file"):
        load(tmp_path / "none.yaml")


def test_changes_are_those_that_need_a_new_run(recipe: Path) -> None:
    before, after = load(recipe), load(recipe, ["lr=2e-3", "log_every=3", "gpu=H100"])
    assert changes(before, after) == {"train.lr": (0.001, 0.002)}


def test_written_recipe_reads_back_unchanged(recipe: Path, tmp_path: Path) -> None:
    first = load(recipe)
    again = tmp_path / "again.yaml"
    again.write_text(first.to_yaml())
    assert load(again).model_dump() == first.model_dump()


def test_reading_recipes_imports_no_torch() -> None:
    code = "import sys, job.recipe, job.run_record, job.paths; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_key_of_two_sections_belongs_to_the_job() -> None:
    path = CONFIGS / "quickstart.yaml"
    assert load(path, ["seed=7"]).train.seed == 7
    recipe = load(path, ["seed=7"], section="sample")
    assert (recipe.train.seed, recipe.sample.seed) == (1337, 7)
    with pytest.raises(RecipeError, match=r"use train\.seed or sample\.seed"):
        load(path, ["seed=7"], section="data")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("lr: .nan", "not a finite number"),
        ("lr: 1e999", "not a finite number"),
        ("seed: 0x" + "f" * 5000, "an integer of more than 64 bits"),
        ("lr: " + "[" * 3000 + "]" * 3000, "nested deeper than"),
        ("lr: &a 1.0\n  min_lr: *a", "alias *a is not supported"),
    ],
    ids=["nan", "infinity", "long-integer", "deep", "alias"],
)
def test_impossible_values_are_refused_with_their_line(
    recipe: Path, line: str, problem: str
) -> None:
    recipe.write_text(GOOD.replace("lr: 1e-3", line))
    with pytest.raises(RecipeError, match=re.escape(problem)) as error:
        load(recipe)
    assert re.match(rf"{re.escape(str(recipe))}:\d+: ", str(error.value))
    assert len(str(error.value)) < 300
