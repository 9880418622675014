"""The files that a source's paths stand for. No Ray, no torch."""

import difflib
import glob
import os
import re
from collections.abc import Iterable
from urllib.parse import unquote

import pyarrow.fs as pafs

from raytrain.config import SourceFormat
from raytrain.config.data import FilesConfig
from raytrain.data.readers.base import Reading, SourceFile, first_line
from raytrain.errors import DataError, counted
from raytrain.storage import filesystem_of

ENDINGS = {
    ".parquet": SourceFormat.PARQUET,
    ".jsonl": SourceFormat.JSONL,
    ".ndjson": SourceFormat.JSONL,
    ".json": SourceFormat.JSON,
    ".csv": SourceFormat.CSV,
    ".tsv": SourceFormat.TSV,
    ".txt": SourceFormat.TXT,
    ".conll": SourceFormat.CONLL,
    ".conllu": SourceFormat.CONLLU,
}
TEXT_FORMATS = tuple(format for format in SourceFormat if format not in (SourceFormat.AUTO, SourceFormat.PARQUET))
USED_BY = {
    "delimiter": (SourceFormat.CSV,),
    "encoding": TEXT_FORMATS,
    "word_column": (SourceFormat.CONLL,),
    "tag_column": (SourceFormat.CONLL,),
}
"""Option of a source -> the formats that it is for."""


def list_files(source: FilesConfig, option: str) -> list[SourceFile]:
    """The files of a source, sorted by path within each path that is given.

    Args:
        option: Dotted option of the source, such as data.train, for messages.

    Raises:
        DataError: A path matches nothing, can't be read, or has an ending that does not tell the format; or an option
        is not for any of the files.
    """
    paths = [source.path] if isinstance(source.path, str) else source.path or []
    reading = Reading(source.delimiter, source.encoding, source.word_column, source.tag_column)
    files = [_file(found, source.format, option, reading) for path in paths for found in _expand(path, source, option)]
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
    filesystem, inner = filesystem_of(file.path)
    return os.path.realpath(inner) if isinstance(filesystem, pafs.LocalFileSystem) else file.path


def _expand(path: str, source: FilesConfig, option: str) -> list[str]:
    """The paths or URIs of the files that a path, folder or glob stands for."""
    if "://" not in path:
        path = os.path.expanduser(path)
    try:
        return _expand_readable(path, source.format, option)
    except PermissionError:
        raise DataError(f"{option}.path {path!r}: no permission to read it") from None
    except (OSError, ValueError) as error:  # an unknown scheme, no credentials, no such bucket
        raise DataError(f"{option}.path {path!r} can't be opened: {first_line(error)}") from None


def _expand_readable(path: str, format: SourceFormat, option: str) -> list[str]:
    if "://" in path and "*" in path:
        matches = _glob_uri(path)
    elif "://" not in path and glob.has_magic(path) and not os.path.exists(path):
        matches = sorted(match for match in glob.glob(path, recursive=True) if os.path.isfile(match))
    else:
        return _expand_plain(path, format, option)
    visible = [match for match in matches if not _is_hidden(match, path)]
    if not visible:
        what = f" but {counted(len(matches), 'file')} whose path has a part that begins with . or _" if matches else ""
        raise DataError(f"{option}.path {path!r} matches no file{what}{_looked_for(path)}")
    return visible


def _expand_plain(path: str, format: SourceFormat, option: str) -> list[str]:
    """A file, or the files below a folder."""
    filesystem, inner = filesystem_of(path)
    info = filesystem.get_file_info(inner)
    if info.type == pafs.FileType.NotFound and "://" in path and unquote(path) != path:
        return _expand_plain(unquote(path), format, option)  # the percent-encoded spelling of the same URI
    if info.type == pafs.FileType.NotFound:
        raise DataError(f"{option}.path {path!r}: no such file or folder{_looked_for(path)}{_nearest_file(path)}")
    if info.type == pafs.FileType.File:
        return [path]
    scheme = f"{path.split('://')[0]}://" if "://" in path else ""
    below = len(inner.rstrip("/"))
    names = [name for name in _names_below(filesystem, inner) if not _is_hidden(name[below:], "/*")]
    known = names if format != SourceFormat.AUTO else _with_known_ending(names)
    if not known:
        raise DataError(f"{option}.path {path!r}: this folder has no file with a known ending ({', '.join(ENDINGS)})")
    return [f"{scheme}{name}" for name in known]


def _with_known_ending(names: list[str]) -> list[str]:
    """Those whose ending tells the format. Beside files of other formats, a .json file describes them, as
    dataset_info.json does; it holds rows where there is nothing else."""
    known = [name for name in names if _ending(name) in ENDINGS]
    return [name for name in known if _ending(name) != ".json"] or known


def _names_below(filesystem: pafs.FileSystem, folder: str) -> list[str]:
    """Files below a folder, sorted."""
    infos = filesystem.get_file_info(pafs.FileSelector(folder, recursive=True, allow_not_found=True))
    return sorted(info.path for info in infos if info.type == pafs.FileType.File)


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


def _glob_uri(path: str) -> list[str]:
    """URIs that match a pattern with * and **. Only * is special: in a URI, ? starts the query."""
    scheme = path.split("://")[0]
    filesystem, pattern = filesystem_of(path)
    folder = pattern[: pattern.index("*")].rpartition("/")[0]
    special = {"**/": "(.*/)?", "**": ".*", "*": "[^/]*"}
    parts = re.split(r"(\*\*/|\*\*|\*)", pattern)
    matcher = re.compile("".join(special.get(part) or re.escape(part) for part in parts))
    return [f"{scheme}://{name}" for name in _names_below(filesystem, folder) if matcher.fullmatch(name)]


def _file(path: str, format: SourceFormat, option: str, reading: Reading) -> SourceFile:
    if format == SourceFormat.AUTO:
        if _ending(path) not in ENDINGS:
            raise DataError(
                f"{option}.path {path!r}: unknown ending (known: {', '.join(ENDINGS)}); set {option}.format to "
                f"one of {', '.join(f.value for f in SourceFormat if f != SourceFormat.AUTO)}"
            )
        format = ENDINGS[_ending(path)]
    filesystem, inner = filesystem_of(path)
    info = filesystem.get_file_info(inner)
    modified_at = info.mtime.isoformat() if info.mtime else ""
    full = path if "://" in path else os.path.abspath(path)
    return SourceFile(full, format, info.size or 0, modified_at, reading)


def _ending(path: str) -> str:
    return os.path.splitext(path.removesuffix(".gz"))[1].lower()


def _looked_for(path: str) -> str:
    """The absolute form of a relative path, for messages: it is relative to the command's working directory."""
    return "" if "://" in path or os.path.isabs(path) else f" (looked for {os.path.abspath(path)})"


def _nearest_file(path: str) -> str:
    folder = os.path.dirname(path) or "."
    if "://" in path or not os.path.isdir(folder):
        return ""
    close = difflib.get_close_matches(os.path.basename(path), os.listdir(folder), 1)
    return f"; did you mean {os.path.join(os.path.dirname(path), close[0])}?" if close else ""
