"""Whether a run that is there can go on with this recipe: its settings, but for those that are free to change."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from job.recipe import Recipe


def other_recipe(run: str, before: Recipe, after: Recipe, target: str) -> str:
    """Why ``run``, begun with ``before``, can't go on with ``after``, and the ways out; '' where it can.

    The plan says it before anything is paid for, and the job says it where no plan was made.
    """
    from job.recipe import changes

    different = changes(before, after)
    if not different:
        return ""
    lines = "\n".join(f"  {key}: {old!r} → {new!r}" for key, (old, new) in different.items())
    return (
        f"run {run} was begun with other settings, and going on would mix the two:\n{lines}\n"
        f"start another run with `runner {target} RECIPE --name NEW-NAME`, with init_from={run} too where it shall "
        "begin with these weights (to train longer, say); or give the settings that it was begun with"
    )
