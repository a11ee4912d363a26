"""The jobs as subcommands of each target: `runner host sample`, `runner cloud run FILE`.

`train` is the default job, and options may come before the job, so that
`runner cloud --gpu H100 shakespeare_char lr=1e-3` works.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib import import_module
from typing import Any

import click

from job.format import brief, either
from job.pretrained import TASKS
from runner import completion
from runner.cli_options import (
    DETACH,
    DEVICE,
    DRY_RUN,
    ENV,
    JSON,
    NOTIFY,
    QUEUE,
    SHARE,
    TAG,
    TRACKER,
    YES,
    Choice,
    Decorator,
    GpuCount,
    Integer,
)
from runner.console import CliContext
from runner.errors import usage
from runner.jobs import LaunchArguments
from runner.request import TargetOptions

DEFAULT_JOB = "train"
COMMAND_JOB = "command"
RUN_JOBS = (DEFAULT_JOB, "run", "pipeline", COMMAND_JOB)

ReadOptions = Callable[[Mapping[str, Any]], TargetOptions]

NAME = click.option(
    "--name",
    metavar="RUN",
    help="Name of the run.",
    shell_complete=completion.runs,
)
FOLDER = click.option(
    "--dir",
    "folder",
    metavar="DIR",
    help="Folder to run in; it is uploaded to a remote target.",
    shell_complete=completion.folders,
)
SETUP = click.option(
    "--setup",
    multiple=True,
    metavar="LINE",
    help="Shell line to add to the image, such as `pip install ...`; "
    "`none` ignores requirements.txt. Repeatable.",
)
PERSIST = click.option(
    "--persist",
    multiple=True,
    metavar="PATH=VOLUME",
    help="Keep PATH of the folder on a volume: out=checkpoints. Repeatable.",
)
METRIC = click.option(
    "--metric",
    multiple=True,
    metavar="NAME=REGEX",
    help="Metric in the output: loss='loss ([\\d.]+)'. Repeatable. Default: a preset for the "
    "folder's program, if known. `none` reads none.",
)


@dataclass(frozen=True)
class JobCommand:
    """The help and the options of one job."""

    usage: str
    help: str
    options: tuple[Decorator, ...] = ()
    local_options: tuple[Decorator, ...] = ()  # of targets that run on this machine
    is_local: bool = False  # only those targets have the job
    detach: bool = True
    multi_gpu: bool = False


RECIPE_HELP = """\
RECIPE is the name of a file in configs/ (default: quickstart) or a path.
key=value overrides a setting of the recipe."""

MODEL_HELP = """\
MODEL is a run (default: the newest), a folder that `export` wrote, or a GPT-2
on the Hugging Face Hub: gpt2, hf://OWNER/NAME. key=value changes a sampling setting."""

RUN_HELP = """\
--name selects the run; by default the newest. key=value overrides a sampling
or evaluation setting of its recipe."""

