"""The jobs: modules that run in the container or on the host.

To add a job, add it to JOBS, and its options to ``runner/commands/_jobs.py``.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    """A job and the inputs it needs."""

    name: str
    summary: str
    module: str  # run as ``python -m MODULE``
    reads_recipe: bool = False  # otherwise it reads a run that has a checkpoint
    takes_device: bool = True
    multi_gpu: bool = False  # can run as N processes under torchrun
    writes_run: bool = False  # creates or resumes a run's folder
    is_benchmark: bool = False  # reads neither a recipe nor a run
    needs: tuple[str, ...] = ("torch",)  # modules that the host's Python must have

    @property
    def reads_run(self) -> bool:
        """Return True if the job needs a run that has a checkpoint."""
        return not (self.reads_recipe or self.writes_run or self.is_benchmark)


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
        Job("sample", "samples text from the newest checkpoint", "model.sample"),
        Job("evaluate", "measures the loss on the validation set", "model.evaluate"),
        Job(
            "export",
            "writes the model and its tokenizer in Hugging Face format",
            "model.export",
            takes_device=False,
        ),
        Job(
            "roofline", "measures the device's peak throughput", "bench.roofline", is_benchmark=True
        ),
    )
}

# Jobs that can be resumed.
RESUMABLE_JOBS = (
    *(job.name for job in JOBS.values() if job.writes_run),
    COMMAND.name,
    EXPERIMENT.name,
)
