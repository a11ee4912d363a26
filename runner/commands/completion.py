"""Print the script that completes commands, recipes, runs and GPUs with TAB.

\b
  echo 'eval "$(runner completion bash)"' >> ~/.bashrc
  echo 'eval "$(runner completion zsh)"' >> ~/.zshrc
  runner completion fish > ~/.config/fish/completions/runner.fish
"""

import click

from runner.cli_options import Choice
from runner.console import CliContext


@click.command(help=__doc__)
@click.argument("shell", type=Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> int:
    from click.shell_completion import get_completion_class

    cli = ctx.ensure_object(CliContext)
    complete = get_completion_class(shell)
    assert complete is not None
    cli.write(complete(ctx.find_root().command, {}, "runner", "_RUNNER_COMPLETE").source().rstrip())
    return 0
