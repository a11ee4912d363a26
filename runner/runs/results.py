"""What came out of a run, as facts by name: for a comparison, a report and JSON."""

from __future__ import annotations

from typing import Any

from job.format import byte_size, duration
from runner.format import dollars, number, one_line
from runner.runs.history import History

MOST_RETURNED = 20  # values of an experiment's result that are shown


def results(history: History) -> dict[str, Any]:
    """The results, unrounded: losses, tokens a second over all of the training, seconds, dollars, the code's
    commit. None for what is not known."""
    state, metrics, record = history.state, history.metrics, history.record
    attempt = record.attempts[-1] if record and record.attempts else None
    tokens = metrics.tokens or (float(record.tokens) if record else 0.0)
    seconds = record.train_seconds if record and record.train_seconds else metrics.seconds
    git = record.git if record else {}
    return {
        "target": state.target,
        "gpu": state.gpu,
        "world_size": attempt.world_size if attempt else None,
        "status": state.status,
        "step": max(state.step, metrics.step),
        "tokens": int(tokens) or None,
        "train_loss": metrics.newest.get("loss", record.train_loss if record else None),
        "val_loss": metrics.newest.get("val_loss", record.val_loss if record else None),
        "best_val_loss": metrics.best[1]
        if metrics.best
        else (record.best_val_loss if record else None),
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


def in_words(found: dict[str, Any]) -> dict[str, str]:
    """The results as a person reads them; what is not known is left out."""
    loss = "{:.4f}".format
    best, step = found["best_val_loss"], found["best_step"]
    words = {
        "target": str(found["target"]),
        "device": _device(found),
        "status": str(found["status"]),
        "step": f"{found['step']:,}" if found["step"] or step is not None else "",
        "tokens": _if(found["tokens"], number),
        "parameters": _if(found["parameters"], number),
        "training loss": _if(found["train_loss"], loss),
        "validation loss": _if(found["val_loss"], loss),
        "best validation": _if(best, loss)
        + (f" at {step:,}" if best is not None and step is not None else ""),
        "tokens/s": _if(found["tokens_per_second"], "{:,.0f}".format),
        "MFU": _if(found["mfu"], "{:.1%}".format),
        "memory": _if(found["memory_bytes"], byte_size),
        "training time": _if(found["train_seconds"], duration),
        "attempts": str(found["attempts"] or ""),
        **_returned(found["result"]),
        "cost": _if(found["cost"], dollars),
        "commit": _commit(found),
    }
    return {name: value for name, value in words.items() if value}


def _returned(result: dict[str, Any]) -> dict[str, str]:
    """What an experiment returned: its plain values."""
    plain = {key: value for key, value in result.items() if not isinstance(value, dict | list)}
    return {
        one_line(str(key)): f"{value:.4g}" if isinstance(value, float) else one_line(str(value))
        for key, value in list(plain.items())[:MOST_RETURNED]
    }


def _device(found: dict[str, Any]) -> str:
    count = found["world_size"] or 1
    return one_line(found["gpu"] or "") + (f", {count} processes" if count > 1 else "")


def _commit(found: dict[str, Any]) -> str:
    commit = one_line(str(found["commit"] or ""))[:10]
    return f"{commit} and changes" if commit and found["dirty"] else commit


def _if(value: Any, form: Any) -> str:
    return "" if value is None else str(form(value))


def _mean(history: History, key: str) -> float | None:
    points = history.metrics.curves[key].points
    count = sum(point.weight for point in points)
    return sum(point.value * point.weight for point in points) / count if count else None
