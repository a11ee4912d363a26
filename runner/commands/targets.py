"""The targets as commands, with the jobs as subcommands: `runner host sample`.

`train` is the default job, and options may come before the job, so that
`runner cloud --gpu H100 shakespeare_char lr=1e-3` works.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import click

from job.format import brief, either
from runner import completion
from runner.cli_options import (
    DETACH,
    DRY_RUN,
    ENV,
    JSON,
    MAX_COST,
    QUEUE,
    REGION,
    SECRET,
    SHARE,
    TAG,
    TIMEOUT,
    YES,
    Decorator,
    GpuCount,
    Integer,
    Number,
    parse_gpu,
)
from runner.commands.jobs import COMMAND_JOB, JOB_COMMANDS
from runner.console import CliContext
from runner.errors import usage
from runner.jobs import JOBS, LaunchArguments
from runner.request import TargetOptions

DEFAULT_JOB = "train"
RUN_JOBS = (DEFAULT_JOB, "run", "pipeline", COMMAND_JOB)

# Keys of the context's `meta`.
COMMAND_ARGS = "runner.command"
TARGET = "runner.target"

NAME = click.option(
    "--name", metavar="RUN", help="Name of the run.", shell_complete=completion.runs
)
PROCESSES = click.option(
    "--gpu",
    "gpus",
    type=GpuCount(1),
    metavar="N",
    help="Number of GPUs; training uses one process for each.",
)
GPU = click.option(
    "--gpu",
    type=parse_gpu,
    metavar="NAME[:N]",
    shell_complete=completion.gpus,
    help="H100, H100:8, or alternatives in order of preference: H100:8,A100-80GB:8. "
    "Default for train: the recipe's or H100; for a command: none; for other jobs: L4,T4.",
)
NODES = click.option(
    "--nodes", type=Integer(1, 32), metavar="N", help="Number of machines with 8 GPUs each."
)
CORES = click.option("--cores", type=Number(0.125), metavar="N", help="Physical CPU cores.")
MEMORY = click.option(
    "--memory", "memory_gib", type=Number(0.125), metavar="GIB", help="Memory in GiB."
)

# Remedies for an option of a different job; an option that is also a recipe key needs none.
REMEDIES = {
    ("command", "--gpu"): "the command starts its own processes (torchrun); "
    "set CUDA_VISIBLE_DEVICES to choose GPUs",
    ("run", "--gpu"): "experiments run in one process and use every visible GPU",
    ("prepare", "--gpu"): "prepare needs no GPU",
    ("export", "--gpu"): "export needs no GPU",
    ("pipeline", "--persist"): "write it in the pipeline's file, as `persist`",
    ("pipeline", "--setup"): "write it in the pipeline's file",
}
# The settings that a job reads from the command line, by the beginning of their full keys.
SETTINGS = {
    "train": ("",),
    "sample": ("sample.",),
    "evaluate": ("train.eval_", "train.micro_batch"),
}
COMMAND_REMEDY = "write the command after --: runner {target} --dir FOLDER -- python train.py"


class TargetGroup(click.Group):
    """A target; its subcommands are the jobs, and `train` is the default one."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Move the job's name to the front; `-- PROGRAM` is the job `command`."""
        job, rest = self.split_job(args)
        if job is None and not ctx.resilient_parsing and {"-h", "--help"} & {*args}:
            return super().parse_args(ctx, ["--help"])
        if job is None and ctx.resilient_parsing:  # completion: an option can identify the job
            job = next((name for word in rest for name in self.jobs_with(word)), None)
        return super().parse_args(ctx, [job or DEFAULT_JOB, *rest])

    def split_job(self, args: Sequence[str]) -> tuple[str | None, list[str]]:
        """Return the first positional argument that names a job, and the other arguments."""
        if "--" in args:
            at = list(args).index("--")
            before = [word for word in args[:at] if word != COMMAND_JOB]
            return COMMAND_JOB, [*before, *args[at:]]
        with_value = self._options_with_value()
        rest = list(args)
        at = 0
        while at < len(rest):
            word = rest[at]
            if word in self.commands:
                del rest[at]
                if word == "roofline":  # `bench roofline` is accepted too
                    rest = [other for other in rest if other != "bench"]
                return word, rest
            at += 2 if word in with_value else 1
        return None, rest

    def _options_with_value(self) -> set[str]:
        return {
            name
            for command in self.commands.values()
            for option in command.params
            if isinstance(option, click.Option) and not option.is_flag
            for name in option.opts
        }

    def jobs_with(self, option: str) -> list[str]:
        """Return the jobs that have ``option``."""
        return [
            name
            for name, command in self.commands.items()
            if any(option in parameter.opts for parameter in command.params)
        ]

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the jobs in the order of use."""
        return list(self.commands)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Return the usage line without click's COMMAND."""
        return ["[OPTIONS] [JOB] [RECIPE] [key=value ...] | -- PROGRAM ..."]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the jobs, then the options of the default job."""
        rows = [(name, command.get_short_help_str(80)) for name, command in self.commands.items()]
        with formatter.section("Jobs"):
            formatter.write_dl(rows)
        train = self.commands[DEFAULT_JOB]
        options = [param for param in train.get_params(ctx) if isinstance(param, click.Option)]
        records = [option.get_help_record(ctx) for option in options]
        with formatter.section(f"Options of {DEFAULT_JOB}"):
            formatter.write_dl([record for record in records if record is not None])
        formatter.write_paragraph()
        formatter.write_text(f"`{ctx.command_path} JOB --help` shows the options of a job.")


class BoxGroup(TargetGroup):
    """A target whose first argument is the box."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Separate the box from the job's arguments."""
        end = args.index("--") if "--" in args else len(args)
        if not {"-h", "--help"} & {*args[:end]} and not ctx.resilient_parsing:
            if end == 0 or args[0].startswith("-"):
                raise usage(
                    "missing BOX, a host that ssh accepts or a Docker context: "
                    "`runner remote BOX ...`"
                )
            ctx.meta[TARGET] = f"remote:{args[0]}"
            args = args[1:]
        elif args and not args[0].startswith("-"):
            args = args[1:]
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Return the usage line with the box."""
        return ["BOX", *super().collect_usage_pieces(ctx)]


class UserCommandParser(click.Command):
    """A command with the program of the user after ``--``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments before ``--``."""
        at = args.index("--") if "--" in args else len(args)
        command = tuple(args[at + 1 :])
        ctx.meta[COMMAND_ARGS] = command
        if at < len(args) and not "".join(command[:1]).strip() and not ctx.resilient_parsing:
            raise usage("no command after --; write one, such as -- python train.py")
        return super().parse_args(ctx, args[:at])


@dataclass(frozen=True)
class TargetCommand:
    """The help and the options of one target."""

    help: str
    options: tuple[Decorator, ...] = ()  # of every job
    gpu: Decorator | None = None  # of every job, if the target rents GPUs
    run_options: tuple[Decorator, ...] = ()  # of jobs that write a run
    group: type[TargetGroup] = TargetGroup


TARGETS = {
    "host": TargetCommand(
        """Run a job as a process on this machine.

