"""Read a Dockerfile: copied sources, environment and working directory."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

_HEREDOC = re.compile(r"<<-?\s*([\"']?)(\w+)\1")
_VARIABLE = re.compile(r"\$(?:\{(\w+)(?::?-([^}]*))?\}|(\w+))")


def instructions(lines: Sequence[str]) -> list[tuple[str, str]]:
    """Return (INSTRUCTION, arguments) pairs without comments and heredoc bodies."""
    found: list[tuple[str, str]] = []
    pending = ""
    until = ""
    for raw in (part for line in lines for part in line.split("\n")):
        line = raw.strip()
        if until:
            until = "" if line == until else until
            continue
        if not line or line.startswith("#"):
            continue
        if line.endswith("\\"):
            pending += line[:-1].strip() + " "
            continue
        whole = pending + line
        pending = ""
        word, _, rest = whole.partition(" ")
        found.append((word.upper(), rest.strip()))
        if word.upper() in ("RUN", "COPY", "ADD") and (heredoc := _HEREDOC.search(rest)):
            until = heredoc.group(2)
    return found


def missing_sources(lines: Sequence[str], context: Iterable[str]) -> list[str]:
    """Return the sources of COPY, ADD and bind mounts that the build context lacks, as written."""
    files = ["/" + name.lstrip("/") for name in context]
    missing = []
    for word, rest in instructions(lines):
        if word in ("COPY", "ADD"):
            sources = _copied(rest)
        elif word == "RUN":
            sources = _bound(rest)
        else:
            continue
        missing += [source for source in sources if not _is_there(source, files)]
    return missing


def copied(lines: Sequence[str], context: Iterable[str], before: str) -> list[tuple[str, str]]:
    """Return (path in the context, path in the image) for each copied file.

    `before` is the working directory. Sources are files, folders or `.`, not wildcards.
    """
    found = []
    files = sorted(map(PurePosixPath, context))
    directory = PurePosixPath(before or "/")
    for word, rest in instructions(lines):
        if word == "WORKDIR":
            directory /= rest.strip("\"'")
        if word != "COPY":
            continue
        target = _flags(rest)[1].split()[-1]
        for source in _copied(rest):
            start = PurePosixPath("/") / source.lstrip("/")
            for file in files:
                if file == start:
                    end = PurePosixPath(file.name if target.endswith("/") else "")
                elif file.is_relative_to(start):
                    end = file.relative_to(start)
                else:
                    continue
                found.append((str(file), str(directory / target / end)))
    return found


def _copied(arguments: str) -> list[str]:
    flags, rest = _flags(arguments)
    if any(flag.startswith("--from=") for flag in flags):
        return []
    try:
        words = json.loads(rest) if rest.startswith("[") else shlex.split(rest)
    except ValueError:
        return []
    remote = ("http://", "https://", "git@", "<<")
    return [word for word in words[:-1] if not word.startswith(remote) and "$" not in word]


def _bound(arguments: str) -> list[str]:
    sources = []
    for flag in _flags(arguments)[0]:
        if not flag.startswith("--mount="):
            continue
        options = dict(
            part.partition("=")[::2] for part in flag.removeprefix("--mount=").split(",")
        )
        source = options.get("source", options.get("src", ""))
        if options.get("type", "bind") == "bind" and "from" not in options and source:
            sources.append(source)
    return sources


def _flags(arguments: str) -> tuple[list[str], str]:
    flags = []
    rest = arguments
    while rest.startswith("--"):
        flag, _, rest = rest.partition(" ")
        flags.append(flag)
        rest = rest.lstrip()
    return flags, rest


def _is_there(source: str, files: Sequence[str]) -> bool:
    path = "/" + str(PurePosixPath(source.lstrip("/")))
    if path in ("/", "/."):
        return bool(files)
    if any(character in path for character in "*?["):
        depth = path.count("/")
        prefixes = {"/".join(name.split("/")[: depth + 1]) for name in files}
        return any(fnmatchcase(prefix, path) for prefix in prefixes)
    return any(name == path or name.startswith(path + "/") for name in files)


def environment(
    lines: Sequence[str], build_args: Mapping[str, str], before: Mapping[str, str]
) -> dict[str, str]:
    """Return the variables of ENV, added to those of earlier layers."""
    env = dict(before)
    args: dict[str, str] = {}
    for word, rest in instructions(lines):
        if word == "ARG":
            name, _, default = rest.partition("=")
            args[name] = build_args.get(name, default.strip("\"'"))
        elif word == "ENV":
            for name, value in _assignments(rest):
                env[name] = _expand(value, {**args, **env})
    return env


def working_directory(lines: Sequence[str], before: str) -> str:
    """Return the last WORKDIR, or that of earlier layers."""
    directory = before
    for word, rest in instructions(lines):
        if word == "WORKDIR":
            directory = str(PurePosixPath(directory or "/") / rest.strip("\"'"))
    return directory


def _assignments(arguments: str) -> list[tuple[str, str]]:
    first = arguments.split(" ", 1)[0]
    if "=" not in first:  # the old form: ENV NAME the rest of the line
        name, _, value = arguments.partition(" ")
        return [(name, value.strip())]
    return [
        (name, value) for name, _, value in (word.partition("=") for word in shlex.split(arguments))
    ]


def _expand(value: str, env: Mapping[str, str]) -> str:
    return _VARIABLE.sub(lambda m: env.get(m.group(1) or m.group(3), m.group(2) or ""), value)
