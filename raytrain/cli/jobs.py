"""The commands that speak with a cluster's job server. Heavy imports stand inside them, as in `cli`."""

import os
import secrets
import sys
import tempfile
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raytrain.cli.submitted import parse_command
from raytrain.errors import ConfigError, TrainingError

if TYPE_CHECKING:
    from rich.console import Console

    from raytrain.launch.packing import Choice
    from raytrain.launch.request import Request
    from raytrain.launch.server import Job, JobServer

jobs_app = typer.Typer(help="The jobs of a cluster: list, logs, attach, stop.", no_args_is_help=True)

Address = Annotated[
    str | None,
    typer.Option(
        metavar="URL", help="The cluster's job server; default: RAY_API_SERVER_ADDRESS, RAY_ADDRESS, or port 8265 here."
    ),
]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="A job's id; `raytrain jobs list` has them.")]


def submit(
    ctx: typer.Context,
    words: Annotated[
        list[str],
        typer.Argument(metavar="COMMAND", help="After --: a command for a cluster, such as train."),
    ],
    address: Address = None,
    detach: Annotated[bool, typer.Option("--detach", help="Leave once the job is submitted.")] = False,
    working_dir: Annotated[
        str | None, typer.Option(metavar="DIR", help="A folder of code to send along; most runs need none.")
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A file of that folder to send although it looks like a secret; repeatable."),
    ] = None,
) -> None:
    """Run a command on a cluster, as `raytrain submit -- train CONFIG`, and follow it. Its exit code is the run's.

    The config is checked here and sent. The same submission again goes on where the run stopped.
    """
    from rich.console import Console

    from raytrain.launch.request import make_request
    from raytrain.terminal.run import PROGRESS_VARIABLE

    submittable, arguments = parse_command(ctx, words)
    request = make_request(words[0], arguments, needs_folder_alone=submittable.needs_folder_alone)
    console = Console(highlight=False)
    choice = _choose(console, working_dir, request, include or [])
    from raytrain.launch.server import JobServer

    server = JobServer(address)
    if request.needs_folder_alone:
        server.refuse_second(request.run)
    # Lines of progress become a bar on a terminal, which should move.
    env_vars = {PROGRESS_VARIABLE: "2"} if console.is_terminal and not detach else {}
    job_id = f"raysubmit_{secrets.token_hex(8)}"  # as Ray names them; known before it is sent
    try:
        _send(server, job_id, request, choice, env_vars)
    except KeyboardInterrupt:
        console.print(f"job {job_id} may have been submitted all the same; see: raytrain jobs list", soft_wrap=True)
        raise typer.Exit(1) from None
    console.print(f"job {job_id} is submitted to {server.address}", soft_wrap=True)
    if detach:
        console.print(f"follow it with: raytrain jobs attach {job_id}", soft_wrap=True)
        return
    _follow(server, job_id)


def _choose(console: "Console", working_dir: str | None, request: "Request", include: list[str]) -> "Choice | None":
    """The files to send, shown to the user, who is asked about the doubtful ones if there is a terminal to ask on."""
    from raytrain.launch.packing import choose_files

    if working_dir is None:
        if include:
            raise ConfigError(f"--include {include[0]} names a file below --working-dir, which is not given")
        return None
    choice = choose_files(working_dir, request.data_paths)
    choice.include(include)
    for line in choice.lines():
        console.print(line, markup=False, soft_wrap=True)
    is_asked = bool(choice.doubtful) and console.is_terminal and sys.stdin.isatty()
    if is_asked and typer.confirm(f"send the {len(choice.doubtful)} listed last, too?", default=False):
        choice.include(list(choice.doubtful))
    return choice


def _send(
    server: "JobServer", job_id: str, request: "Request", choice: "Choice | None", env_vars: dict[str, str]
) -> None:
    from raytrain.launch.packing import write_archive

    with tempfile.TemporaryDirectory() as folder:
        archive = os.path.join(folder, "job.zip")
        write_archive(archive, choice, request.files)
        server.submit(job_id, request.words, archive, request.run, env_vars)