\b
  runner host                              train the default recipe
  runner host lr=1e-3 max_steps=100 --name try
  runner host gpt2_124m --queue --detach   when the GPUs are free
  runner host sample prompt="def " temperature=0.5
  runner host run my_gpt.py lr=3e-4        train() of a file
  runner host pipeline configs/nanogpt_shakespeare.yaml
  runner host --dir ../nanoGPT -- python train.py --max_iters=100
""",
        options=(ENV,),
        run_options=(QUEUE, SHARE),
    ),
    "local": TargetCommand(
        """Run a job in the container on this machine, with Docker Compose.

\b
  runner local                             train the default recipe
  runner local lr=1e-3 max_steps=100 --name try
  runner local shakespeare_char --gpu 2 --detach
  runner local sample prompt="def " temperature=0.5
  runner local run my_gpt.py lr=3e-4       train() of a file
  runner local pipeline configs/nanogpt_shakespeare.yaml
  runner local --dir ../nanoGPT -- python train.py --max_iters=100
""",
        options=(ENV,),
        run_options=(QUEUE, SHARE),
    ),
    "cloud": TargetCommand(
        """Run a job on Modal: the same image and command, on GPUs billed by the second.

\b
  runner cloud --gpu H100:8 gpt2_124m --max-cost 25
  runner cloud --gpu H100,A100-80GB lr=1e-3 --name try --detach
  runner cloud prepare shakespeare_char
  runner cloud sample --name try prompt="def "
  runner cloud run my_gpt.py --gpu L4      train() of a file
  runner cloud pipeline configs/nanogpt_shakespeare.yaml
  runner cloud --gpu H100 --dir ../nanoGPT --persist out=checkpoints -- python train.py

The runner shows the price and asks before it starts; -y answers yes. Ctrl-C asks
whether to stop the run or to leave it running. Without a terminal, SIGINT stops the
run and SIGTERM leaves it running.
""",
        options=(TIMEOUT, MAX_COST, ENV, SECRET, REGION, CORES, MEMORY),
        gpu=GPU,
    ),
    "remote": TargetCommand(
        """Run a job in a container on another machine with Docker: `runner remote BOX`.

\b
  runner remote lab                        train the default recipe on `ssh lab`
  runner remote me@10.0.0.7 shakespeare_char --detach
  runner remote lab sample prompt="def " temperature=0.5
  runner remote lab --dir ../nanoGPT --persist out=checkpoints -- python train.py
  runner push data ./my_corpus --target remote:lab
  runner pull checkpoints --target remote:lab

