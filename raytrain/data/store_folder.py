"""The folders of prepared stores in the cache: found, verified, put in place and removed by several commands at once.

On a file system, a store is put in place and removed by a rename. A command removes only what it has looked at itself:
another one may have put a new store in its place since.
"""

import errno
import functools
import logging
import os
import uuid

from raytrain.data.prepared import MANIFEST_NAME, DamagedError, PreparedStore
from raytrain.retries import retrying
from raytrain.storage import Storage

# (root, content) of the stores that this process has found undamaged.
_verified_stores: set[tuple[str, str]] = set()

logger = logging.getLogger(__name__)


def verified(cache: Storage, name: str) -> PreparedStore | None:
    """The store, if there is one and its files are what was written. Raises OSError when storage fails for two
    minutes."""
    reading = f"reading {cache.path_of(name)}"
    if not retrying(lambda: cache.exists(f"{name}/{MANIFEST_NAME}"), reading):
        return None
    try:
        store = PreparedStore(cache.at(name).root)
        if (key := (store.root, store.manifest.content)) not in _verified_stores:
            retrying(store.verify, reading)
            _verified_stores.add(key)
    except DamagedError as error:
        logger.warning("%s is damaged: the data has to be prepared again", error.path)
        return None
    return store


def verified_or_removed(cache: Storage, name: str) -> PreparedStore | None:
    """The store; None if there is none any more, because it was damaged and has been removed."""
    path = cache.path_of(name)
    while (seen := retrying(lambda: cache.stamp(f"{name}/{MANIFEST_NAME}"), f"reading {path}")) is not None:
        if (store := verified(cache, name)) is not None:
            return store
        retrying(functools.partial(_remove, cache, name, seen), f"removing {path}")
    return None


def put_in_place(cache: Storage, attempt: str, name: str) -> None:
    """On a file system: rename an attempt to its final name. If another command was first, its store is equivalent and
    stays.

    A plain rename, which refuses to replace a folder: another process may be reading the existing one.
    """
    source, target = cache.local_path(attempt), cache.local_path(name)
    assert source is not None and target is not None
    while True:
        try:
            os.rename(source, target)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            if cache.exists(f"{name}/{MANIFEST_NAME}"):
                cache.delete(attempt)
                return
            _remove(cache, name, None)  # partly deleted: without a manifest it is not a store


def _remove(cache: Storage, name: str, seen: tuple[int, ...] | None) -> None:
    """Remove a folder whose manifest has the stamp `seen`; None: which has no manifest. Any other one stays."""
    manifest = f"{name}/{MANIFEST_NAME}"
    if cache.stamp(manifest) != seen:
        return
    if cache.local_path() is None:
        cache.delete(manifest)
        return
    aside = f"{name}.{uuid.uuid4().hex[:8]}.tmp"  # renamed first, since deleting takes longer
    source, target = cache.local_path(name), cache.local_path(aside)
    assert source is not None and target is not None
    try:
        os.rename(source, target)
    except FileNotFoundError:  # another command was faster
        return
    if cache.stamp(f"{aside}/{MANIFEST_NAME}") != seen:  # replaced in the moment before the rename
        try:
            os.rename(target, source)
            return
        except OSError:  # by now there is another one in its place, which is equivalent
            pass
    cache.delete(aside)
