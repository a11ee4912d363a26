"""Run a job in a container on another machine with Docker (a box): `runner remote BOX ...`.

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
"""

from __future__ import annotations

import click

from runner.commands._jobs import TargetGroup, target_group
from runner.errors import usage

BOX = "runner.box"


class BoxGroup(TargetGroup):
    """Takes the first word as the box."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Separate the box from the job's arguments."""
        end = args.index("--") if "--" in args else len(args)
        if not {"-h", "--help"} & {*args[:end]} and not ctx.resilient_parsing:
            if not args or args[0].startswith("-") or end == 0:
                raise usage(
                    "missing BOX, a host that ssh accepts or a Docker context: "
                    "`runner remote BOX ...`"
                )
            ctx.meta[BOX] = args[0]
            args = args[1:]
        elif args and not args[0].startswith("-"):
            args = args[1:]
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Return the usage line with the box."""
        return ["BOX", *super().collect_usage_pieces(ctx)]


command = target_group(
    __doc__, "remote", cls=BoxGroup, target_of=lambda ctx: f"remote:{ctx.meta[BOX]}"
)
