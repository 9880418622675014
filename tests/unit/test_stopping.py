"""Ctrl-C and SIGTERM: acknowledged, and no command ends without a word. No Ray."""

import io
import os
import signal
import sys
import textwrap
from pathlib import Path
from typing import Any, TextIO

import pytest
from rich.console import Console
from running import tiny_run, write_config
from typer.testing import CliRunner

from raytrain.cli.main import app
from raytrain.runs import run as driver
from raytrain.runs.signals import StopSignals
from raytrain.terminal.output import LastingOutput
from raytrain.terminal.run import RunDisplay
from raytrain.terminal.sweep import SweepDisplay


def shown(is_terminal: bool) -> tuple[RunDisplay, io.StringIO]:
    out = io.StringIO()
    return RunDisplay(Console(file=out, force_terminal=is_terminal, width=40, highlight=False)), out


def test_a_signal_is_acknowledged_once_and_the_second_ends() -> None:
    asked: list[str] = []
    with StopSignals() as signals:
        signals.catch()
        signals.acknowledge(lambda: asked.append("too early"))
        os.kill(os.getpid(), signal.SIGINT)
        signals.acknowledge(lambda: asked.append("told"))
        signals.acknowledge(lambda: asked.append("told twice"))
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    assert asked == ["told"]


def test_the_end_of_the_terminal_is_a_request_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both the shell and the kernel send SIGHUP: the second one must not end the command before it has saved."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with StopSignals() as signals:
            signals.catch()
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGHUP)
            assert signals.is_asked
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
        with StopSignals() as signals:
            signals.catch()
            os.kill(os.getpid(), signal.SIGHUP)
            assert not signals.is_asked
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_terminal_that_is_gone_does_not_end_the_run() -> None:
    ours, theirs = os.openpty()
    with open(theirs, "w") as terminal:
        console = Console(file=LastingOutput(terminal), force_terminal=True, width=40)  # type: ignore[arg-type]
        with RunDisplay(console) as display:
            os.close(ours)
            display.stopping()
            display.note("saved")


def test_a_signal_before_there_is_something_to_save_ends_the_command() -> None:
    with StopSignals(), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("is_terminal", [False, True])
def test_the_terminal_says_that_it_stops(is_terminal: bool) -> None:
    display, out = shown(is_terminal)
    with display:
        display.stopping()
    assert "stopping: saving a checkpoint; press Ctrl-C again to end at once" in out.getvalue()


def interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_ending_at_once_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(driver, "run_training", interrupt)
    path = write_config(tiny_run(tmp_path, "a"), tmp_path)
    ended = CliRunner().invoke(app, ["train", path])
    assert (ended.exit_code, "the same command starts it again" in ended.output) == (1, True), ended.output
    folder = tmp_path / "runs" / "a"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("name: a\n")
    ended = CliRunner().invoke(app, ["train", path])
    assert (ended.exit_code, f"raytrain resume {folder}" in ended.output) == (1, True), ended.output


def test_every_command_says_that_it_was_interrupted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(driver, "evaluate_run", interrupt)
    ended = CliRunner().invoke(app, ["eval", str(tmp_path)])
    assert (ended.exit_code, "interrupted" in ended.output) == (1, True), ended.output


def broken_pipe() -> TextIO:
    """The writing end of a pipe that nobody reads any more, as after `| head`."""
    reading, writing = os.pipe()
    os.close(reading)
    return open(writing, "w")


@pytest.mark.parametrize("make", [broken_pipe, lambda: open("/dev/full", "w")], ids=["closed pipe", "full disk"])
@pytest.mark.parametrize("display", [RunDisplay, SweepDisplay])
def test_an_output_that_is_gone_does_not_end_the_run(
    make: Any, display: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """rich itself ends the process, and no summary is written."""
    with make() as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with display() as shown:
            for _ in range(3):
                shown.phase("preparing data")
        stream.write("what is printed later")
    assert caplog.text.count("the run continues without it") == 1


def test_an_interrupt_of_a_notebooks_kernel_asks_for_a_stop() -> None:
    import threading
    import time

    import nbformat
    from nbclient import NotebookClient

    source = """
        import time
        from raytrain.runs.signals import StopSignals
        with StopSignals() as signals:
            signals.catch()
            print("ready", flush=True)
            while not signals.is_asked:
                time.sleep(0.05)
        print("asked")
    """
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(textwrap.dedent(source))])
    client = NotebookClient(notebook, timeout=60, kernel_name="python3")

    def interrupt() -> None:
        while "ready" not in str(notebook.cells[0].outputs):
            time.sleep(0.1)
        client.km.provisioner.process.send_signal(signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    client.execute()
    assert "asked" in str(notebook.cells[0].outputs)