@jobs_app.command("list")
def jobs_list(address: Address = None) -> None:
    """All jobs that were submitted to the cluster, the oldest first."""
    from rich.console import Console

    from raytrain.launch.server import JobServer
    from raytrain.terminal.jobs import print_jobs

    print_jobs(Console(highlight=False), JobServer(address).jobs())


@jobs_app.command("logs")
def jobs_logs(job: JobId, address: Address = None) -> None:
    """Print what a job has printed up to now."""
    from raytrain.launch.job_events import for_people
    from raytrain.launch.server import JobServer

    server = JobServer(address)
    server.look(job)
    typer.echo(for_people(server.logs(job)), nl=False)


@jobs_app.command("attach")
def jobs_attach(job: JobId, address: Address = None) -> None:
    """Follow a job from its first line. The exit code is the run's."""
    from raytrain.launch.server import JobServer

    try:
        server = JobServer(address)
        server.look(job)
    except KeyboardInterrupt:
        typer.echo(f"job {job} was not reached yet; nothing has changed for it")
        raise typer.Exit(1) from None
    _follow(server, job)


@jobs_app.command("stop")
def jobs_stop(job: JobId, address: Address = None) -> None:
    """Let a job save a checkpoint and leave, and wait for that. Exit code 1: it did not say that it has saved."""
    from raytrain.launch.job_events import events_of
    from raytrain.launch.server import JobServer, Tail
    from raytrain.terminal.jobs import JobDisplay
    from raytrain.training.outcome import RunStatus

    server = JobServer(address)
    found = server.look(job)
    is_saved = found.is_over or not found.saves
    with JobDisplay() as display:
        if not found.is_over:
            seen = len(server.logs(job))
            server.stop(job)
            display.console.print(f"job {job} was asked to save and leave", soft_wrap=True)
            try:
                found = Tail(server, job, display.say, seen=seen).wait()
                said = events_of(server.logs(job)[seen:].split("\n"))
                is_saved = is_saved or found.status == "SUCCEEDED" or any(e.status == RunStatus.STOPPED for e in said)
            except KeyboardInterrupt:
                display.console.print(f"job {job} goes on saving; see: raytrain jobs list", soft_wrap=True)
                raise typer.Exit(1) from None
        display.close()
    display.console.print(f"job {job} is over: {found.status}", soft_wrap=True)
    if not is_saved:
        display.console.print(
            f"it has not said that it saved, so the newest checkpoint is older. What it said: raytrain jobs logs {job}",
            style="red",
            soft_wrap=True,
        )
        raise typer.Exit(1)


def _follow(server: "JobServer", job_id: str) -> None:
    """Show a job until it is over or the user leaves it; exits with the run's exit code."""
    from raytrain.launch.server import Tail
    from raytrain.terminal.jobs import JobDisplay, ask_on_interrupt, print_end

    display = JobDisplay()
    tail, job = Tail(server, job_id, display.say), None
    while job is None:
        try:
            job = _wait(tail, display)
        except KeyboardInterrupt:
            answer = ask_on_interrupt(display.console)
            if answer == "stop":
                _ask_to_stop(server, job_id)
            if answer == "detach":
                display.console.print(
                    f"job {job_id} goes on without you. Follow it with: raytrain jobs attach {job_id}; end it with: "
                    f"raytrain jobs stop {job_id}",
                    soft_wrap=True,
                )
                raise typer.Exit(1) from None  # what was asked is not done yet
    print_end(display.console, job)
    raise typer.Exit(job.exit_code)


def _ask_to_stop(server: "JobServer", job_id: str) -> None:
    """Raises TrainingError: a ConfigError would mean that nothing was started."""
    try:
        server.stop(job_id)
    except ConfigError as error:
        raise TrainingError(f"job {job_id} could not be asked to stop, and goes on: {error}") from None


def _wait(tail: Any, display: Any) -> "Job":
    with display:
        job = tail.wait()
        display.close()
    return job
