"""Whether a launch can end well, by what its plan estimates: said before it costs anything. Pure."""

from __future__ import annotations

from job.recipe import Recipe
from runner.cloud.durations import in_words
from runner.cloud.fit import fit
from runner.cloud.options import Options
from runner.errors import usage
from runner.history.numbers import dollars


def refuse_too_large(recipe: Recipe, options: Options) -> None:
    """RunnerError, exit code 2, for a GPU on which not even one sequence fits: the trainer halves micro_batch where
    memory is short, and there is nothing left to halve."""
    alone = recipe.train.model_copy(update={"micro_batch": 1})
    processes = options.gpus.count * options.nodes
    for name in options.gpus.names:
        if fit(recipe, name, processes).largest is None:
            found = fit(recipe.model_copy(update={"train": alone}), name, processes)
            raise usage(
                f"not even one sequence fits on a {name}: it takes about {found.needed_gb:.2g} of {found.there_gb:g} GB; "
                "take a larger GPU, activation_checkpointing=true or a smaller network"
            )


def warnings(
    seconds: dict[str, float], hourly: dict[str, float], options: Options, spent: float, used: float
) -> str:
    """A line for the cap and one for the time where they end before the training does, on the GPU that fares best;
    '' where both suffice. ``seconds`` are what is left to do by GPU, ``spent`` dollars and ``used`` seconds so far."""
    lines = []
    price = min(span / 3600 * hourly[name] for name, span in seconds.items())
    if options.max_cost is not None and (left := options.max_cost - spent) < price:
        lines.append(
            f"the cap pays for {_percent(left / price)} of it, {dollars(left)} of about {dollars(price)}; "
            "give it more with --max-cost, or train fewer steps"
        )
    span = min(seconds.values())
    if (rest := options.timeout - used) < span:
        lines.append(
            f"its time ends after {_percent(rest / span)} of it, {in_words(rest)} of about {in_words(span)}; "
            "give it more with --timeout, or train fewer steps"
        )
    return "\n".join(lines)


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.995 else "nearly all"