JOB_COMMANDS = {
    "train": JobCommand(
        "[RECIPE] [key=value ...]",
        f"""Train a model, or resume its run from the newest checkpoint.


\b
{RECIPE_HELP}

\b
  runner {{target}} shakespeare_char lr=1e-3 max_steps=500
  runner {{target}} train shakespeare_char --name try --detach
""",
        (DEVICE, TRACKER, NOTIFY),
        multi_gpu=True,
    ),
    "prepare": JobCommand(
        "[RECIPE | fineweb10B] [key=value ...]",
        f"""Download or read the text of a recipe and write its dataset.


\b
{RECIPE_HELP}

\b
  runner {{target}} prepare shakespeare_char
  runner {{target}} prepare data.dataset=mine --source ./texts
  runner {{target}} prepare fineweb10B --shards 9
""",
        (
            click.option("--source", metavar="S", help="Text to use in place of the recipe's."),
            click.option(
                "--shards",
                type=Integer(1),
                metavar="N",
                help="Number of training shards to download from a published dataset.",
            ),
            click.option("--force", is_flag=True, help="Replace the existing dataset."),
        ),
    ),
    "sample": JobCommand(
        "[RECIPE] [key=value ...]",
        f"""Generate text from the newest checkpoint of a run.


\b
{RUN_HELP}

\b
  runner {{target}} sample
  runner {{target}} sample --name try prompt="def " temperature=0.5
""",
        (DEVICE,),
    ),
    "evaluate": JobCommand(
        "[RECIPE] [key=value ...]",
        f"""Measure the validation loss of a run, or its accuracy on a task.


\b
{RUN_HELP}

\b
  runner {{target}} evaluate --name try
  runner {{target}} evaluate --name try --task hellaswag
  runner {{target}} evaluate --name try --multiple-choice questions.jsonl
""",
        (
            DEVICE,
            click.option(
                "--multiple-choice",
                metavar="FILE",
                help="Answer the questions in FILE, one JSON object per line.",
            ),
            click.option(
                "--task",
                type=Choice([*TASKS]),
                help="Measure a task by name; its data is downloaded once.",
            ),
        ),
    ),
    "export": JobCommand(
        "[RECIPE] [key=value ...]",
        """Export the model and tokenizer of a run to Hugging Face format.


\b
  runner {target} export --name try
  runner {target} export --name try --output ./try-hf
  runner {target} export --name try --push OWNER/NAME
""",
        (
            click.option(
                "--output",
                metavar="DIR",
                help="Folder to write; by default huggingface/ in the run's folder.",
            ),
            click.option(
                "--push",
                metavar="OWNER/NAME",
                help="Also upload it to the Hugging Face Hub, with a model card; needs HF_TOKEN.",
            ),
        ),
    ),
    "chat": JobCommand(
        "[MODEL] [key=value ...]",
        f"""Talk to a trained network, which stays loaded.


\b
{MODEL_HELP}
With a chat template the conversation is remembered; otherwise each text is
completed on its own. /help lists the commands; Ctrl-C ends a text.

\b
  runner {{target}} chat
  runner {{target}} chat my_run temperature=0.5
  echo "def " | runner {{target}} chat --json
""",
        (
            DEVICE,
            click.option(
                "--prompt-file", metavar="FILE", help="Complete the text of FILE, then exit."
            ),
        ),
        is_local=True,
        detach=False,
    ),
    "serve": JobCommand(
        "[MODEL] [key=value ...]",
        f"""Serve a trained network through an OpenAI-compatible API.


\b
The server also has a web page to try it.
{MODEL_HELP}
SERVE_TOKEN, in the environment or .env, is the API key that requests need.

\b
  runner {{target}} serve
  runner {{target}} serve my_run
""",
        (DEVICE,),
        local_options=(
            click.option(
                "--host",
                default="127.0.0.1",
                show_default=True,
                help="Address to bind; 0.0.0.0 lets other machines in.",
            ),
            click.option(
                "--port",
                type=Integer(1, 65535, "a port"),
                default=8000,
                metavar="PORT",
                show_default=True,
                help="Port on this machine.",
            ),
        ),
        detach=False,
    ),
    "roofline": JobCommand(
        "",
        """Measure the peak throughput of the device.


\b
  runner {target} roofline
""",
        (DEVICE,),
    ),
    "run": JobCommand(
        "FILE [key=value ...]",
        """Run train() of a Python file, an experiment (docs/experiments.md).


\b
key=value sets a parameter of train().

\b
  runner {target} run my_gpt.py lr=3e-4
""",
        (
            click.option(
                "--param",
                "params",
                multiple=True,
                metavar="K=V",
                help="Same as key=value. Repeatable.",
            ),
            FOLDER,
            SETUP,
            click.option("--device", metavar="cpu", help="cpu hides the GPUs from the experiment."),
            TRACKER,
            NOTIFY,
        ),
    ),
    "pipeline": JobCommand(
        "FILE [STAGE ...] [STAGE.key=value ...]",
        """Run the stages of a pipeline in order (docs/commands.md).


\b
Stages that have finished are skipped. Name stages to run only those. While the
pipeline runs, the same command shows it.

\b
  runner {target} pipeline configs/nanogpt_shakespeare.yaml
  runner {target} pipeline configs/nanogpt_shakespeare.yaml train --dry-run
""",
        (FOLDER, NOTIFY),
    ),
    COMMAND_JOB: JobCommand(
        "-- PROGRAM [ARG ...]",
        """Run any command in any folder and record it as a run (docs/commands.md).


\b
The word `command` can be omitted. The options come before the --.

\b
  runner {target} --dir ../nanoGPT -- python train.py --max_iters=100
  runner {target} --dir ../nanoGPT --persist out=checkpoints -- python train.py
""",
        (
            FOLDER,
            SETUP,
            PERSIST,
            METRIC,
            click.option(
                "--resume-with",
                metavar="ARGS",
                help="Arguments to append when the command resumes.",
            ),
            click.option(
                "--resume-if",
                metavar="PATH",
                help="Append them only if this file exists.",
            ),
            NOTIFY,
        ),
    ),
}

