"""The files that a source's paths stand for. No Ray, no torch."""

import difflib
import glob
import os
import re
from collections.abc import Iterable
from dataclasses import replace
from urllib.parse import unquote

import pyarrow.fs as pafs

from raytrain.config import SourceFormat, TrainConfig
from raytrain.config.data import FilesConfig
from raytrain.data.parallel import in_threads
from raytrain.data.readers.base import TABLE_FORMATS, Reading, SourceFile, first_line
from raytrain.data.readers.images import folder_of_images, is_image
from raytrain.data.readers.sql import is_database
from raytrain.data.readers.text import COMPRESSIONS
from raytrain.data.saved_datasets import without_left_overs
from raytrain.errors import DataError, counted
from raytrain.models.images import ENDINGS as IMAGE_ENDINGS
from raytrain.storage import filesystem_of

ENDINGS = {
    ".parquet": SourceFormat.PARQUET,
    ".arrow": SourceFormat.ARROW,
    ".feather": SourceFormat.ARROW,
    ".jsonl": SourceFormat.JSONL,
    ".ndjson": SourceFormat.JSONL,
    ".json": SourceFormat.JSON,
    ".csv": SourceFormat.CSV,
    ".tsv": SourceFormat.TSV,
    ".txt": SourceFormat.TXT,
    ".conll": SourceFormat.CONLL,
    ".conllu": SourceFormat.CONLLU,
}
DATABASE_ENDINGS = (".db", ".sqlite", ".sqlite3")
NOT_TEXT = (SourceFormat.AUTO, SourceFormat.SQL, *TABLE_FORMATS)
TEXT_FORMATS = tuple(format for format in SourceFormat if format not in NOT_TEXT)
USED_BY = {
    "delimiter": (SourceFormat.CSV,),
    "encoding": TEXT_FORMATS,
    "word_column": (SourceFormat.CONLL,),
    "tag_column": (SourceFormat.CONLL,),
    "query": (SourceFormat.SQL,),
    "order_by": (SourceFormat.SQL,),
}
"""Option of a source -> the formats that it is for."""

_Listed = tuple[str, pafs.FileInfo]
"""The path or URI of a file, and what its file system says of it."""


def list_split(source: FilesConfig, option: str) -> list[SourceFile]:
    """The files of a split: of the sources of data.train.sources one after the other. Raises DataError like
    `list_files`."""
    if not isinstance(source, TrainConfig) or source.sources is None:
        return list_files(source, option)
    return [
        replace(file, source=place)
        for place, one in enumerate(source.sources)
        for file in list_files(one, f"{option}.sources.{place}")
    ]


def list_files(source: FilesConfig, option: str) -> list[SourceFile]:
    """The files of a source, sorted by path within each path that is given.

    Args:
        option: Dotted option of the source, such as data.train, for messages.

    Raises:
        DataError: A path matches nothing, can't be read, or has an ending that does not tell the format; or an option
        is not for any of the files.
    """
    paths = source.paths
    order_by = (source.order_by,) if isinstance(source.order_by, str) else tuple(source.order_by or ())
    reading = Reading(source.delimiter, source.encoding, source.word_column, source.tag_column, source.query, order_by)
    found = in_threads(lambda path: _files_of(path, source, option, reading), paths)
    files = [file for of_path in found for file in of_path]
    if not files:
        raise DataError(f"{option}.path is empty: give a file, a folder, a glob, or a list of these")
    formats = list(dict.fromkeys(file.format for file in files))
    for name, users in USED_BY.items():
        if getattr(source, name) is not None and not set(formats) & set(users):
            raise DataError(
                f"{option}.{name} has no effect: it is for {', '.join(users)} files, and {files[0].path} is "
                f"{formats[0]}; leave it out, or set {option}.format"
            )
    return files


def real_path(file: SourceFile) -> str:
    """Where a file is, whatever path or link names it."""
    if file.format == SourceFormat.SQL:
        return f"{file.path.rpartition('#')[0]} {file.reading.query}"  # the path names the split too
    if "://" in file.path and not file.path.startswith("file://"):
        return file.path
    filesystem, inner = filesystem_of(file.path)
    return os.path.realpath(inner) if isinstance(filesystem, pafs.LocalFileSystem) else file.path


