"""Check whether a run can be resumed with this recipe, experiment, or kind of job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from job.format import runner_command
from job.run_record import RunRecord
from job.schedules import learning_rate, short_blocks

if TYPE_CHECKING:
    from job.recipe import ModelConfig, Recipe


# These may change as long as no past step would have had a different learning rate.
ENDS = {"train.max_steps", "train.decay_steps"}


def recipe_mismatch(run: str, recorded: Recipe, requested: Recipe, target: str, step: int) -> str:
    """Return why ``run``, now at ``step``, can't resume with ``requested``; '' if it can.

    The plan checks this before money is spent, and the job checks it again.
    """
    from job.recipe import changes

    different = changes(recorded, requested)
    if not different or (different.keys() <= ENDS and _same_so_far(recorded, requested, step)):
        return ""
    lines = "\n".join(f"  {key}: {old!r} → {new!r}" for key, (old, new) in different.items())
    return (
        f"run '{run}' was started with different settings; resuming would mix them:\n{lines}\n"
        f"start a new run: {runner_command(target)} RECIPE --name NEW-NAME (add init_from={run} "
        "to start from its weights), or use the run's own settings"
        + (ADVICE if different.keys() <= ENDS else "")
    )


ADVICE = (
    ". A run can be made longer before its learning rate starts to decay: with "
    "schedule=constant, or before its last decay_steps"
)


def _same_so_far(recorded: Recipe, requested: Recipe, step: int) -> bool:
    """Return True if no step up to ``step`` would have had a different learning rate."""
    if step >= requested.train.max_steps:
        return False
    return all(
        learning_rate(s, recorded.train) == learning_rate(s, requested.train) for s in range(step)
    )


def does_not_fit(run: str, before: ModelConfig, after: ModelConfig) -> str:
    """Return why the weights of ``run`` do not fit the network ``after``; '' if they do.

    The shapes of the weights do not show all settings that make it compute a different function.
    Dropout is not one: it is for training only.
    """
    keys = ["variant", "n_layer", "n_head", "n_embd", "value_embeddings"]
    if before.variant == after.variant == "gpt2":
        keys += ["bias", "block_size"]  # modern's rotary positions have no weights
    if before.variant == after.variant == "modern":
        keys.append("smear")
    if short_blocks(before) != short_blocks(after):
        keys.append("attention_pattern")
    if any(short_blocks(before)):
        keys.append("window_size")
    values = ((key, getattr(before, key), getattr(after, key)) for key in keys)
    listed = ", ".join(f"model.{key} is {old}, not {new}" for key, old, new in values if old != new)
    return listed and f"run '{run}' does not fit the recipe's model: {listed}"


def refuse_changed_network(run: str, before: Recipe, after: Recipe) -> None:
    """Raise RecipeError if ``after`` sets a key that the weights of ``run`` fix."""
    from job.recipe import changes

    for key, (old, _) in changes(before, after).items():
        if key.startswith("model.") or key == "data.tokenizer":
            problem = f"run '{run}' was trained with {key}={old}, which is fixed; remove it"
            raise after.mistake(key, problem)


JOB = "experiment"


def experiment_mismatch(record: RunRecord, file: str, arguments: Mapping[str, Any]) -> str:
    """Return why ``file`` with ``arguments`` (defaults included) can't resume the run.

    '' if it can.

    ``file`` is a name without folders: the folder differs between targets.
    """
    if problem := job_mismatch(record, JOB):
        return problem
    if not record.arguments and not record.file:
        return ""  # it ended before it recorded them
    before = record.file.get("path", file).replace("\\", "/").rpartition("/")[2]
    lines = [f"  file: {before} → {file}"] if before != file else []
    for key in {**record.arguments, **arguments}:
        old, new = record.arguments.get(key, MISSING), arguments.get(key, MISSING)
        if old is MISSING or new is MISSING or old != new:
            lines.append(f"  {key}: {_format(old)} → {_format(new)}")
    if not lines:
        return ""
    return (
        f"run '{record.name}' was started with different parameters; resuming would mix them:\n"
        + "\n".join(lines)
        + "\nstart a new run with --name NEW-NAME, or use the run's own parameters"
    )


MISSING = object()


def _format(value: object) -> str:
    return "(missing)" if value is MISSING else repr(value)


def job_mismatch(record: RunRecord, job: str) -> str:
    """Return why a ``job`` (train, command, experiment) can't resume the run; '' if it can."""
    if record.job == job:
        return ""
    return (
        f"run '{record.name}' exists with job {record.job}; use a different --name "
        f"(`runner status {record.name}` shows it, `runner resume {record.name}` resumes it)"
    )
