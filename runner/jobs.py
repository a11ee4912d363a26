"""The jobs, modules that run in the container or on the host, and the arguments of a launch.

To add a job, add it to JOBS, and its options to ``runner/commands/jobs.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

from job.gpu_queue import GpuAccess


@dataclass(frozen=True)
class Job:
    """A job and the inputs it needs."""

    name: str
    summary: str
    module: str  # run as ``python -m MODULE``
    reads_recipe: bool = False
    reads_run: bool = False  # that has a checkpoint
    takes_device: bool = True
    multi_gpu: bool = False  # can run as N processes under torchrun
    writes_run: bool = False  # creates or resumes a run's folder
    takes_model: bool = False  # a folder or a model on the Hub can replace the run
    has_terminal: bool = False  # the user types, and Ctrl-C is the job's own
    needs: tuple[str, ...] = ("torch",)  # modules that the host's Python must have
    extra: str = "train"  # the optional dependencies with these modules


# A Python file with a function ``train``: `runner host run FILE`.
EXPERIMENT = Job(
    "experiment", "runs train() of the file", "experiment.run", writes_run=True, needs=()
)
# A command in a folder of the user's: `runner host --dir DIR -- COMMAND`.
COMMAND = Job(
    "command", "runs the command", "job.user_command.supervisor", writes_run=True, needs=()
)

JOBS = {
    job.name: job
    for job in (
        Job(
            "prepare",
            "writes the dataset's shards",
            "corpus.prepare",
            reads_recipe=True,
            takes_device=False,
            needs=("numpy",),
        ),
        Job("train", "trains", "model.train", reads_recipe=True, multi_gpu=True, writes_run=True),
        Job("sample", "samples text from the newest checkpoint", "serving.sample", reads_run=True),
        Job(
            "evaluate",
            "measures the loss on the validation set",
            "serving.evaluate",
            reads_run=True,
        ),
        Job(
            "export",
            "writes the model and its tokenizer in Hugging Face format",
            "serving.export",
            reads_run=True,
            takes_device=False,
        ),
        Job(
            "chat",
            "talks to the network of the newest checkpoint",
            "serving.chat",
            reads_run=True,
            takes_model=True,
            has_terminal=True,
        ),
        Job(
            "serve",
            "serves the network of the newest checkpoint over HTTP",
            "serving.server",
            reads_run=True,
            takes_model=True,
            needs=("torch", "starlette", "uvicorn"),
            extra="serve",
        ),
        Job("roofline", "measures the device's peak throughput", "bench.roofline"),
    )
}

# Jobs that can be resumed.
RESUMABLE_JOBS = (
    *(job.name for job in JOBS.values() if job.writes_run),
    COMMAND.name,
    EXPERIMENT.name,
)


@dataclass(frozen=True)
class LaunchArguments:
    """The job, its positional arguments and the options that every target has."""

    job: str = "train"  # a name in JOBS, or "run", "pipeline", "command"
    args: tuple[str, ...] = ()  # [RECIPE] [key=value ...], or FILE and parameters
    command: tuple[str, ...] = ()  # the arguments after --
    name: str | None = None
    gpus: int | None = None  # processes; targets that rent GPUs have an option of their own
    device: str | None = None
    source: str | None = None
    shards: int | None = None
    force: bool = False
    output: str | None = None
    push: str | None = None
    prompt_file: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    multiple_choice: str | None = None
    task: str | None = None
    params: tuple[str, ...] = ()
    trackers: tuple[tuple[str, str], ...] = ()  # and the project to log to in each
    folder: str | None = None
    setup: tuple[str, ...] = ()
    persist: tuple[str, ...] = ()
    resume_with: str | None = None
    metric: tuple[str, ...] = ()
    resume_if: str | None = None
    dry_run: bool = False
    detach: bool = False
    access: GpuAccess | None = None
    tags: tuple[str, ...] = ()
    as_json: bool = False
    yes: bool = False