def _files_of(path: str, source: FilesConfig, option: str, reading: Reading) -> list[SourceFile]:
    """The files that a path stands for. Raises DataError."""
    if not is_database(path):
        return [_file(one, source.format, option, reading) for one in _expand(path, source, option)]
    if source.format not in (SourceFormat.AUTO, SourceFormat.SQL):
        raise DataError(f"{option}.format {source.format}: {path} is a database; leave the format out")
    for name in ("query", "order_by"):
        if not getattr(source, name):
            raise DataError(
                f"{option}.{name} is missing: {path} is a database. Give {option}.query, a SELECT whose rows are the "
                f"data, and {option}.order_by, a column whose values order and tell apart all rows, such as the "
                "primary key"
            )
    return [SourceFile(f"{path}#{option.removeprefix('data.')}", SourceFormat.SQL, 0, "", reading)]


def _expand(path: str, source: FilesConfig, option: str) -> list[_Listed]:
    """The files that a path, folder or glob stands for."""
    if "://" not in path:
        path = os.path.expanduser(path)
    try:
        return _expand_readable(path, source.format, option)
    except PermissionError:
        raise DataError(f"{option}.path {path!r}: no permission to read it") from None
    except (OSError, ValueError) as error:  # an unknown scheme, no credentials, no such bucket
        raise DataError(f"{option}.path {path!r} can't be opened: {first_line(error)}") from None


def _expand_readable(path: str, format: SourceFormat, option: str) -> list[_Listed]:
    if "://" in path and "*" in path:
        matches = _glob_uri(path)
    elif "://" not in path and glob.has_magic(path) and not os.path.exists(path):
        found = sorted(match for match in glob.glob(path, recursive=True) if os.path.isfile(match))
        infos = pafs.LocalFileSystem().get_file_info([os.path.abspath(match) for match in found])
        matches = list(zip(found, infos, strict=True))
    else:
        return _expand_plain(path, format, option)
    visible = [match for match in matches if not _is_hidden(match[0], path)]
    if not visible:
        what = f" but {counted(len(matches), 'file')} whose path has a part that begins with . or _" if matches else ""
        raise DataError(f"{option}.path {path!r} matches no file{what}{_looked_for(path)}")
    return visible


def _expand_plain(path: str, format: SourceFormat, option: str) -> list[_Listed]:
    """A file, or the files below a folder."""
    filesystem, inner = filesystem_of(path)
    info = filesystem.get_file_info(inner)
    if info.type == pafs.FileType.NotFound and "://" in path and unquote(path) != path:
        return _expand_plain(unquote(path), format, option)  # the percent-encoded spelling of the same URI
    if info.type == pafs.FileType.NotFound:
        raise DataError(f"{option}.path {path!r}: no such file or folder{_looked_for(path)}{_nearest_file(path)}")
    if info.type == pafs.FileType.File:
        return [(path, info)]
    scheme = f"{path.split('://')[0]}://" if "://" in path else ""
    below = len(inner.rstrip("/"))
    visible = [info for info in _files_below(filesystem, inner) if not _is_hidden(info.path[below:], "/*")]
    try:
        visible = without_left_overs(filesystem, visible)
    except ValueError as error:
        raise DataError(f"{option}.path {path!r}: {error}") from None
    known = visible if format != SourceFormat.AUTO else _with_known_ending(visible)
    has_images = any(is_image(info.path) for info in visible)
    if format == SourceFormat.IMAGES or (not known and has_images):
        if not has_images:
            raise DataError(f"{option}.path {path!r}: this folder has no image ({', '.join(IMAGE_ENDINGS)})")
        return [(f"{scheme}{inner}", info)]
    if not known:
        raise DataError(f"{option}.path {path!r}: this folder has no file with a known ending ({', '.join(ENDINGS)})")
    return [(f"{scheme}{info.path}", info) for info in known]


