"""Names of GPUs as Modal writes them: ``H100``, ``H100:8``, ``H100:8,A100-80GB:8`` in order of preference.

Modal's client sends any name and only its server objects; here a mistake is found before anything starts,
and no name is ever replaced by another.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from runner.cloud.gpu_kinds import BY_NAME
from runner.errors import did_you_mean, usage


@dataclass(frozen=True)
class Gpus:
    """What is asked for: ``count`` of the first of ``names`` that is free. No names: a machine without."""

    names: tuple[str, ...] = ()
    count: int = 1

    def __str__(self) -> str:
        return ",".join(self.each())

    def each(self) -> list[str]:
        """The alternatives as Modal takes them."""
        return [f"{name}:{self.count}" if self.count > 1 else name for name in self.names]


def parse_gpus(text: str) -> Gpus:
    """Read ``--gpu``. Raises RunnerError, exit code 2, for a name or a number that Modal does not have."""
    names, counts = [], []
    for word in text.split(","):
        name, colon, number = word.strip().partition(":")
        name = name.upper()
        if name not in BY_NAME:
            raise usage(f"Modal has no GPU '{word.strip()}'{_with_number(name) or guess(name)}")
        if colon and not number.isdigit():
            raise usage(f"'{word.strip()}' names no number of GPUs; write {name}:2")
        count = int(number) if colon else 1
        most = BY_NAME[name].most
        if not 1 <= count <= most:
            more = "; for more, add --nodes" if count > most == 8 else ""
            raise usage(f"one machine has 1 to {most} {name}, not {count}{more}")
        if name not in names:
            names.append(name)
        counts.append(count)
    if len(set(counts)) > 1:
        raise usage(
            f"'{text}' asks for different numbers of GPUs, and a run has one number of processes; "
            f"write {','.join(f'{name}:{counts[0]}' for name in names)}"
        )
    return Gpus(tuple(names), counts[0])


def _with_number(word: str) -> str:
    """``; did you mean 'H100:8'?`` for the H100x8, H100-8 or 8xH100 of other clouds."""
    match = re.fullmatch(r"(?P<name>.+?)[X*/-](?P<count>[1-8])|(?P<first>[1-8])[X*](?P<last>.+)", word)
    if match is None:
        return ""
    name, count = match["name"] or match["last"], match["count"] or match["first"]
    known = name in BY_NAME and int(count) <= BY_NAME[name].most
    return f"; did you mean '{name}:{count}'?" if known else ""


def guess(name: str) -> str:
    """``; did you mean 'H100'?``, or the list of all."""
    plain = {known.replace("-", ""): known for known in BY_NAME}
    near = did_you_mean(name.replace("-", "").replace("_", "").replace(" ", ""), [k.lower() for k in plain])
    if near:
        found = near.split("'")[1].upper()
        return f"; did you mean '{plain[found]}'?"
    return f"; it has {', '.join(BY_NAME)}"
