"""Whether a run that is there can go on with this recipe: its settings, but for those that are free to change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from job.run_record import RunRecord

if TYPE_CHECKING:
    from job.recipe import Recipe


# Where the run ends and its rate falls: they may change as long as no step so far would have been another.
ENDS = {"train.max_steps", "train.decay_steps"}


def other_recipe(run: str, before: Recipe, after: Recipe, target: str, step: int) -> str:
    """Why ``run``, begun with ``before`` and now at ``step``, can't go on with ``after``, and the ways out; '' where it can.

    The plan says it before anything is paid for, and the job says it where no plan was made.
    """
    from job.recipe import changes

    different = changes(before, after)
    if not different or (different.keys() <= ENDS and _same_so_far(before, after, step)):
        return ""
    lines = "\n".join(f"  {key}: {old!r} → {new!r}" for key, (old, new) in different.items())
    return (
        f"run {run} was begun with other settings, and going on would mix the two:\n{lines}\n"
        f"start another run with `runner {target} RECIPE --name NEW-NAME`, with init_from={run} too where it shall "
        "begin with these weights; or give the settings that it was begun with"
        + (ADVICE if different.keys() <= ENDS else "")
    )


ADVICE = (
    ". A run can be made longer where its learning rate has not begun to fall by then: with schedule=constant, or before "
    "its last decay_steps"
)


def _same_so_far(before: Recipe, after: Recipe, step: int) -> bool:
    """Whether each step up to ``step`` had the learning rate that it would have had, and there are more to come."""
    from job.schedules import learning_rate

    if step >= after.train.max_steps:
        return False
    return all(learning_rate(s, before.train) == learning_rate(s, after.train) for s in range(step))


JOB = "experiment"


def other_experiment(record: RunRecord, file: str, arguments: Mapping[str, Any]) -> str:
    """Why ``file`` with ``arguments`` (defaults too) can't go on with the run; '' where it can.

    ``file`` is the name without folders: the same one lies elsewhere on another target.
    """
    if why := other_job(record, JOB):
        return why
    if not record.arguments and not record.file:
        return ""  # it ended before it came to note them
    before = record.file.get("path", file).replace("\\", "/").rpartition("/")[2]
    lines = [f"  file: {before} → {file}"] if before != file else []
    for key in {**record.arguments, **arguments}:
        old, new = record.arguments.get(key, MISSING), arguments.get(key, MISSING)
        if old is MISSING or new is MISSING or old != new:
            lines.append(f"  {key}: {_shown(old)} → {_shown(new)}")
    if not lines:
        return ""
    return (
        f"run '{record.name}' was begun with other parameters, and going on would mix the two:\n"
        + "\n".join(lines)
        + "\nstart another run with --name NEW-NAME, or give the parameters that it was begun with"
    )


MISSING = object()


def _shown(value: object) -> str:
    return "(not there)" if value is MISSING else repr(value)


def other_job(record: RunRecord, job: str) -> str:
    """Why a ``job`` (train, command, experiment) can't take up the run; '' where it can."""
    if record.job == job:
        return ""
    article = "an" if record.job.startswith(tuple("aeiou")) else "a"
    return (
        f"run '{record.name}' is {article} {record.job} already; choose another name with --name "
        f"(`runner status {record.name}` shows that one, `runner resume {record.name}` goes on with it)"
    )
