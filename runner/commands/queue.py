"""List the runs that use or wait for the GPUs of this machine.

\b
  runner queue
  runner queue --first my_run

`runner host ... --queue` and `runner local ... --queue` add a run; `runner stop RUN`
removes one. Runs start in the order of the list.
"""

import click

from runner.cli_options import JSON
from runner.console import CliContext


@click.command(help=__doc__)
@click.option("--first", metavar="RUN", help="Move a waiting run to the front.")
@JSON
@click.pass_obj
def command(cli: CliContext, first: str | None, as_json: bool) -> int:
    from dataclasses import asdict

    from job.gpu_queue import WHOLE_MACHINE, live_tickets, move_first
    from runner.errors import did_you_mean, not_found
    from runner.home import queue_folder

    queue = queue_folder(cli.environ)
    waiting = [ticket.run for ticket in live_tickets(queue) if not ticket.taken]
    if first is not None and (first not in waiting or not move_first(queue, first)):
        hint = did_you_mean(first, waiting) or "; `runner queue` lists the queue"
        raise not_found(f"run '{first}' is not waiting in the queue{hint}")
    tickets = live_tickets(queue)
    if as_json:
        cli.json([asdict(ticket) for ticket in tickets])
        return 0
    running = len(tickets) - len(waiting)
    for number, ticket in enumerate(tickets, 1):
        gpus = "running" if ticket.taken == (WHOLE_MACHINE,) else f"GPU {', '.join(ticket.taken)}"
        state = gpus if ticket.taken else f"place {number - running}"
        cli.write(f"{state:<12} {ticket.run:<24} {ticket.folder}")
    if not tickets:
        cli.info("no run uses or waits for the GPUs of this machine")
    return 0
