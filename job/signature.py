"""The options of an experiment.

The signature of ``train`` in a Python file, read without running it.

    def train(output_dir=".", lr: float = 1e-3, variant: Literal["a", "b"] = "a") -> dict:

The runner reads it before anything starts, and must not import the file, which may import torch.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from job.exit_status import ExitStatus, UserError
from job.files import read_file
from job.format import brief, did_you_mean, either

Value = bool | int | float | str | None
FUNCTION, FOLDER = "train", "output_dir"
EXAMPLE = f'def {FUNCTION}({FOLDER}=".", lr: float = 1e-3) -> dict:'
KINDS = ("bool", "int", "float", "str")
BOOL_WORDS = {"true": True, "yes": True, "on": True, "1": True}
BOOL_WORDS |= {"false": False, "no": False, "off": False, "0": False}


class ExperimentError(UserError):
    """A file that is not an experiment, or a parameter that it does not accept."""

    status = ExitStatus.USAGE


@dataclass(frozen=True)
class Parameter:
    """One option.

    ``kinds`` are names of KINDS, empty for any. ``default`` is a value, or, with ``is_source``, the
    source of one that only running the file would compute.
    """

    name: str
    kinds: tuple[str, ...] = ()
    choices: tuple[Value, ...] = ()
    optional: bool = False
    required: bool = True
    default: Value = None
    is_source: bool = False
    foreign: str = ""  # an annotation that a command line can't express

    def describe(self) -> str:
        """Return ``number``, ``'a' or 'b'``, or ``integer or none``."""
        names = {"bool": "true or false", "int": "an integer", "float": "a number", "str": "text"}
        parts = [repr(choice) for choice in self.choices] + [names[kind] for kind in self.kinds]
        parts += ["none"] if self.optional else []
        return either(parts) if parts else "anything"

    def value(self, text: str) -> Value:
        """Convert ``text`` to a value of this parameter. Raises ValueError."""
        if self.foreign:
            raise ValueError
        if self.optional and text.lower() in ("none", "null"):
            return None
        for choice in self.choices:
            if text == str(choice) or (
                isinstance(choice, bool) and BOOL_WORDS.get(text.lower()) is choice
            ):
                return choice
        for kind in (
            self.kinds if self.kinds or self.choices else ("int", "float", "bool_word", "str")
        ):
            try:
                return _read(kind, text)
            except ValueError:
                continue
        raise ValueError


@dataclass(frozen=True)
class Signature:
    """The parameters of ``train`` except the folder; with ``open`` it accepts any other key."""

    path: str
    parameters: tuple[Parameter, ...] = ()
    open: bool = False

    def values(self, words: Sequence[str]) -> dict[str, Value]:
        """Convert ``key=value`` arguments; later ones win. Raises ExperimentError."""
        by_name = {parameter.name: parameter for parameter in self.parameters}
        typed: dict[str, Value] = {}
        for word in words:
            name, equals, text = word.partition("=")
            name = name.strip().removeprefix("--").replace("-", "_")
            if not equals or not name.isidentifier():
                raise ExperimentError(
                    f"argument '{brief(word)}': expected key=value, for example lr=1e-3"
                )
            if name not in by_name and not (self.open and name != FOLDER):
                raise ExperimentError(f"argument '{brief(word)}': {self._unknown(name)}")
            parameter = by_name.get(name, Parameter(name))
            try:
                typed[name] = parameter.value(text)
            except ValueError:
                raise ExperimentError(
                    f"argument '{brief(word)}': {_type_problem(parameter, text)}"
                ) from None
        missing = [p.name for p in self.parameters if p.required and p.name not in typed]
        if missing:
            raise ExperimentError(
                f"{self.path}: train() has no default for {', '.join(missing)}; set "
                f"{missing[0]}=VALUE"
            )
        return typed

    def complete(self, values: Mapping[str, Value]) -> dict[str, Value]:
        """Return ``values`` plus the defaults of all others, which identify a run of the file."""
        defaults = {p.name: p.default for p in self.parameters if not p.required}
        return {**defaults, **values}

    def check_type(self, name: str, value: object) -> str:
        """Return the problem of a typed value from YAML; '' if it is valid."""
        by_name = {parameter.name: parameter for parameter in self.parameters}
        if name not in by_name:
            return "" if self.open and name != FOLDER else self._unknown(name)
        text = ("true" if value else "false") if isinstance(value, bool) else str(value)
        try:
            by_name[name].value("none" if value is None else text)
        except ValueError:
            return _type_problem(by_name[name], text)
        return ""

    def _unknown(self, name: str) -> str:
        if name == FOLDER:
            return f"the runner sets {FOLDER}; use --name to choose the run's folder"
        names = [parameter.name for parameter in self.parameters]
        guess = did_you_mean(name, names)
        takes = (
            f"it takes {', '.join(names)}" if names else f"it takes no parameters; write {EXAMPLE}"
        )
        return f"{Path(self.path).name} has no parameter '{brief(name)}'{guess or '; ' + takes}"


def read_signature(path: Path) -> Signature:
    """Return the signature of ``train`` in the file. Raises ExperimentError, with the line."""
    try:
        tree = ast.parse(read_file(path), str(path))
    except OSError as error:
        raise ExperimentError(
            f"{path}: {error.strerror or error}; give the path of a Python file"
        ) from None
    except (SyntaxError, ValueError) as error:
        line = f":{error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        reason = error.msg if isinstance(error, SyntaxError) else str(error)
        raise ExperimentError(f"{path}{line}: not valid Python: {reason}") from None
    functions = [
        node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == FUNCTION
    ]
    if not functions:
        raise ExperimentError(
            f"{path}: no function train at the top level; an experiment is a file with\n  "
            f"{EXAMPLE}\n"
            "`runner new experiment NAME` creates one; run other programs with `-- python FILE`"
        )
    return _signature(functions[-1], str(path))


def _signature(node: ast.FunctionDef, path: str) -> Signature:
    args = node.args
    plain = [*args.posonlyargs, *args.args]
    none: list[ast.expr | None] = [None]
    defaults = [*none * (len(plain) - len(args.defaults)), *args.defaults, *args.kw_defaults]
    pairs = list(zip([*plain, *args.kwonlyargs], defaults, strict=True))
    names = [argument.arg for argument, _ in pairs]
    if FOLDER not in names or any(argument.arg == FOLDER for argument in args.posonlyargs):
        raise ExperimentError(
            f"{path}:{node.lineno}: train() lacks {FOLDER}, the folder of its run; write\n  "
            f"{EXAMPLE}"
        )
    parameters = [
        _parameter(argument, default) for argument, default in pairs if argument.arg != FOLDER
    ]
    return Signature(path, tuple(parameters), open=args.kwarg is not None)


def _parameter(argument: ast.arg, default: ast.expr | None) -> Parameter:
    value, is_source = _literal(default)
    annotation = argument.annotation
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        with suppress(SyntaxError):  # not a type: reported at its use
            annotation = ast.parse(annotation.value, mode="eval").body
    kinds, choices, optional, foreign = _type_of(annotation)
    if annotation is None and not is_source and type(value).__name__ in KINDS:
        kinds = (type(value).__name__,)
        if kinds == ("int",):  # `steps=10` does not say that it must be an integer
            kinds = ("int", "float")
    return Parameter(
        argument.arg,
        kinds,
        choices,
        optional or value is None,
        default is None,
        value,
        is_source,
        foreign,
    )


def _literal(node: ast.expr | None) -> tuple[Value, bool]:
    """Return the default's value and False, or its source and True."""
    if node is None:
        return None, False
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError):
        return ast.unparse(node), True
    if value is None or isinstance(value, bool | int | float | str):
        return value, False
    return ast.unparse(node), True


