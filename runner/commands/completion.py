"""Print what makes TAB complete commands, options, recipes, runs and GPUs.

\b
For bash, zsh, fish and PowerShell, in the file that each reads at its start:
  echo 'eval "$(runner completion bash)"' >> ~/.bashrc
  echo 'eval "$(runner completion zsh)"' >> ~/.zshrc
  runner completion fish > ~/.config/fish/completions/runner.fish
  runner completion powershell >> $PROFILE
"""

import click

from runner.terminal import Environment


@click.command(help=__doc__)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish", "powershell"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> int:
    from click.shell_completion import get_completion_class

    from runner.command_line import powershell  # noqa: F401  (known to click from here on)

    env = ctx.ensure_object(Environment)
    complete = get_completion_class(shell)
    assert complete is not None
    env.write(complete(ctx.find_root().command, {}, "runner", "_RUNNER_COMPLETE").source().rstrip())
    return 0
