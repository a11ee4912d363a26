"""A user's own prices: ``prices.yaml`` in the checkout, or ~/.config/gpt-runner/prices.yaml for all of them.

    date: 2026-11-20
    H100: 3.50      # dollars an hour
    CPU: 0.04       # a core-hour
    MEMORY: 0.007   # a GiB-hour

The first file that is there counts, and what it does not name keeps Modal's rate, or its built-in price. GPT_RUNNER_PRICES names
another file.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path

from job.recipe_yaml import Source, read_yaml
from runner.cloud.gpus import guess
from runner.cloud.prices import BUILT_IN, TABLE, Prices
from runner.errors import usage

NAME = "prices.yaml"
VARIABLE = "GPT_RUNNER_PRICES"


def current_prices(checkout: Path, environ: Mapping[str, str], base: Prices = BUILT_IN) -> Prices:
    """The prices that count here; ``base`` is what the user's file replaces lines of. Raises RunnerError or
    RecipeError, exit code 2, with the line that is wrong."""
    path = find(checkout, environ)
    return base if path is None else read(path, base)


def find(checkout: Path, environ: Mapping[str, str]) -> Path | None:
    """The user's file; None where there is none. RunnerError where the variable names a file that is not there."""
    if named := environ.get(VARIABLE):
        path = Path(named).expanduser()
        if not path.is_file():
            raise usage(f"{VARIABLE} names a file of prices, and {named} is none; write there: H100: 3.50")
        return path
    config = environ.get("XDG_CONFIG_HOME") or f"{environ.get('HOME') or '~'}/.config"
    places = (checkout / NAME, Path(config).expanduser() / "gpt-runner" / NAME)
    return next((path for path in places if path.is_file()), None)


def read(path: Path, base: Prices = BUILT_IN) -> Prices:
    """``base`` with the lines of the file at ``path``."""
    source = read_yaml(path, "a file of prices is a list of lines like `H100: 3.50`")
    date = source.tree.pop("date", None)
    if date is not None and not isinstance(date, datetime.date):
        raise usage(f"{source.where('date')}: date: {date!r} is no day; write 2026-11-20")
    own = {_name(name, source): _price(name, value, source) for name, value in source.tree.items()}
    day = f" of {date}" if date is not None else ", without a date"
    kept = "" if own.keys() >= TABLE.keys() else f", else {base.source}"
    return Prices({**base.table, **own}, f"{path}{day}{kept}")


def _name(name: object, source: Source) -> str:
    text = str(name)
    if text.upper() not in TABLE:
        raise usage(f"{source.where(text)}: Modal has no '{text}'{guess(text)}, CPU and MEMORY")
    return text.upper()


def _price(name: object, value: object, source: Source) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e6:
        raise usage(
            f"{source.where(str(name))}: {name}: {value!r} is no price; write dollars an hour, {name}: 3.50"
        )
    return float(value)
