"""The end of the terminal, of which SIGHUP goes to the command and to everything that it has started."""

import contextlib
import os
import pty
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import ENV, committed_steps, steps_done, summary, tiny_run, wait_until, write_config

COMMAND = [sys.executable, "-m", "raytrain", "train"]


@contextlib.contextmanager
def in_a_terminal(command: list[str], folder: Path) -> Iterator[tuple[int, int]]:
    """(process id, our end of the terminal) of a command that has a terminal of its own."""
    pid, ours = pty.fork()
    if pid == 0:
        os.chdir(folder)  # for nohup.out
        os.execvpe(command[0], command, ENV)
    try:
        yield pid, ours
    finally:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("prefix", [[], ["nohup"]], ids=["", "nohup"])
def test_the_end_of_the_terminal_saves_and_stops_the_run(tmp_path: Path, prefix: list[str]) -> None:
    """A command given with nohup continues."""
    config = tiny_run(tmp_path, "a", "training.epochs=100", "checkpoint={save_every_steps: 100000}")
    run = tmp_path / "runs" / "a"
    with in_a_terminal([*prefix, *COMMAND, write_config(config, tmp_path)], tmp_path) as (pid, ours):
        os.set_blocking(ours, False)

        def has_trained() -> bool:
            with contextlib.suppress(OSError):  # nothing there, or nohup has taken the output elsewhere
                os.read(ours, 1 << 16)
            return steps_done(run) > 2

        wait_until(has_trained, "some steps")
        os.close(ours)
        if prefix:
            before = steps_done(run)
            wait_until(lambda: steps_done(run) > before + 20, "the run to continue")
            assert os.waitpid(pid, os.WNOHANG) == (0, 0)
            kill_tree(pid)
            return
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
    found = summary(run)
    assert (found["status"], found["stop_reason"]) == ("stopped", "requested")
    assert committed_steps(run)[-1] == found["step"] == steps_done(run)


def kill_tree(pid: int) -> None:
    import psutil

    for process in [*psutil.Process(pid).children(recursive=True), psutil.Process(pid)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    os.waitpid(pid, 0)
