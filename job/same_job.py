"""Whether a run that is there is the work of this kind of job: its folder must not become another one's."""

from __future__ import annotations

from job.runs import RunRecord


def other_job(record: RunRecord, job: str) -> str:
    """Why a ``job`` (train, command, experiment) can't take up the run; '' where it can."""
    if record.job == job:
        return ""
    article = "an" if record.job.startswith(tuple("aeiou")) else "a"
    return (
        f"run '{record.name}' is {article} {record.job} already; choose another name with --name "
        f"(`runner status {record.name}` shows that one, `runner resume {record.name}` goes on with it)"
    )
