"""Random damage to texts and values: typing errors of users and read errors of disks."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

# Values in YAML or in an override.
VALUES = [
    *("", "0", "-1", "1", "3", "-0.0", "1.5", "1e3", "1e-3", "1e308", "1e999", "-1e999", "1e-320"),
    *(".inf", "-.inf", ".nan", "nan", "inf", "9223372036854775807", "9223372036854775808"),
    *("99999999999999999999999999", "1" * 400, "0x7f", "0o17", "017", "0b11", "1_000", "1:30:00"),
    *("true", "false", "yes", "no", "on", "null", "~", "None", "''", '""', "'5'", '"true"'),
    *("[]", "{}", "[1]", "[1, 2]", "[[1, 2]]", "[[0, 0]]", "[[1, 1e9]]", "[[1, 2, 3]]", "{a: 1}"),
    *("[[]]", "[null]", "[[1, 64], [1, 64]]", "{a: {b: {c: 1}}}", "[" * 50, "{a: " * 30, "]", "}"),
    *("12h", "90m", "-5m", "1.5.2d", "999999999999999d", "1e400d", "٣h", "12 h", "12H", "0s"),
    *("H100", "H100:0", "H100:99999999999999", "H100:-1", "H100,,A100", ":8", "h100:8", "🚀"),
    *("gpt2", "hf://", "hf://a/b", "hf://../..", "hf://a/b/c", "../../../etc/passwd", "/dev/zero"),
    *("http://", "http://[", "https://\x7f/x", "ftp://a/b", "file:///etc/passwd", "stdlib"),
    *("fineweb10B", "a b", "a/b", ".", "..", "-", "@", "@/nonexistent", "@/", "*", "[a-", "**/*"),
    *(
        "é",
        "日本語",
        "\u202eabc",
        "\u200b",
        "٣",
        "\ufeff1",
        "\u2028",
        "a\tb",
        "x" * 5000,
        "x" * 300,
    ),
    *("!!python/object:os.system x", "!!binary AAAA", "!!binary '*'", "!!set {a, b}", "!!int x"),
    *("!!float abc", "!!timestamp x", "!!omap [1]", "!!pairs [1]", "!foo bar", "2020-01-01"),
    *("2020-99-99", "2001-12-14t21:59:43.10-05:00", "&a 1", "*a", "<<: *a", "%d", "%s", "$HOME"),
    *("`ls`", "'", '"', "'a", "a: b", "# x", "|", "> ", "?", "- a", "? a", "@x", "%YAML 1.2"),
    *(
        "SSSL",
        "S",
        "LS",
        "bytes",
        "chars",
        "tail",
        "documents",
        "muon",
        "linear",
        "modern",
        "cosine",
    ),
]

# Values in a JSON tree.
JSON_VALUES: list[Any] = [
    *(None, True, 0, -1, 1.5, 10**12, 10**30, 1e300, float("nan"), float("inf"), float("-inf")),
    *("", "x", "-1", "\x1b[31m", "\ud800", "\x00", "x" * 100_000, "../../../../etc/passwd"),
    *([], {}, [None], [[]], {"": None}, [1, "a"], {"a": {"b": []}}),
]
TEXTS = [b"null", b"1", b'"x"', b"[]", b"{}", b"[1]", b"[null]", b"{", b"NaN", b"[" * 200_000]
TEXTS += [
    b'{"a":' * 200_000,
    b"1" * 5000,
    b"\xef\xbb\xbf{}",
    b" ",
    b"\n",
    b"\x00" * 64,
    b"\xff\xfe{",
]


def damaged_bytes(content: bytes, rng: random.Random) -> bytes:
    """Truncate, flip, blank or replace a part of ``content``."""
    size = len(content)
    at = rng.randrange(size + 1)
    part = slice(at, min(size, at + rng.choice([1, 4, 64, 4096])))
    length = part.stop - part.start
    match rng.randrange(9):
        case 0:
            return content[:at]
        case 1 if size:
            changed = bytearray(content)
            for _ in range(rng.choice([1, 1, 8])):
                changed[rng.randrange(size)] ^= 1 << rng.randrange(8)
            return bytes(changed)
        case 2:
            return content[: part.start] + bytes(length) + content[part.stop :]
        case 3:
            return content[: part.start] + rng.randbytes(length) + content[part.stop :]
        case 4:
            return (
                content[:at]
                + rng.choice([b"\xff\xfe", b"\x00", b"\x1b[2J", b"\r\n"])
                + content[at:]
            )
        case 5:
            return content + content[at:]
        case 6:
            return content[at:]
        case 7:
            return bytes(size)  # as after a power cut
        case _:
            return rng.choice([b"", *TEXTS])


def damaged_json(content: bytes, rng: random.Random) -> bytes:
    """Replace or remove one value of a JSON text, or its whole text."""
    if rng.random() < 0.15:
        return rng.choice(TEXTS)
    tree = json.loads(content)
    places = list(_places(tree))
    if not places:
        return rng.choice(TEXTS)
    for _ in range(rng.choice([1, 1, 2])):
        container, key = rng.choice(places)
        if rng.random() < 0.2:
            if isinstance(container, dict):
                container.pop(key, None)
        else:
            container[key] = rng.choice(JSON_VALUES)
    return json.dumps(tree).encode("utf-8", "surrogatepass")


def _places(tree: Any) -> list[tuple[Any, Any]]:
    if not isinstance(tree, dict | list):
        return []
    pairs = list(tree.items() if isinstance(tree, dict) else enumerate(tree))
    return [place for key, value in pairs for place in [(tree, key), *_places(value)]]


def damaged_json_lines(content: bytes, rng: random.Random) -> bytes:
    """Damage one line, or repeat, remove or swap lines."""
    lines = content.splitlines(keepends=True)
    at = rng.randrange(len(lines))
    match rng.randrange(4):
        case 0:
            lines.insert(at, rng.choice(lines))
        case 1:
            lines[at] = lines[at][: rng.randrange(len(lines[at]))]
        case _:
            lines[at] = damaged_json(lines[at], rng) + b"\n"
    return b"".join(lines)


def damaged_yaml(content: bytes, rng: random.Random) -> bytes:
    """Change values, keys or the structure of a YAML text."""
    lines = content.decode().splitlines()
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        settings = [
            n for n, line in enumerate(lines) if ":" in line and not line.strip().startswith("#")
        ]
        if not settings:
            break
        _YAML[rng.randrange(len(_YAML))](lines, rng.choice(settings), rng)
    text = "\n".join(lines) + "\n"
    match rng.randrange(40):
        case 0:
            return text.encode("utf-16")
        case 1:
            return b"\xef\xbb\xbf" + text.encode()
        case 2:
            return text.replace("\n", "\r\n").encode()
        case 3:
            return text.replace("\n", "\r").encode()
        case 4:
            return (text + "---\n" + text).encode()
        case 5:
            return text.encode() + rng.choice(TEXTS)
        case 6:
            return damaged_bytes(text.encode(), rng)
        case 7:
            return ("a: &a [x, x]\n" + text + "b: [*a, *a]\n").encode()
        case 8:
            return (text + "deep: " + "[" * rng.choice([30, 5000]) + "\n").encode()
        case _:
            return text.encode("utf-8", "surrogatepass")


def _set_value(lines: list[str], at: int, rng: random.Random) -> None:
    lines[at] = lines[at].partition(":")[0] + ": " + rng.choice(VALUES)


def _change_key(lines: list[str], at: int, rng: random.Random) -> None:
    key, _, value = lines[at].partition(":")
    letters = list(key)
    place = rng.randrange(len(letters))
    letters[place] = rng.choice(
        ["", letters[place] * 2, "é", ".", "_", "\t", "?", "[", '"', "\u2028"]
    )
    lines[at] = f"{''.join(letters)}:{value}"


def _repeat(lines: list[str], at: int, rng: random.Random) -> None:
    lines.insert(rng.randrange(len(lines) + 1), lines[at])


def _delete(lines: list[str], at: int, rng: random.Random) -> None:
    del lines[at : at + rng.choice([1, 1, 3, 20])]


def _indent(lines: list[str], at: int, rng: random.Random) -> None:
    lines[at] = rng.choice([" ", "    ", "\t", ""]) + lines[at].lstrip(rng.choice([" ", ""]))


def _add_key(lines: list[str], at: int, rng: random.Random) -> None:
    indent = lines[at][: len(lines[at]) - len(lines[at].lstrip())]
    key = rng.choice(["x", "learning_rate", "<<", "1", "null", "? [a]", "'': ", "lr", "é", "name"])
    lines.insert(at, f"{indent}{key}: {rng.choice(VALUES)}")


def _insert_letter(lines: list[str], at: int, rng: random.Random) -> None:
    place = rng.randrange(len(lines[at]) + 1)
    lines[at] = (
        lines[at][:place]
        + rng.choice("\0\x07\x1b\x85\ufeff\U0001f680{}[]&*!|>'\"%@`,#-?:\t ")
        + lines[at][place:]
    )


_YAML: list[Callable[[list[str], int, random.Random], None]] = [
    *(_set_value, _set_value, _set_value, _set_value),
    *(_change_key, _repeat, _delete, _indent, _add_key, _insert_letter),
]
