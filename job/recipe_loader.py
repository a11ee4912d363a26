"""Read YAML with the line of every key, apply overrides, and describe mistakes."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from job.exit_status import RecipeError
from job.files import MISSING, file_problem, read_utf8
from job.format import brief, did_you_mean


@dataclass
class Source:
    """A recipe before it is checked: its values, and where each was written."""

    origin: str
    tree: dict[str, Any]
    lines: dict[str, int] = field(default_factory=dict)  # full key → line, from 1
    overrides: dict[str, str] = field(default_factory=dict)  # full key → the argument as typed

    def where(self, key: str) -> str:
        """Return ``file:line`` of ``key`` or its nearest section; the argument if one set it."""
        if key in self.overrides:
            return f"argument '{brief(self.overrides[key])}'"
        while key:
            if key in self.lines:
                return f"{self.origin}:{self.lines[key]}"
            key = key.rpartition(".")[0]
        return self.origin


# Regular expressions of values, and their description in messages.
DURATION = r"^\d+(\.\d+)?[smhd]$"
FOLDER_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
ATTENTION_PATTERN = r"^[SL]+$"
PATTERNS = {
    DURATION: "a duration such as 90m, 12h or 3d",
    FOLDER_NAME: "letters, digits, '.', '_' and '-', starting with a letter or a digit",
    ATTENTION_PATTERN: "the letters S (window) and L (whole context), such as SSSL",
}

# Advice for problems that PyYAML reports in the words of its parser.
YAML_REMEDIES = {
    "<block": "check the indentation of this line",
    "mapping values": "quote a value that contains ': ', or check the indentation of this line",
    "expected ':'": "write `key: value`",
    r"'\t'": "indent with spaces instead of tabs",
}

MAX_BYTES = 1_000_000  # of a file
MAX_DEPTH = 20  # levels of nesting
MAX_INT = 2**63 - 1


def _invalid(problem: str, place: Any) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, place.start_mark)


class _Loader(yaml.SafeLoader):
    """SafeLoader for settings that people write.

    Reads 1e-3 as a number (YAML 1.1 requires 1.0e-3). Refuses duplicate keys, aliases (ten lines of
    them can expand to gigabytes), deep nesting, NaN, infinity, and integers of more than 64 bits.
    """

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            raise _invalid(f"alias *{event.anchor} is not supported; write the value out", event)
        if self._depth >= MAX_DEPTH:
            raise _invalid(f"nested deeper than {MAX_DEPTH} levels", event)
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
            if isinstance(value, int) and not -MAX_INT <= value <= MAX_INT:
                raise ValueError("an integer of more than 64 bits")
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError("not a finite number")
            return value
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            text = brief(str(getattr(node, "value", "")), 40)
            words = f"invalid value {text} ({error}); if it is text, quote it"
            raise _invalid(words, node) from None


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def read_yaml(
    path: Path, shape: str = "expected a mapping with the sections model, data and train"
) -> Source:
    """Return a mapping and each key's line. Raises RecipeError; it names the expected ``shape``."""
    if problem := file_problem(path):
        hint = "`ls configs` shows the recipes" if problem == MISSING else "give a YAML file"
        raise RecipeError(f"{path}: {problem}; {hint}")
    if path.stat().st_size > MAX_BYTES:
        raise RecipeError(f"{path}: larger than {MAX_BYTES:,} bytes; it is not a settings file")
    try:
        text = read_utf8(path)
    except ValueError as error:
        raise RecipeError(f"{path}: {error}") from None
    try:
        node = yaml.compose(text, _Loader)
        tree = yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problem = str(error.problem)
        remedy = next((f"; {text}" for part, text in YAML_REMEDIES.items() if part in problem), "")
        raise RecipeError(f"{path}:{line}: not valid YAML: {problem}{remedy}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise RecipeError(
            f"{path}:{line}: not valid YAML: it has the character U+{error.character:04X}; delete "
            "it"
        ) from None
    if not isinstance(tree, dict):
        raise RecipeError(f"{path}: {shape}")
    source = Source(str(path), tree)
    _note_lines(node, "", source)
    return source


def _note_lines(node: yaml.Node | None, prefix: str, source: Source) -> None:
    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            source.lines[f"{prefix}{number}"] = item.start_mark.line + 1
            _note_lines(item, f"{prefix}{number}.", source)
    if not isinstance(node, yaml.MappingNode):
        return
    for key_node, value in node.value:
        key = f"{prefix}{key_node.value}"
        line = key_node.start_mark.line + 1
        if key in source.lines:
            raise RecipeError(
                f"{source.origin}:{line}: duplicate key {brief(key)} (first defined at line "
                f"{source.lines[key]})"
            )
        source.lines[key] = line
        _note_lines(value, f"{key}.", source)


def apply_override(
    source: Source,
    argument: str,
    known: Collection[str],
    texts: Collection[str] = (),
    section: str = "",
) -> None:
    """Set ``key=value`` in the tree.

    The value is YAML, so ``true``, ``1e-3`` and ``null`` are typed.

    The value of a key in ``texts`` is taken literally: a shell removes the quotes of "1984".
    """
    name, equals, text = argument.partition("=")
    name = name.strip().removeprefix("--")
    if not equals or not name:
        raise RecipeError(f"argument '{brief(argument)}': expected key=value, for example lr=1e-3")
    key = full_key(name, argument, known, section)
    *sections, leaf = key.split(".")
    tree = source.tree
    for name in sections:
        child = tree.get(name)
        if child is None:
            child = tree[name] = {}
        if not isinstance(child, dict):
            return  # the file is wrong there; the check reports its line
        tree = child
    tree[leaf] = _value(text, key in texts, argument)
    source.overrides[key] = argument


