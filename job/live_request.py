"""Requests to a live training run: write a checkpoint now, or change some settings.

`runner set` writes ``request.json`` into the run's folder. The trainer reads it before a step,
applies it, notes the result in the run's record and removes the file. Only settings that change no
past step are live: the weights stay those of a run that had the new settings from the start.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field

from job.compatibility import ADVICE, recipe_mismatch
from job.exit_status import UserError
from job.files import write_atomically
from job.format import json_text
from job.recipe import Recipe, load
from job.run_record import REQUEST_NAME
from job.run_session import RunSession
from job.typed_json import read_json

LIVE_KEYS = {
    "checkpoint_every",
    "eval_every",
    "keep_best",
    "keep_last",
    "log_every",
    "max_steps",
    "sample_every",
}

POLL_INTERVAL_S = 1.0  # a stat of the file costs 2 us, on a network volume up to 1 ms


@dataclass(frozen=True)
class LiveRequest:
    """A request; ``id`` is its name in the record. ``overrides`` are ``key=value`` words."""

    id: str
    checkpoint: bool = False
    overrides: list[str] = field(default_factory=list)

    def to_json(self) -> str:
        """Return the content of the file."""
        return json_text(asdict(self)) + "\n"


class RequestInbox:
    """The request file of one run, read by its trainer."""

    def __init__(self, session: RunSession) -> None:
        self._session = session
        self._path = session.folder / REQUEST_NAME
        self._next_poll = 0.0

    def has_request(self) -> bool:
        """Return True if there is a request; look at most once a second."""
        now = time.monotonic()
        if now < self._next_poll:
            return False
        self._next_poll = now + POLL_INTERVAL_S
        return self._path.exists()

    def answer(self, recipe: Recipe, step: int) -> tuple[Recipe, bool]:
        """Apply the request before ``step``; return the recipe and if a checkpoint is due.

        The record gets the request's id, with the step or the reason for a refusal.
        """
        try:
            text = self._path.read_bytes()
            self._path.unlink()
            request = read_json(LiveRequest, text)
        except (OSError, ValueError):  # withdrawn, or damaged
            return recipe, False
        session = self._session
        try:
            changed = load(session.folder / "recipe.yaml", request.overrides)
            check_live_settings(recipe, changed, step)
        except UserError as error:
            session.progress(force=True, request={"id": request.id, "error": str(error)})
            return recipe, False
        if changed.train != recipe.train:
            write_atomically(session.folder / "recipe.yaml", changed.to_yaml())
        session.progress(
            force=True,
            request={"id": request.id, "step": step},
            max_steps=changed.train.max_steps,
            overrides=session.record.overrides + request.overrides,
        )
        return changed, request.checkpoint


def check_live_settings(recipe: Recipe, changed: Recipe, step: int) -> None:
    """Raise UserError if a run of ``recipe``, now at ``step``, can't become one of ``changed``."""
    if changed.train.max_steps <= step:
        raise UserError(
            f"max_steps={changed.train.max_steps}: the run is at step {step}; use a larger "
            "number, or end the run with `runner stop`"
        )
    before, after = recipe.model_dump(), changed.model_dump()
    for key in LIVE_KEYS:
        after["train"][key] = before["train"][key]
    if before != after:
        raise UserError(
            f"only {', '.join(sorted(LIVE_KEYS))} can change while a run trains; for other "
            "settings stop the run, or start a new run with --name"
        )
    if recipe_mismatch("", recipe, changed, "", step):
        raise UserError(f"max_steps={changed.train.max_steps}: it would change past steps{ADVICE}")
