"""A conversation with a language model in the terminal, or on a pipe."""

import io
import sys
from dataclasses import replace
from typing import Any

from raytrain.errors import ConfigError
from raytrain.inference.completing import Asked, complete
from raytrain.inference.predictor import Predictor

HELP = "/reset begins a new conversation, /quit or Ctrl-D ends, Ctrl-C ends an answer"


class Conversation:
    """Reads questions and prints answers as they come."""

    def __init__(self, predictor: Predictor, asked: Asked, system: str | None):
        """`asked`: how answers are made. Raises ConfigError for a system prompt of a model that does not chat."""
        self._predictor, self._asked = predictor, asked
        self._keeps_turns = getattr(predictor.task, "answers_turns", False)
        if system is not None and not self._keeps_turns:
            raise ConfigError("--system is for a model that chats; this one continues texts: leave it out")
        self._first = [] if system is None else [{"role": "system", "content": system}]
        self._turns: list[dict[str, Any]] = []

    def run(self) -> None:
        """Until /quit, or the end of the input."""
        for stream in (sys.stdin, sys.stdout):  # a byte of another encoding, and a character that it has not
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")
        is_terminal = sys.stdin.isatty()
        if is_terminal:
            print(f"{self._predictor.card.name} of step {self._predictor.card.step:,}. {HELP}")
        while True:
            try:
                typed = input("> " if is_terminal else "")
            except EOFError:
                if is_terminal:
                    print()
                return
            except KeyboardInterrupt:
                print()
                if is_terminal:
                    continue
                return
            if typed.strip() == "/quit":
                return
            if typed.strip() == "/reset":
                self._turns = []
            elif typed.strip().startswith("/"):
                print(HELP)
            elif typed.strip():
                self._answer(typed)

    def _answer(self, typed: str) -> None:
        """Print the answer, and keep both turns. An answer that was ended stays as far as it came."""
        turns = [*self._turns, {"role": "user", "content": typed}]
        prompt = [*self._first, *turns] if self._keeps_turns else typed
        said = ""
        try:
            for piece in complete(self._predictor, replace(self._asked, prompt=prompt)):
                said += piece.text
                print(piece.text, end="", flush=True)
        except KeyboardInterrupt:
            pass
        except ConfigError as error:
            print(f"{error}. /reset begins a new conversation", end="", file=sys.stderr)
            return
        finally:
            print(flush=True)
        self._turns = [*turns, {"role": "assistant", "content": said}] if said.strip() else self._turns