def _value(text: str, is_text: bool, argument: str) -> Any:
    if not text or (is_text and text not in {"null", "~"}):
        return text
    try:
        return yaml.load(text, _Loader)
    except yaml.constructor.ConstructorError as error:
        raise RecipeError(f"argument '{brief(argument)}': {error.problem}") from None
    except yaml.YAMLError:
        return text


def full_key(name: str, argument: str, known: Collection[str], section: str = "") -> str:
    """Return the full key for ``name``, in ``section`` if several match. Raises RecipeError."""
    if name in known:
        return name
    matches = [key for key in known if key.rpartition(".")[2] == name]
    if len(matches) == 1:
        return matches[0]
    if f"{section}.{name}" in matches:
        return f"{section}.{name}"
    if len(matches) > 1:
        raise RecipeError(
            f"argument '{brief(argument)}': {name} is in several sections; "
            f"use {' or '.join(matches)}"
        )
    raise RecipeError(
        f"argument '{brief(argument)}': unknown key '{brief(name)}'{_suggest(name, known)}"
    )


# Other trainers' names for our keys, which differ in spelling, and an earlier name.
SYNONYMS = {
    "keep": "persist",
    "learning_rate": "train.lr",
    "batch_size": "train.micro_batch",
    "max_iters": "train.max_steps",
    "num_iterations": "train.max_steps",
    "steps": "train.max_steps",
    "epochs": "train.max_steps",
    "num_epochs": "train.max_steps",
    "num_train_epochs": "train.max_steps",
    "total_batch_size": "train.global_batch_tokens",
    "eval_interval": "train.eval_every",
    "save_every": "train.checkpoint_every",
    "save_steps": "train.checkpoint_every",
    "save_interval": "train.checkpoint_every",
    "log_interval": "train.log_every",
    "warmup_iters": "train.warmup_steps",
    "lr_decay_iters": "train.decay_steps",
    "sequence_length": "model.block_size",
    "context_length": "model.block_size",
    "window_pattern": "model.attention_pattern",
    "sliding_window": "model.window_size",
    "hidden_size": "model.n_embd",
    "d_model": "model.n_embd",
    "num_layers": "model.n_layer",
    "num_heads": "model.n_head",
}


def _suggest(name: str, known: Collection[str]) -> str:
    """Return ``; did you mean 'x'?`` or ''. Synonyms, full keys and last parts are tried."""
    section, _, leaf = name.lower().rpartition(".")
    if SYNONYMS.get(leaf) in known:
        return f"; did you mean '{SYNONYMS[leaf]}'?"
    siblings = [key for key in known if section and key.startswith(section + ".")]
    if guess := did_you_mean(name, siblings, 0.75) or did_you_mean(name, known, 0.75):
        return guess
    by_leaf = {key.rpartition(".")[2]: key for key in known}
    close = difflib.get_close_matches(leaf, by_leaf, n=1)
    return f"; did you mean '{by_leaf[close[0]]}'?" if close else ""


def describe(
    errors: Sequence[Any], source: Source, known: Collection[str], noun: str = "recipe"
) -> list[str]:
    """Return a line for each mistake that pydantic found; ``noun`` is the kind of file."""
    lines: dict[str, str] = {}
    for error in errors:
        path = [str(part) for part in error["loc"]]
        context = error.get("ctx") or {}
        if error["type"] == "impossible":
            key = ".".join([*path, context["key"]])
            lines[key] = f"{source.where(key)}: {context['message']}"
            continue
        key = ".".join(path)
        # A union reports one error per member, with the member's name after the key.
        while key not in known and "." in key and key.rpartition(".")[0] in known:
            key = key.rpartition(".")[0]
        if key in lines and error["type"] == "literal_error":
            lines[key] = lines[key].replace(", got ", f" or {context['expected']}, got ", 1)
        else:
            lines.setdefault(
                key,
                f"{source.where(key)}: {brief(key)}: {_problem(error, key, context, known, noun)}",
            )
    return list(lines.values())


def _problem(
    error: Any, key: str, context: dict[str, Any], known: Collection[str], noun: str
) -> str:
    value = brief(repr(error.get("input")))
    match error["type"]:
        case "extra_forbidden":
            sections = {name.partition(".")[0] for name in known}
            return f"unknown key{_suggest(key, known if '.' in key else {*known, *sections})}"
        case "missing":
            return f"missing; the {noun} must set it"
        case "literal_error":
            guess = did_you_mean(
                str(error.get("input")), str(context["expected"]).replace("'", "").split()
            )
            return f"expected {context['expected']}, got {value}{guess}"
        case "int_type" | "int_from_float":
            return f"expected an integer, got {value}"
        case "float_type":
            return f"expected a number, got {value}"
        case "bool_type":
            return f"expected true or false, got {value}"
        case "string_type":
            return f"expected text, got {value}; quote it"
        case "list_type":
            return f"expected a list, got {value}; write it in brackets, as in [A, B]"
        case "model_type" | "dict_type" | "model_attributes_type":
            return f"expected a section, got {value}; write its keys below it, indented"
        case "greater_than_equal":
            return f"{value} is too small; it must be at least {context['ge']}"
        case "greater_than":
            return f"{value} is too small; it must be above {context['gt']}"
        case "less_than_equal":
            return f"{value} is too large; it must be at most {context['le']}"
        case "less_than":
            return f"{value} is too large; it must be below {context['lt']}"
        case "string_too_short":
            return "expected text, got ''"
        case "string_pattern_mismatch":
            return f"expected {PATTERNS[context['pattern']]}, got {value}"
        case "string_too_long":
            return f"{value} is too long; use at most {context['max_length']} characters"
        case _:
            return str(error["msg"])
