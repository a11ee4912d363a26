"""Settings that were typed as other programs take them, ``--lr 1e-3`` or ``lr = 1e-3``: how they are written here."""

from __future__ import annotations

from collections.abc import Sequence


def as_setting(option: str, args: Sequence[str]) -> str:
    """``lr=1e-3`` for the option ``--lr`` among ``args``, where that is a key of the recipe; else ''."""
    from job.recipe import known_keys  # only for a mistake: it loads pydantic
    from job.recipe_errors import SYNONYMS

    key = option.lstrip("-").replace("-", "_")
    key = SYNONYMS.get(key, key)
    if key not in {name for full in known_keys() for name in (full, full.rpartition(".")[2])}:
        return ""
    at = next((n for n, word in enumerate(args) if word.partition("=")[0] == option), len(args))
    word, after = args[at : at + 1], args[at + 1 : at + 2]
    value = word[0].partition("=")[2] if word else ""
    if not value and after and not after[0].startswith("--") and "=" not in after[0]:
        value = after[0]
    return f"{key}={value or 'VALUE'}"


def with_blanks(words: Sequence[str]) -> tuple[str, str] | None:
    """``("lr = 1e-3", "lr=1e-3")`` for a setting that was typed with blanks around its =; None where none was."""
    for at, word in enumerate(words):
        if word.startswith("=") and at:
            parts = words[at - 1 : at + (2 if word == "=" else 1)]
            return " ".join(parts), "".join(parts)
    return None
