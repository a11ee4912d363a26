"""The jobs: the modules that run inside. Adding one is a line in this table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    """What a job reads and needs."""

    name: str
    does: str
    reads_recipe: bool = False  # else it reads a run that has a checkpoint, if it does not measure
    takes_device: bool = True
    in_processes: bool = False  # may be started as N processes under torchrun
    has_run: bool = False  # makes or continues a run's folder
    measures: bool = False  # the device alone: it reads neither a recipe nor a run
    needs: tuple[str, ...] = ("torch",)  # modules that the host's Python must have
    package: str = "model"
    runs: str = ""  # the module, where it has not the job's name

    @property
    def reads_run(self) -> bool:
        """Whether it needs a run that has a checkpoint."""
        return not (self.reads_recipe or self.has_run or self.measures)

    @property
    def module(self) -> str:
        """What Python runs."""
        return f"{self.package}.{self.runs or self.name}"


# A Python file of the user's with a function train: `run FILE` on the line.
EXPERIMENT = Job(
    "experiment", "runs train() of the file", has_run=True, needs=(), package="experiment", runs="run"
)
# A command of the user's in a folder of theirs. It is no word of the line: what stands behind -- is one.
COMMAND = Job("command", "runs the command", has_run=True, needs=(), package="job")

JOBS = {
    job.name: job
    for job in (
        Job(
            "prepare",
            "writes the dataset's shards",
            True,
            takes_device=False,
            needs=("numpy",),
            package="corpus",
        ),
        Job("train", "trains", True, in_processes=True, has_run=True),
        Job("sample", "writes text from the newest checkpoint"),
        Job("evaluate", "measures loss over the validation set"),
        Job("export", "writes the network and its tokenizer in Hugging Face's format", takes_device=False),
        Job("roofline", "measures what the device reaches", measures=True, package="bench"),
    )
}

# Those that can be taken up again where they stopped.
WITH_RUN = (*(job.name for job in JOBS.values() if job.has_run), COMMAND.name, EXPERIMENT.name)
