"""Several runs by name, as they are typed: a pattern stands for the runs that it fits."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from runner.errors import not_found
from runner.runs.find import every_run
from runner.terminal import Environment

SHOWN = 8  # names in an error


def runs_named(env: Environment, words: Sequence[str]) -> list[str]:
    """The names, in the order of ``words``; those of a pattern (``seed*``) by name, without what is there already.

    Raises RunnerError, exit code 102, where a pattern fits no run.
    """
    if not any(map(_is_pattern, words)):
        return list(words)
    known = sorted(found.state.run for found in every_run(env))
    names: list[str] = []
    for word in words:
        if not _is_pattern(word):
            names.append(word)
            continue
        fitting = [name for name in known if fnmatchcase(name, word)]
        if not fitting:
            raise not_found(f"no run fits '{word}'; {_there_are(known)}")
        names += [name for name in fitting if name not in names and name not in words]
    return names


def _is_pattern(word: str) -> bool:
    return any(sign in word for sign in "*?[")  # no run has them in its name


def _there_are(known: list[str]) -> str:
    if not known:
        return "there are no runs yet; `runner local` or `runner host` trains the first one"
    more = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
    return f"there are {', '.join(known[:SHOWN])}{more}; `runner runs` lists them"
