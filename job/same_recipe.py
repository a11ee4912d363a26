"""Whether a run that is there can go on with this recipe: its settings, but for those that are free to change."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
    from job.learning_rate import learning_rate

    if step >= after.train.max_steps:
        return False
    return all(learning_rate(s, before.train) == learning_rate(s, after.train) for s in range(step))