def _with_known_ending(infos: list[pafs.FileInfo]) -> list[pafs.FileInfo]:
    """Those whose ending tells the format. Beside files of other formats, a .json file describes them, as
    dataset_info.json does; it holds rows where there is nothing else."""
    known = [info for info in infos if _ending(info.path) in ENDINGS]
    return [info for info in known if _ending(info.path) != ".json"] or known


def _files_below(filesystem: pafs.FileSystem, folder: str) -> list[pafs.FileInfo]:
    """Files below a folder, sorted by path, with what the listing says of them."""
    infos = filesystem.get_file_info(pafs.FileSelector(folder, recursive=True, allow_not_found=True))
    return sorted((info for info in infos if info.type == pafs.FileType.File), key=lambda info: info.path)


def _is_hidden(path: str, pattern: str) -> bool:
    """Whether a part of a path that the pattern's wildcards stand for begins with . or _: programs name so what they
    write for themselves (_SUCCESS, _temporary, .ipynb_checkpoints). A pattern that names such a part asks for it."""
    fixed = len(list(_fixed_parts(pattern)))
    asked = {part[0] for part in pattern.split("/")[fixed:] if part.startswith((".", "_"))}
    return any(part.startswith((".", "_")) and part[0] not in asked for part in path.split("/")[fixed:])


def _fixed_parts(pattern: str) -> Iterable[str]:
    """The parts before the first one with a wildcard."""
    for part in pattern.split("/"):
        if glob.has_magic(part):
            return
        yield part


def _glob_uri(path: str) -> list[_Listed]:
    """The files whose URIs match a pattern with * and **. Only * is special: in a URI, ? starts the query."""
    scheme = path.split("://")[0]
    filesystem, pattern = filesystem_of(path)
    folder = pattern[: pattern.index("*")].rpartition("/")[0]
    special = {"**/": "(.*/)?", "**": ".*", "*": "[^/]*"}
    parts = re.split(r"(\*\*/|\*\*|\*)", pattern)
    matcher = re.compile("".join(special.get(part) or re.escape(part) for part in parts))
    infos = _files_below(filesystem, folder)
    return [(f"{scheme}://{info.path}", info) for info in infos if matcher.fullmatch(info.path)]


def _file(listed: _Listed, format: SourceFormat, option: str, reading: Reading) -> SourceFile:
    path, info = listed
    if format == SourceFormat.SQL or _ending(path) in DATABASE_ENDINGS:
        raise DataError(
            f"{option}.path {path!r}: a database is named by a URI: sqlite:///{path}, or postgresql://USER@HOST/NAME. "
            f"Set {option}.query and {option}.order_by, too"
        )
    if format == SourceFormat.AUTO and (info.type == pafs.FileType.Directory or is_image(path)):
        format = SourceFormat.IMAGES
    if format == SourceFormat.AUTO:
        if _ending(path) not in ENDINGS:
            raise DataError(
                f"{option}.path {path!r}: unknown ending (known: {', '.join(ENDINGS)}); set {option}.format to "
                f"one of {', '.join(f.value for f in SourceFormat if f != SourceFormat.AUTO)}"
            )
        format = ENDINGS[_ending(path)]
    full = path if "://" in path else os.path.abspath(path)
    if format == SourceFormat.IMAGES:
        return folder_of_images(full, reading)
    modified_at = info.mtime.isoformat() if info.mtime else ""
    return SourceFile(full, format, info.size or 0, modified_at, reading)


def _ending(path: str) -> str:
    bare, ending = os.path.splitext(path.lower())
    return os.path.splitext(bare)[1] if ending in COMPRESSIONS else ending


def _looked_for(path: str) -> str:
    """The absolute form of a relative path, for messages: it is relative to the command's working directory."""
    return "" if "://" in path or os.path.isabs(path) else f" (looked for {os.path.abspath(path)})"


def _nearest_file(path: str) -> str:
    folder = os.path.dirname(path) or "."
    if "://" in path or not os.path.isdir(folder):
        return ""
    close = difflib.get_close_matches(os.path.basename(path), os.listdir(folder), 1)
    return f"; did you mean {os.path.join(os.path.dirname(path), close[0])}?" if close else ""
