"""The words for what is wrong with a recipe: file, line, what, and a did-you-mean."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from job.recipe_yaml import Source


class RecipeError(ValueError):
    """A mistake in a recipe or an override; its text is what the user reads."""


# The words of other trainers for our keys: nearer in meaning than in spelling.
SYNONYMS = {
    "learning_rate": "train.lr",
    "batch_size": "train.micro_batch",
    "max_iters": "train.max_steps",
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
    "num_layers": "model.n_layer",
    "num_heads": "model.n_head",
}


def did_you_mean(name: str, known: Collection[str]) -> str:
    """``; did you mean 'x'?`` or nothing. Full keys and last words are both tried."""
    leaf = name.rpartition(".")[2]
    if leaf in SYNONYMS:
        return f"; did you mean '{SYNONYMS[leaf]}'?"
    by_leaf = {key.rpartition(".")[2]: key for key in known}
    section = name.rpartition(".")[0]
    here = [key for key in known if section and key.startswith(section + ".")]
    close = (
        difflib.get_close_matches(name, here, n=1, cutoff=0.75)
        or difflib.get_close_matches(name, known, n=1, cutoff=0.75)
        or [by_leaf[m] for m in difflib.get_close_matches(leaf, by_leaf, n=1, cutoff=0.6)]
    )
    if not close and name != name.lower():
        return did_you_mean(name.lower(), known)
    return f"; did you mean '{close[0]}'?" if close else ""


def describe(
    errors: Sequence[Any], source: Source, known: Collection[str], noun: str = "recipe"
) -> list[str]:
    """One line for each mistake that pydantic found: where, which key, what is wrong. ``noun``: in what."""
    lines: dict[str, str] = {}
    for error in errors:
        path = [str(part) for part in error["loc"]]
        context = error.get("ctx") or {}
        if error["type"] == "impossible":
            key = ".".join([*path, context["key"]])
            lines[key] = f"{source.where(key)}: {context['message']}"
            continue
        key = ".".join(path)
        # A union reports one error for each member, with the member's name behind the key.
        while key not in known and "." in key and key.rpartition(".")[0] in known:
            key = key.rpartition(".")[0]
        if key in lines and error["type"] == "literal_error":
            lines[key] += f", nor {context['expected']}"
        else:
            lines.setdefault(key, f"{source.where(key)}: {key}: {_what(error, key, context, known, noun)}")
    return list(lines.values())


def _what(error: Any, key: str, context: dict[str, Any], known: Collection[str], noun: str) -> str:
    given = repr(error.get("input"))
    match error["type"]:
        case "extra_forbidden":
            sections = {name.partition(".")[0] for name in known}
            return f"unknown key{did_you_mean(key, known if '.' in key else {*known, *sections})}"
        case "missing":
            return f"is missing; the {noun} must give it"
        case "literal_error":
            guess = difflib.get_close_matches(
                str(error.get("input")), str(context["expected"]).replace("'", "").split()
            )
            return f"{given} is none of {context['expected']}" + (
                f"; did you mean {guess[0]!r}?" if guess else ""
            )
        case "int_type" | "int_from_float":
            return f"{given} is no whole number"
        case "float_type":
            return f"{given} is no number"
        case "bool_type":
            return f"{given} is neither true nor false"
        case "string_type":
            return f"{given} is no text; put it in quotes"
        case "model_type" | "dict_type" | "model_attributes_type":
            return f"{given} is no section; write its keys below it, indented"
        case "greater_than_equal":
            return f"{given} is too small; it must be at least {context['ge']}"
        case "greater_than":
            return f"{given} is too small; it must be above {context['gt']}"
        case "less_than_equal":
            return f"{given} is too large; it must be at most {context['le']}"
        case "less_than":
            return f"{given} is too large; it must be below {context['lt']}"
        case "string_pattern_mismatch":
            return f"{given} does not match {context['pattern']}"
        case _:
            return str(error["msg"])
