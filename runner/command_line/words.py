"""``[JOB] [RECIPE] [key=value ...]`` in any order: what each word is, told by its form."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from runner.command_line.mistyped import with_blanks
from runner.errors import did_you_mean, usage
from runner.jobs import JOBS


@dataclass(frozen=True)
class Words:
    """The sorted arguments. ``recipe`` is a path or the name of a file in configs/, as typed."""

    job: str = "train"
    recipe: str | None = None
    overrides: tuple[str, ...] = ()


def sort_words(
    words: Sequence[str], recipes: Collection[str], runs: Callable[[], Collection[str]] = tuple
) -> Words:
    """Sort ``words``; ``recipes`` are the known names, ``runs`` gives those of the runs for a hint.

    What contains ``=`` is an override, a job's name the job, a path or a known name the recipe.
    Raises RunnerError (exit code 2) for a word that is none of them and for a second job or recipe.
    """
    if blanks := with_blanks(words):
        raise usage(f"'{blanks[0]}': a setting is one word; write {blanks[1]}")
    if any(word in JOBS and JOBS[word].measures for word in words):
        words = [word for word in words if word != "bench"]  # `bench roofline` says what it is
    jobs = [word for word in words if word in JOBS]
    overrides = [word for word in words if word not in JOBS and "=" in word]
    rest = [word for word in words if word not in JOBS and "=" not in word]
    for word in rest:
        if word.endswith(".py"):
            raise usage(f"{word} is no recipe; an experiment is started by the word run: run {word}")
        if word not in recipes and not looks_like_path(word):
            before = words[max(0, words.index(word) - 1)]
            if before.endswith("="):
                raise usage(f"'{before} {word}': a setting is one word; write {before}{word}")
            raise usage(_unknown(word, recipes, runs()))
    if len(jobs) > 1:
        raise usage(f"two jobs, '{jobs[0]}' and '{jobs[1]}'; start them one after the other")
    if len(rest) > 1:
        raise usage(f"two recipes, '{rest[0]}' and '{rest[1]}'; a run has one")
    return Words(jobs[0] if jobs else "train", rest[0] if rest else None, tuple(overrides))


def looks_like_path(word: str) -> bool:
    """Whether the word can only be a file: it names a folder or ends as YAML does."""
    return "/" in word or "\\" in word or word.endswith((".yaml", ".yml"))


def _unknown(word: str, recipes: Collection[str], runs: Collection[str]) -> str:
    if word in runs:
        return f"'{word}' is a run, not a job or a recipe; write --name {word}"
    guess = did_you_mean(word, [*JOBS, "run", *recipes])
    if guess:
        return f"'{word}' is neither a job nor a recipe{guess}"
    names = ", ".join(sorted(recipes)) or "none"
    return (
        f"'{word}' is neither a job ({', '.join(JOBS)}) nor a recipe of configs/ ({names}); "
        "an override is key=value"
    )
