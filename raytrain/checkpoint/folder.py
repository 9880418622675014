"""Replacing a folder so that a crash at any moment leaves the old one or the new one, complete."""

import contextlib
import json
import os
import shutil

from pydantic import TypeAdapter, ValidationError

from raytrain.checkpoint.manifest import FileName, sync
from raytrain.storage import Storage

_NAMES = TypeAdapter(list[FileName])


def replace_folder(run: Storage, name: str, local: str) -> None:
    """Replace the folder `name` by the files of a local folder.

    The new folder is first written beside the old one. On a file system it is then renamed into its place, and the old
    one is deleted last. An object store has no rename: a marker with the names of the files says that the new folder is
    complete, then the files are written again in their place, where a reader may see a mixture for that time.
    `recover_folder` completes what a crash has interrupted. Raises OSError.
    """
    recover_folder(run, name)
    names = sorted(os.listdir(local))
    new = f"{name}.new"
    run.delete(new)
    try:
        for file in names:
            _upload(run, os.path.join(local, file), f"{new}/{file}")
    except OSError:
        with contextlib.suppress(OSError):
            run.delete(new)  # it may be what fills the disk
        raise
    if run.local_path() is not None:
        for file in ("", *names):  # so that a power failure can't leave a folder of empty files in its place
            sync(run, f"{new}/{file}" if file else new)
        if run.exists(name):
            run.move(name, f"{name}.old")
        run.move(new, name)
        sync(run)
        run.delete(f"{name}.old")
        return
    run.write_bytes(_marker(name), json.dumps(names).encode())
    for file in names:
        _upload(run, os.path.join(local, file), f"{name}/{file}")
    _conclude(run, name, names)


def recover_folder(run: Storage, name: str) -> None:
    """Complete the replacement of a folder that a crash has interrupted. Raises OSError."""
    if run.local_path() is not None:
        if run.exists(f"{name}.old"):
            if run.exists(name):
                run.delete(f"{name}.old")
            else:
                run.move(f"{name}.old", name)
        return
    try:
        names = _NAMES.validate_json(run.read_bytes(_marker(name)))
    except (FileNotFoundError, ValidationError):  # the new one is not complete, so the old one was not touched
        return
    run.copy(f"{name}.new", name)
    _conclude(run, name, names)


def delete_folder(run: Storage, name: str) -> None:
    """Delete a folder, and what a crash has left of its replacement: `recover_folder` would bring it back."""
    for leftover in (_marker(name), f"{name}.old", f"{name}.new", name):
        run.delete(leftover)


def _conclude(run: Storage, name: str, names: list[str]) -> None:
    """On an object store: the new files are in their place."""
    for file in run.list_names(name):
        if file not in names:
            run.delete(f"{name}/{file}")
    run.delete(_marker(name))
    run.delete(f"{name}.new")


def _marker(name: str) -> str:
    return f"{name}.complete.json"


def _upload(run: Storage, source: str, target: str) -> None:
    with open(source, "rb") as file, run.open_output(target) as output:
        shutil.copyfileobj(file, output, 1 << 20)
