"""A live display in a notebook: one output that is replaced, without widgets."""

import contextvars
import io
import threading
from collections.abc import Callable

from rich.console import Console, RenderableType

STYLE = "white-space:pre;overflow-x:auto;line-height:normal;font-family:Menlo,'DejaVu Sans Mono',consolas,monospace"
_CODE = f'<pre style="{STYLE}">{{code}}</pre>'


class NotebookLive:
    """Shows what `render` returns, in the cell that runs now, until it is stopped."""

    def __init__(self, render: Callable[[], RenderableType], width: int, every_s: float):
        from IPython.display import HTML, display

        self._render, self._width, self._every_s, self._html = render, width, every_s, HTML
        self._handle = display(HTML(""), display_id=True)
        self._is_stopped = threading.Event()
        # The kernel knows by the context which cell a thread's output belongs to.
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._keep_up,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Remove the output."""
        self._is_stopped.set()
        self._thread.join()
        self._handle.update(self._html(""))

    def _keep_up(self) -> None:
        shown = ""
        while not self._is_stopped.wait(self._every_s):
            if (now := html_of(self._render(), self._width)) != shown:
                self._handle.update(self._html(now))
                shown = now


def html_of(renderable: RenderableType, width: int) -> str:
    """What a terminal of this width would show, as HTML."""
    console = Console(
        file=io.StringIO(), record=True, force_jupyter=False, force_terminal=True, width=width, markup=False
    )
    console.print(renderable)
    return console.export_html(inline_styles=True, code_format=_CODE)
