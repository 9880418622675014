"""Folders that `datasets.Dataset.save_to_disk` has written. No Ray, no torch, and no `datasets`.

Such a folder has .arrow files and `state.json`, which says which of them are the data set, in which order: the results
of `map` are kept beside them. A DatasetDict is a folder of such folders, one for each split.
"""

import json
from collections.abc import Sequence
from typing import Any

import pyarrow.fs as pafs

STATE, OF_SPLITS = "state.json", "dataset_dict.json"


def without_left_overs(filesystem: pafs.FileSystem, infos: Sequence[pafs.FileInfo]) -> list[pafs.FileInfo]:
    """Of the files below a folder those that are not the cache of a saved data set; its own in their order.

    Raises ValueError when splits would be mixed, or a file that belongs to a data set is missing.
    """
    by_path = {info.path: info for info in infos}
    for path in by_path:
        folder, _, name = path.rpartition("/")
        if name == OF_SPLITS:
            splits = list(map(str, _read(filesystem, path).get("splits") or []))
            raise ValueError(
                f"{folder} is a saved DatasetDict with the splits {', '.join(splits)}: name the folder of one, "
                f"{folder}/{splits[0] if splits else '...'}"
            )
    for path in [path for path in by_path if path.rpartition("/")[2] == STATE]:
        folder = path.rpartition("/")[0]
        files = _read(filesystem, path).get("_data_files")
        if not isinstance(files, list):  # another program's state
            continue
        own = [f"{folder}/{file.get('filename')}" for file in files if isinstance(file, dict)]
        if missing := [one for one in own if one not in by_path]:
            raise ValueError(f"{path} names {missing[0]}, which is not there: the saved data set is not complete")
        found = [by_path.pop(one) for one in own]
        others = {p: info for p, info in by_path.items() if p.rpartition("/")[0] != folder or not p.endswith(".arrow")}
        by_path = {**others, **{info.path: info for info in found}}
    return list(by_path.values())


def _read(filesystem: pafs.FileSystem, path: str) -> dict[str, Any]:
    """A small JSON file. Raises ValueError."""
    with filesystem.open_input_stream(path) as opened:
        found = json.loads(opened.read())
    return found if isinstance(found, dict) else {}