BOX is a [user@]host that ssh accepts, or the name of a Docker context. The box needs
Docker and sshd; nothing is installed there. The run continues if the connection is lost.
Ctrl-C asks whether to stop the run or to leave it running. `logs`, `watch`, `status`,
`stop` and `resume` find the run.
""",
        group=BoxGroup,
    ),
}


def target_command(name: str) -> TargetGroup:
    """Build the command of a target."""
    target = TARGETS[name]
    group = target.group(name, help=target.help)
    for job in JOB_COMMANDS:
        if target.gpu is None or not JOB_COMMANDS[job].is_local:
            group.add_command(_job_command(name, job))
    return group


def short_form(job: str) -> click.Command:
    """Build `runner chat`, which is `runner host chat`."""
    command = _job_command("host", job)
    command.help = str(command.help).replace(f"runner host {job}", f"runner {job}")
    return command


def _job_command(target_name: str, name: str) -> click.Command:
    target, job = TARGETS[target_name], JOB_COMMANDS[name]

    @click.pass_obj
    def callback(cli: CliContext, /, **values: Any) -> int:
        meta = click.get_current_context().meta
        known = {field.name for field in fields(LaunchArguments)} & values.keys()
        arguments = LaunchArguments(
            job=name, command=meta.get(COMMAND_ARGS, ()), **{key: values.pop(key) for key in known}
        )
        options = TargetOptions()
        if any(values.values()):
            from runner.targets.modal.options import parse_options

            options = parse_options(**values)
        if name == "pipeline":
            from runner.launch.pipeline import run_pipeline as run
        else:
            from runner.launch.execute import launch as run
        return run(cli, meta.get(TARGET, target_name), arguments, options)

    gpu = PROCESSES if name == DEFAULT_JOB else None
    if target.gpu:
        gpu = target.gpu if name not in JOBS or JOBS[name].takes_device else None
    complete: Any = completion.words if name == DEFAULT_JOB else completion.recipes
    if name in ("run", "pipeline"):
        complete = completion.files
    if name in ("chat", "serve"):
        complete = completion.runs
    decorators = [
        click.argument("args", nargs=-1, metavar=job.usage, shell_complete=complete),
        NAME,
        *([gpu] if gpu else []),
        *job.options,
        *(() if target.gpu else job.local_options),
        *([NODES] if target.gpu and name in (DEFAULT_JOB, COMMAND_JOB) else []),
        *([TAG, *target.run_options] if name in RUN_JOBS else []),
        *target.options,
        *[DRY_RUN, *([DETACH] if job.detach else []), JSON, YES],
    ]
    decorated: Any = callback
    for decorator in reversed(decorators):
        decorated = decorator(decorated)
    text = job.help.format(target="remote BOX" if target_name == "remote" else target_name)
    cls = UserCommandParser if name == COMMAND_JOB else click.Command
    return click.command(name, cls=cls, help=text)(decorated)


def explain_foreign_option(error: click.NoSuchOption, args: Sequence[str]) -> str | None:
    """Return the message for an option that a different job, or a key of the recipe, has."""
    ctx, option = error.ctx, error.option_name
    group = ctx.parent.command if ctx is not None and ctx.parent is not None else None
    if ctx is None or not isinstance(group, TargetGroup):
        return None
    job = str(ctx.command.name)
    if targets := _other_targets(group, job, option):
        return f"{option} is an option of {targets}, not of {group.name}; remove {option}"
    setting = recipe_setting(option, args, job)
    jobs = group.jobs_with(option)
    if not jobs:
        known = f"unknown option {option}; write a recipe setting as {brief(setting)}"
        return known if setting else None
    remedy = REMEDIES.get((job, option), "")
    if setting:
        remedy = f"for {job}, write {setting}"
    elif not remedy and COMMAND_JOB in jobs and DEFAULT_JOB not in jobs:
        remedy = COMMAND_REMEDY.format(target=group.name)
    return (
        f"{option} is an option of {', '.join(jobs)}, not of {job}; {remedy or f'remove {option}'}"
    )


def _other_targets(group: TargetGroup, job: str, option: str) -> str:
    """Return "`runner cloud`" for an option that ``job`` has on other targets only; else ''."""
    if group.jobs_with(option):
        return ""
    targets = [name for name in TARGETS if job in target_command(name).jobs_with(option)]
    return either([f"`runner {name}`" for name in targets]) if targets else ""


def recipe_setting(option: str, args: Sequence[str], job: str) -> str:
    """Return ``lr=1e-3`` for the option ``--lr`` if it is a setting that ``job`` reads, else ''."""
    prefixes = SETTINGS.get(job)
    if prefixes is None:
        return ""
    from job.recipe import known_keys  # only after a mistake: it loads pydantic
    from job.recipe_loader import SYNONYMS

    key = option.lstrip("-").replace("-", "_")
    key = SYNONYMS.get(key, key)
    keys = (name for name in known_keys() if name.startswith(prefixes))
    full = next((name for name in keys if key in (name, name.rpartition(".")[2])), None)
    if full is None:
        return ""
    at = next((n for n, word in enumerate(args) if word.partition("=")[0] == option), len(args))
    word, after = args[at : at + 1], args[at + 1 : at + 2]
    value = word[0].partition("=")[2] if word else ""
    if not value and after and not after[0].startswith("--") and "=" not in after[0]:
        value = after[0]
    return f"{full if full.startswith('data.') else key}={value or 'VALUE'}"
