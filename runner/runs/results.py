"""The results of a run by name: as values for JSON, as text for comparisons and reports."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from job.format import byte_size, duration, one_line
from runner.format import dollars, number
from runner.runs.history import History

MAX_RETURNED = 20  # values of an experiment's result that are shown


def results(history: History) -> dict[str, Any]:
    """Return the unrounded results; None for unknown values.

    The speed is the average over all of the training, in tokens per second.
    """
    state, metrics, record = history.state, history.metrics, history.record
    attempt = record.attempts[-1] if record and record.attempts else None
    tokens = metrics.tokens or (float(record.tokens) if record else 0.0)
    seconds = record.train_seconds if record and record.train_seconds else metrics.seconds
    git = record.git if record else {}
    recorded_best = record.best_val_loss if record else None
    return {
        "target": state.target,
        "gpu": state.gpu,
        "world_size": attempt.world_size if attempt else None,
        "status": state.status,
        "step": max(state.step, metrics.step),
        "tokens": int(tokens) or None,
        "train_loss": metrics.newest.get("loss", record.train_loss if record else None),
        "val_loss": metrics.newest.get("val_loss", record.val_loss if record else None),
        "best_val_loss": metrics.best[1] if metrics.best else recorded_best,
        "best_step": metrics.best[0] if metrics.best else None,
        "tokens_per_second": tokens / seconds if tokens and seconds else None,
        "mfu": _mean(history, "mfu"),
        "memory_bytes": metrics.newest.get("memory_bytes"),
        "train_seconds": seconds or None,
        "attempts": state.attempts,
        "cost": state.cost,
        "parameters": record.parameters if record else None,
        "commit": git.get("commit"),
        "dirty": git.get("dirty"),
        "result": record.result if record else {},
    }


def format_results(found: dict[str, Any]) -> dict[str, str]:
    """Return the results as text, without unknown values."""
    loss = "{:.4f}".format
    best, step = found["best_val_loss"], found["best_step"]
    at_step = f" at {step:,}" if best is not None and step is not None else ""
    texts = {
        "target": str(found["target"]),
        "device": _device(found),
        "status": str(found["status"]),
        "step": f"{found['step']:,}" if found["step"] or step is not None else "",
        "tokens": _format(found["tokens"], number),
        "parameters": _format(found["parameters"], number),
        "training loss": _format(found["train_loss"], loss),
        "validation loss": _format(found["val_loss"], loss),
        "best validation": _format(best, loss) + at_step,
        "tokens/s": _format(found["tokens_per_second"], "{:,.0f}".format),
        "MFU": _format(found["mfu"], "{:.1%}".format),
        "memory": _format(found["memory_bytes"], byte_size),
        "training time": _format(found["train_seconds"], duration),
        "attempts": str(found["attempts"] or ""),
        **_returned_values(found["result"]),
        "cost": _format(found["cost"], dollars),
        "commit": _commit(found),
    }
    return {name: text for name, text in texts.items() if text}


def _returned_values(result: dict[str, Any]) -> dict[str, str]:
    """Return the scalar values that an experiment returned."""
    scalars = {key: value for key, value in result.items() if not isinstance(value, dict | list)}
    return {
        one_line(str(key)): f"{value:.4g}" if isinstance(value, float) else one_line(str(value))
        for key, value in list(scalars.items())[:MAX_RETURNED]
    }


def _device(found: dict[str, Any]) -> str:
    count = found["world_size"] or 1
    return one_line(found["gpu"] or "") + (f", {count} processes" if count > 1 else "")


def _commit(found: dict[str, Any]) -> str:
    commit = one_line(str(found["commit"] or ""))[:10]
    return f"{commit} and changes" if commit and found["dirty"] else commit


def _format(value: Any, form: Callable[[Any], str]) -> str:
    return "" if value is None else form(value)


def _mean(history: History, key: str) -> float | None:
    points = history.metrics.curves[key].points
    count = sum(point.weight for point in points)
    return sum(point.value * point.weight for point in points) / count if count else None