def _type_of(node: ast.expr | None) -> tuple[tuple[str, ...], tuple[Value, ...], bool, str]:
    """Return (kinds, choices, optional, source of an unsupported type)."""
    if node is None:
        return (), (), False, ""
    match node:
        case ast.Constant(value=None):
            return (), (), True, ""
        case ast.Name(id=name) if name in KINDS:
            return (name,), (), False, ""
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _union([left, right], node)
        case ast.Subscript(value=outer, slice=inner):
            name = outer.attr if isinstance(outer, ast.Attribute) else getattr(outer, "id", "")
            members = list(inner.elts) if isinstance(inner, ast.Tuple) else [inner]
            if name == "Literal":
                values = [_literal(member) for member in members]
                if not any(is_source for _, is_source in values):
                    choices = tuple(value for value, _ in values)
                    return (), tuple(c for c in choices if c is not None), None in choices, ""
            if name == "Optional":
                return _union([*members, ast.Constant(None)], node)
            if name == "Union":
                return _union(members, node)
    return (), (), False, ast.unparse(node)


def _union(
    members: list[ast.expr], annotation: ast.expr
) -> tuple[tuple[str, ...], tuple[Value, ...], bool, str]:
    parts = [_type_of(member) for member in members]
    foreign = ast.unparse(annotation) if any(part[3] for part in parts) else ""
    kinds = {kind for part in parts for kind in part[0]}
    choices = tuple(choice for part in parts for choice in part[1])
    return tuple(k for k in KINDS if k in kinds), choices, any(part[2] for part in parts), foreign


def _read(kind: str, text: str) -> Value:
    match kind:
        case "bool":
            if text.lower() in BOOL_WORDS:
                return BOOL_WORDS[text.lower()]
        case "bool_word":  # an untyped parameter: 1 is a number
            if text.lower() in ("true", "false"):
                return text.lower() == "true"
        case "int":
            return int(text)
        case "float":
            if not math.isnan(number := float(text)):
                return number
        case _:
            return text
    raise ValueError(text)


def _type_problem(parameter: Parameter, text: str) -> str:
    if parameter.foreign:
        return (
            f"{parameter.name} is a {parameter.foreign}, which can't be set on the command line; "
            "use bool, int, float, str, Literal, or one of them or None"
        )
    guess = did_you_mean(text, [str(choice) for choice in parameter.choices])
    return f"{parameter.name}: expected {parameter.describe()}, got '{brief(text)}'{guess}"
