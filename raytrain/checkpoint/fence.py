"""Which worker group may write to a run's folder: the one with the highest fencing token.

    lease/00000007    created exclusively, with the next number, when a command begins and before each worker group;
                      renewed while the driver lives

A process that was suspended, or cut off from the others, does not know that a successor has started. So the owner's
right to write is not something it remembers: each change of the run's folder first compares the process's token with
the highest one in storage (`Storage.guarded`), and checkpoints carry the token in their folder's name, so that a write
which was already on its way can't touch the successor's files. The term is Kleppmann's, "How to do distributed locking"
(2016).
"""

import re

from raytrain.errors import TakenOverError
from raytrain.storage import Storage

LEASE = "lease"


class Fence:
    """The right of one worker group to write to a run."""

    def __init__(self, run: Storage, token: int):
        """`run`: its folder, without a guard."""
        self._run, self._token = run, token

    def check(self) -> None:
        """Raises TakenOverError when a later group has started, and OSError when that can't be read."""
        if newest_token(self._run) != self._token:
            raise TakenOverError(taken_over(self._run))


def newest_token(run: Storage) -> int:
    """The highest fencing token of a run; 0 when it never had one, or its folder was deleted."""
    return holders(run)[0]


def holders(run: Storage) -> tuple[int, list[str]]:
    """The highest token and its files: one, or more on an object store while several processes want it."""
    tokens = {f"{LEASE}/{name}": _token_of(name) for name in run.list_names(LEASE)}
    newest = max(tokens.values(), default=0)
    return newest, [name for name, token in tokens.items() if token == newest > 0]


def _token_of(name: str) -> int:
    """The token of a file in the lease's folder; 0 for one that is being written."""
    match = re.fullmatch(r"(\d{8,})(-[0-9a-f]+)?", name)
    return int(match[1]) if match else 0


def lease_name(token: int) -> str:
    """Name of the file of a token, in the run's folder."""
    return f"{LEASE}/{token:08d}"


def taken_over(run: Storage) -> str:
    """The message for a process that has lost its run."""
    return (
        f"another command has taken over {run.path_of()}, or its folder was deleted: this one ends and writes nothing "
        "more to it"
    )
