"""Show the cost of the runs on Modal: according to the runner's records and to Modal's bill.

\b
  runner spend                     this month
  runner spend --since 2026-09-01

Modal bills whole hours, some time after they end. One row sums the apps that are not runs.
GPT_RUNNER_MONTHLY_CAP=200 in .env limits the cost of all runs in a month.
"""

from datetime import UTC, datetime
from typing import Any

import click

from runner.cli_options import JSON, flag
from runner.console import CliContext
from runner.errors import usage


class _Day(click.DateTime):
    """A day or a month."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        """Return the date in ``value``."""
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            raise usage(
                f"{flag(param)} {value}: expected a day such as 2026-09-01 or a month such as "
                "2026-09"
            ) from None


@click.command(help=__doc__)
@click.option(
    "--since",
    type=_Day(["%Y-%m-%d", "%Y-%m"]),
    metavar="DAY",
    help="First day (2026-09-01) or month (2026-09), in UTC. [default: this month]",
)
@JSON
@click.pass_obj
def command(cli: CliContext, since: datetime | None, as_json: bool) -> int:
    from dataclasses import asdict

    from job.format import dollars
    from runner.project import find_checkout
    from runner.target import all_targets
    from runner.targets.modal.runs import start_of_month

    start = start_of_month() if since is None else since.replace(tzinfo=UTC)
    billing = [target for target in all_targets(cli, find_checkout(cli.cwd)) if target.bills]
    costs = [cost for target in billing for cost in target.costs(start.timestamp())]
    if as_json:
        cli.json([asdict(cost) for cost in costs])
        return 0
    total = ("total", sum(cost.recorded for cost in costs), sum(cost.billed for cost in costs))
    lines = [(cost.run or "(other apps)", cost.recorded, cost.billed) for cost in costs]
    width = max(len(name) for name, _, _ in [*lines, total])
    cli.write(f"{'since ' + start.strftime('%Y-%m-%d'):<{width}}  {'recorded':>9}  {'billed':>9}")
    for name, recorded, billed in [*lines, total]:
        cli.write(f"{name:<{width}}  {dollars(recorded):>9}  {dollars(billed):>9}")
    return 0
