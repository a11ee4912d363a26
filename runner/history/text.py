"""Text from files, made fit to be shown: a sample or a log may hold what would steer a terminal."""

from __future__ import annotations


def plain(text: str | bytes) -> str:
    """The text with a mark for every character that is none to look at, but line feeds and tabs."""
    if isinstance(text, bytes):
        text = text.decode(errors="replace")
    return "".join(
        c if c.isprintable() or c in "\n\t" else " " if c.isspace() else "\N{MIDDLE DOT}" for c in text
    )


def one_line(text: str) -> str:
    """The same on one line."""
    return " ".join(plain(text).split())


def setting(value: object) -> str:
    """A recipe's value as YAML writes it; – for one that is left to the default."""
    if value is None:
        return "–"
    return str(value).lower() if isinstance(value, bool) else plain(str(value))
