"""A launch from the command line to the exit status; the same for every target."""

from __future__ import annotations

from job.exit_status import ExitStatus
from runner.checkout import find_checkout
from runner.cloud.account import is_set_up
from runner.command_line.arguments import CommandLine
from runner.errors import NoSuchRun, RunnerError, usage
from runner.interrupts import release
from runner.outcome import in_words, outcome
from runner.plans.planned import Plan
from runner.plans.table import show
from runner.requests.command_request import command_request
from runner.requests.experiment_request import (
    experiment_request,
    names_experiment,
    show_finished,
)
from runner.requests.request import Request, read_request
from runner.runs.finished import show_trained, trained
from runner.runs.other_side import look_on_other_side
from runner.targets import open_target
from runner.targets.protocol import RunState, Started, Target
from runner.terminal import Environment

WORD = "pipeline"  # in the place of a job


def launch(
    env: Environment, target_name: str, line: CommandLine, more: tuple[tuple[str, str], ...] = ()
) -> ExitStatus:
    """Check, plan, show, start and follow. ``more`` are options that only this target has."""
    checkout = find_checkout(env.cwd)
    target = open_target(target_name, env, checkout)
    files = target.files("checkpoints")
    if WORD in line.words and not line.command:
        from runner.pipelines.pipeline import run_pipeline  # it launches through this file

        return run_pipeline(env, target, line, checkout, more)
    # Without a Modal account there is no run there yet, and the plan can be shown all the same.
    known = files if target.name != "cloud" or is_set_up(env.environ) else None
    if names_experiment(line.words):
        request = experiment_request(line, env.cwd, known, more)
    elif line.is_command:
        request = command_request(line, env.cwd, known, more)
    else:
        try:
            request = read_request(line, checkout, env.cwd, known, more)
        except NoSuchRun as error:
            raise look_on_other_side(env, checkout, target.name, line.words, error) from None
    return carry_out(env, target, request, line)


def carry_out(env: Environment, target: Target, request: Request, line: CommandLine) -> ExitStatus:
    """The part of a launch that follows once it is known what is wanted."""
    facts = target.facts(request)
    if request.experiment is not None and facts.record is not None and facts.record.status == "finished":
        return show_finished(env, facts.record, request.experiment.file, line.as_json)
    plan = target.plan(request, facts)
    record = trained(request, facts)
    if record is not None and plan.question is not None and not line.dry_run:  # it would be paid for
        return show_trained(env, target.files("checkpoints"), request.run, record, line.as_json)
    if line.dry_run and line.as_json:
        env.json(plan.facts())
        return ExitStatus.DONE
    show(plan, env)
    if line.dry_run:
        return ExitStatus.DONE
    confirm(env, plan.question, line.yes)
    if plan.detach:
        return _leave(env, target.start(plan), line.as_json)
    return follow_plan(env, target, plan)


def confirm(env: Environment, question: str | None, yes: bool) -> None:
    """Ask a plan's question, if it has one. Raises RunnerError: 103 for a no, 2 where nobody can answer."""
    if question is None or yes:
        return
    if not env.is_terminal:
        raise usage(f"{question} Nobody is here to answer; to say yes, type:\n  {env.line} -y")
    if not env.ask(question):
        raise RunnerError("not started", ExitStatus.CANCELLED)


def _leave(env: Environment, started: Started, as_json: bool) -> ExitStatus:
    if as_json:
        env.json({"run": started.run, "target": started.target, "job": started.job, "id": started.id})
    else:
        env.write(started.run)
        env.say(
            f"started; `runner logs {started.run} --follow` shows it, `runner stop {started.run}` ends it"
        )
    return ExitStatus.DONE


def follow_plan(env: Environment, target: Target, plan: Plan) -> ExitStatus:
    """Start it and stay with it to its end."""
    started = None
    try:
        started = target.start(plan)
        code = target.follow(started)
    except KeyboardInterrupt:
        if started is not None:
            target.stop(plan.run)
        raise
    finally:
        release()
    if code is None:  # it goes on, and the user knows
        return ExitStatus.INTERRUPTED
    state = _recorded(target, plan, started) if plan.has_run and code else None
    status = outcome(code, state.status if state else None)
    if plan.job == "command" and status == ExitStatus.USAGE:
        status = ExitStatus.JOB_FAILED  # the 2 is the command's own word
    begun = plan.has_run and (code == 0 or target.launched(plan.run) is not None)
    if status == ExitStatus.JOB_FAILED and plan.has_run and not begun:
        env.say("nothing was begun: mend what it says above, and type the same again")
        return ExitStatus.ERROR
    ended = state.ends[-1] if state and state.ends else ""
    words = in_words(status, code, plan.run, env.line, resumes=begun, ended=ended)
    if words:
        env.say(words)
    return status


def _recorded(target: Target, plan: Plan, started: Started) -> RunState | None:
    """How the run's record says that it stands, if that is of this attempt."""
    state = target.state(plan.run)
    is_of_it = state is not None and state.ended is not None and state.ended >= started.started
    return state if is_of_it else None
