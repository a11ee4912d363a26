"""``python -m runner``: the same as the installed command."""

from runner.cli import main

main(prog_name="runner")
