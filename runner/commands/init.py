"""Write a recipe, an experiment and .env.example into this folder, to start from.

\b
  runner init                  configs/my_gpt.yaml, my_experiment.py, .env.example
  runner local my_gpt          train the recipe: recipes in ./configs are found by name
  runner host run my_experiment.py

Existing files are kept.
"""

import click

from runner.console import CliContext


@click.command(help=__doc__)
@click.pass_obj
def command(cli: CliContext) -> int:
    from job.files import write_atomically
    from runner.commands.new import write_experiment
    from runner.project import INSTALLED, find_checkout

    checkout = find_checkout(cli.cwd)
    text = (checkout / "configs" / "quickstart.yaml").read_text(encoding="utf-8")
    texts = {
        "configs/my_gpt.yaml": text,
        ".env.example": (checkout / ".env.example").read_text(encoding="utf-8"),
    }
    for name, content in texts.items():
        path = cli.cwd / name
        if path.exists():
            cli.info(f"kept {name}")
            continue
        write_atomically(path, content)
        cli.write(name)
    if (cli.cwd / "my_experiment.py").exists():
        cli.info("kept my_experiment.py")
    else:
        cli.write(write_experiment(cli.cwd, "my_experiment", INSTALLED).name)
    cli.info("train the recipe with `runner host my_gpt`, `local my_gpt` or `cloud my_gpt`")
    return 0
