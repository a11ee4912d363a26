"""The jobs of the targets: their help and options. `runner host sample` runs the job `sample`."""

from __future__ import annotations

from dataclasses import dataclass

import click

from job.pretrained import TASKS
from runner.cli_options import (
    DEVICE,
    FOLDER,
    NOTIFY,
    PERSIST,
    SETUP,
    TRACKER,
    Choice,
    Decorator,
    Integer,
)

COMMAND_JOB = "command"


@dataclass(frozen=True)
class JobCommand:
    """The help and the options of one job."""

    usage: str
    help: str
    options: tuple[Decorator, ...] = ()
    local_options: tuple[Decorator, ...] = ()  # of targets that run on this machine
    is_local: bool = False  # only those targets have the job
    detach: bool = True


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
            click.option(
                "--metric",
                multiple=True,
                metavar="NAME=REGEX",
                help="Metric in the output: loss='loss ([\\d.]+)'. Repeatable. Default: a preset "
                "for the folder's program, if known. `none` reads none.",
            ),
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
