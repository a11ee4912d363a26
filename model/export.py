"""Write a run's newest checkpoint in Hugging Face's format.

python -m model.export --name gpt2 --into exported/
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from model.command_line import run_arguments
from model.exit_status import ExitStatus
from model.hugging_face import export
from model.locations import Locations
from model.recipe import RecipeError
from model.trained import NoSuchRun, open_run, say


def main(argv: list[str] | None = None) -> int:
    """The entry; returns the exit status."""
    arguments, overrides = run_arguments(__doc__ or "", argv, into=True)
    locations = Locations.current()
    try:
        run = open_run(arguments.name, overrides, locations, torch.device("cpu"))
        into = Path(arguments.into) if arguments.into else run.folder / "hugging_face"
        export(run.network, into, run.tokenizer.eot)
    except NoSuchRun as error:
        say(str(error))
        return ExitStatus.NOT_FOUND
    except RecipeError as error:
        say(str(error))
        return ExitStatus.USAGE
    except ValueError as error:
        say(str(error))
        return ExitStatus.ERROR
    say(f"run {run.folder.name}, step {run.step}: read it with GPT2LMHeadModel.from_pretrained")
    print(into)
    return ExitStatus.DONE


if __name__ == "__main__":
    sys.exit(main())