# Remedies for an option of a different job; an option that is also a recipe key needs none.
REMEDIES = {
    ("command", "--gpu"): "the command starts its own processes (torchrun); "
    "set CUDA_VISIBLE_DEVICES to choose GPUs",
    ("run", "--gpu"): "experiments run in one process and use every visible GPU",
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


class UserCommandParser(click.Command):
    """Separates the arguments after ``--``, which belong to the command."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments before ``--``."""
        at = args.index("--") if "--" in args else len(args)
        command = tuple(args[at + 1 :])
        ctx.meta[COMMAND_ARGS] = command
        if at < len(args) and not "".join(command[:1]).strip() and not ctx.resilient_parsing:
            raise usage("no command after --; write one, such as -- python train.py")
        return super().parse_args(ctx, args[:at])


COMMAND_ARGS = "runner.command"


def target_group(
    help_text: str,
    target: str,
    options: Sequence[Decorator] = (),
    gpu: Decorator | None = None,
    node_options: Sequence[Decorator] = (),
    run_options: Sequence[Decorator] = (),
    read_options: ReadOptions | None = None,
    cls: type[TargetGroup] = TargetGroup,
    target_of: Callable[[click.Context], str] | None = None,
) -> TargetGroup:
    """Build the command of a target.

    Every job gets ``options``; those that can use several machines get ``node_options``, and those
    that make a run ``run_options``.

    ``gpu`` is the option of every job on a target that rents GPUs; without it, training has
    ``--gpu N``. ``read_options`` reads the values of the target's own options. ``target_of``
    returns the target's name, if it depends on the arguments.
    """
    group = cls(target, help=help_text)
    name_of = target_of or (lambda _: target)
    for name, job in JOB_COMMANDS.items():
        if job.is_local and gpu is not None:
            continue
        job_options = [*job.options, *(job.local_options if gpu is None else ())]
        if gpu is not None:
            job_options.insert(0, gpu)
        elif job.multi_gpu:
            job_options.insert(0, PROCESSES)
        if job.multi_gpu or name == COMMAND_JOB:
            job_options += node_options
        if name in RUN_JOBS:
            job_options += [TAG, *run_options]
        common = [DRY_RUN, *([DETACH] if job.detach else []), JSON, YES]
        group.add_command(
            _job_command(
                name,
                target,
                name_of,
                read_options or read_environment,
                [NAME, *job_options, *options, *common],
            )
        )
    return group


def machine_group(help_text: str, target: str) -> TargetGroup:
    """Build the command of a target of this machine, whose runs use the same GPUs."""
    return target_group(help_text, target, options=(ENV,), run_options=(QUEUE, SHARE))


def read_environment(values: Mapping[str, Any]) -> TargetOptions:
    """Return the options of a target that has none but --env."""
    from runner.targets.modal.options import parse_options

    return parse_options(variables=values["env"]) if values.get("env") else TargetOptions()


def short_form(name: str) -> click.Command:
    """Return `runner chat` for `runner host chat`."""
    job = JOB_COMMANDS[name]
    options = [NAME, *job.options, *job.local_options, DRY_RUN, JSON, YES]
    command = _job_command(name, "host", lambda _: "host", read_environment, options)
    command.help = str(command.help).replace(f"runner host {name}", f"runner {name}")
    return command


PROCESSES = click.option(
    "--gpu",
    type=GpuCount(1),
    metavar="N",
    help="Number of GPUs; training uses one process for each.",
)


def _job_command(
    name: str,
    target: str,
    name_of: Callable[[click.Context], str],
    read_options: ReadOptions,
    options: Sequence[Decorator],
) -> click.Command:
    job = JOB_COMMANDS[name]

    @click.pass_obj
    def callback(cli: CliContext, /, **values: Any) -> int:
        ctx = click.get_current_context()
        command, target = ctx.meta.get(COMMAND_ARGS, ()), name_of(ctx)
        known = {field.name for field in fields(LaunchArguments)}
        arguments = LaunchArguments(
            job=name, command=command, **{key: values[key] for key in known & values.keys()}
        )
        options = read_options({key: value for key, value in values.items() if key not in known})
        if name == "pipeline":
            from runner.launch.pipeline import run_pipeline

            return run_pipeline(cli, target, arguments, options)
        from runner.launch.execute import launch

        return launch(cli, target, arguments, options)

    complete: Any = completion.words if name == DEFAULT_JOB else completion.recipes
    if name in ("run", "pipeline"):
        complete = completion.files
    if name in ("chat", "serve"):
        complete = completion.runs
    args = click.argument("args", nargs=-1, metavar=job.usage, shell_complete=complete)
    decorated: Any = callback
    for option in reversed([args, *options]):
        decorated = option(decorated)
    cls = UserCommandParser if name == COMMAND_JOB else click.Command
    return click.command(
        name, cls=cls, help=job.help.format(target="remote BOX" if target == "remote" else target)
    )(decorated)


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
        return (
            f"unknown option {option}; write a recipe setting as {brief(setting)}"
            if setting
            else None
        )
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
    names = ("host", "local", "cloud", "remote")
    commands = {name: import_module(f"runner.commands.{name}").command for name in names}
    targets = [name for name, other in commands.items() if job in other.jobs_with(option)]
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
