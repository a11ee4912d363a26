"""Whether `runner host` can train."""

from collections.abc import Iterator

from runner.checks.finding import Finding, Scene

ORDER = 40


def check(scene: Scene) -> Iterator[Finding]:
    """Torch is needed on the host alone; the container has its own."""
    if scene.torch_here:
        device = "cuda" if scene.machine.gpus else "the best device that torch finds"
        yield Finding("ok", f"torch is installed: `runner host` trains on {device}")
    else:
        yield Finding(
            "note",
            "torch is not installed in this Python, so `runner host` can't train; `runner local` can",
            "pip install '.[train]'",
        )
