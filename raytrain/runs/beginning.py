"""The first moments of a command that trains a run, in which it may still be refused: bad rows, say, are only found
when the data is prepared."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from raytrain.checkpoint.fence import LEASE
from raytrain.errors import TakenOverError
from raytrain.retries import retrying
from raytrain.runs.lease import Lease
from raytrain.storage import Storage

BEGUN = "config.yaml"  # written once the data is prepared and the run can start
PREPARED = "_prepared"  # the default folder of prepared data, next to the runs


@contextmanager
def lease_of(run: Storage, say: Callable[[str], None], owner: str | None = None) -> Iterator[Lease]:
    """Context in which this command alone trains the run; see `Lease`. A command that is refused before the run has
    begun removes the folders that it made, so that nothing is left to mistake for a run. The arguments are those of
    `Lease`."""
    is_new = not retrying(run.exists, f"reading {run.path_of()}")
    new_folders = [] if run.local_path() is None else _missing(run)
    try:
        with Lease(run, say, owner) as lease:
            try:
                yield lease
            except BaseException:
                if is_new and not run.exists(BEGUN):
                    _remove(run.guarded(lease.check_now))
                raise
    except BaseException:
        for folder in new_folders:
            with suppress(OSError):  # not empty: another run's, or prepared data
                os.rmdir(folder)
        raise


def _remove(run: Storage) -> None:
    """Remove what this command has made, such as Ray Train's folder; nothing if it is another command's by now."""
    with suppress(TakenOverError, OSError):  # why the command has ended must not be lost
        for name in sorted(run.list_names(), key=lambda name: name == LEASE):  # which keeps others out until then
            run.delete(name)


def _missing(run: Storage) -> list[str]:
    """The folders that a command makes before the run has begun, innermost first."""
    parent, _ = run.place()
    return [folder for folder in (run.path_of(), f"{parent}/{PREPARED}", parent) if not os.path.exists(folder)]
