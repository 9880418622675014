"""The commands that use a cluster's job server. They import heavy modules in their bodies; see `main`."""

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

jobs_app = typer.Typer(help="List, show, follow and stop the jobs of a cluster.", no_args_is_help=True)

Address = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="The cluster's job server; default: RAY_API_SERVER_ADDRESS, RAY_ADDRESS, or port 8265 here.",
    ),
]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="Id of a job, as printed by `raytrain jobs list`.")]


def submit(
    ctx: typer.Context,
    words: Annotated[
        list[str],
        typer.Argument(metavar="COMMAND", help="After --: a command for a cluster, such as train."),
    ],
    address: Address = None,
    detach: Annotated[bool, typer.Option("--detach", help="Exit once the job is submitted.")] = False,
    working_dir: Annotated[
        str | None, typer.Option(metavar="DIR", help="A folder of code to send with the job; most runs need none.")
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A file of that folder to send although it looks like a secret; repeatable."),
    ] = None,
) -> None:
    """Run a command on a cluster, as `raytrain submit -- train CONFIG`, and follow it. Its exit code is the run's.

    The config is checked on this machine and sent. The same submission again resumes the run.
    """
    from raytrain.launch.request import make_request
    from raytrain.terminal.output import make_console
    from raytrain.terminal.run import PROGRESS_VARIABLE

    submittable, arguments = parse_command(ctx, words)
    request = make_request(words[0], arguments, needs_folder_alone=submittable.needs_folder_alone)
    console = make_console()
    choice = _choose(console, working_dir, request, include or [])
    from raytrain.launch.server import JobServer

    server = JobServer(address)
    if request.needs_folder_alone:
        server.refuse_second(request.run)
    # Lines of progress are shown as a bar on a terminal, which needs more of them.
    env_vars = {PROGRESS_VARIABLE: "2"} if console.is_terminal and not detach else {}
    job_id = f"raysubmit_{secrets.token_hex(8)}"  # named as Ray does; known before the job is sent
    try:
        _send(server, job_id, request, choice, env_vars)
    except KeyboardInterrupt:
        console.print(f"job {job_id} may have been submitted nevertheless; see: raytrain jobs list", soft_wrap=True)
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
        console.print(line, soft_wrap=True)
    is_asked = bool(choice.doubtful) and console.is_terminal and sys.stdin.isatty()
    if is_asked and typer.confirm(f"send the {len(choice.doubtful)} listed last, too?", default=False):
        choice.include(list(choice.doubtful))
        console.print(next(choice.lines()), soft_wrap=True)
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
    """List all jobs that were submitted to the cluster, the oldest first."""
    from raytrain.launch.server import JobServer
    from raytrain.terminal.jobs import print_jobs
    from raytrain.terminal.output import make_console

    print_jobs(make_console(), JobServer(address).jobs())


@jobs_app.command("logs")
def jobs_logs(job: JobId, address: Address = None) -> None:
    """Print the output of a job up to now."""
    from raytrain.launch.job_events import for_people
    from raytrain.launch.server import JobServer

    server = JobServer(address)
    server.look(job)
    typer.echo(for_people(server.logs(job)), nl=False)


@jobs_app.command("attach")
def jobs_attach(job: JobId, address: Address = None) -> None:
    """Follow the output of a job from its beginning. The exit code is the run's."""
    from raytrain.launch.server import JobServer

    try:
        server = JobServer(address)
        server.look(job)
    except KeyboardInterrupt:
        typer.echo(f"interrupted before job {job} was reached; the job is not affected")
        raise typer.Exit(1) from None
    _follow(server, job)


@jobs_app.command("stop")
def jobs_stop(job: JobId, address: Address = None) -> None:
    """Ask a job to save a checkpoint and end, and wait for it. Exit code 1: the job did not report that it saved."""
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
            display.console.print(f"job {job} was asked to save a checkpoint and end", soft_wrap=True)
            try:
                found = Tail(server, job, display.say, seen=seen).wait()
                said = events_of(server.logs(job)[seen:].split("\n"))
                is_saved = is_saved or found.status == "SUCCEEDED" or any(e.status == RunStatus.STOPPED for e in said)
            except KeyboardInterrupt:
                display.console.print(f"job {job} is still saving; see: raytrain jobs list", soft_wrap=True)
                raise typer.Exit(1) from None
        display.close()
    display.console.print(f"job {job} has ended: {found.status}", soft_wrap=True)
    if not is_saved:
        display.console.print(
            f"it did not report a save, so its newest checkpoint is older. Its output: raytrain jobs logs {job}",
            style="red",
            soft_wrap=True,
        )
        raise typer.Exit(1)


def _follow(server: "JobServer", job_id: str) -> None:
    """Show a job until it ends or the user detaches. Exits with the run's exit code."""
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
                    f"job {job_id} continues on the cluster. To follow it: raytrain jobs attach {job_id}; to stop it: "
                    f"raytrain jobs stop {job_id}",
                    soft_wrap=True,
                )
                raise typer.Exit(1) from None  # the run has not finished
    print_end(display.console, job)
    raise typer.Exit(job.exit_code)


def _ask_to_stop(server: "JobServer", job_id: str) -> None:
    """Raises TrainingError: a ConfigError would mean that nothing was started."""
    try:
        server.stop(job_id)
    except ConfigError as error:
        raise TrainingError(f"job {job_id} could not be asked to stop, and continues: {error}") from None


def _wait(tail: Any, display: Any) -> "Job":
    with display:
        job = tail.wait()
        display.close()
    return job
