"""Selects the files of a working directory that are sent with a job, and packs them into an archive.

Code and small files are sent; `.git`, environments, secrets, data and model weights never are, whatever an ignore file
says. Files that may be secrets are sent if the user names them.
"""

import os
import stat
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch, fnmatchcase

from pathspec import GitIgnoreSpec

from raytrain.errors import ConfigError
from raytrain.launch.secret_files import LOOKED_AT_BYTES, doubt_about_file, is_secret_name, secret_in_file

MOST_BYTES = 100_000_000
"""Limit for all files together, before compression: the cluster's control store keeps the archive in memory."""
SHOWN = 5  # largest files listed in a refusal

IGNORE_FILES = (".gitignore", ".rayignore")
# Patterns of lower-case names, for both files and folders.
NOT_CODE = """
.git .hg .svn .venv venv node_modules __pycache__ .ipynb_checkpoints .tox .*_cache *.egg-info *.pyc .ds_store
"""
DATA = """
*.parquet *.arrow *.feather *.orc *.jsonl *.csv *.tsv *.conll *.conllu *.tfrecord *.npy *.npz *.h5 *.hdf5 *.pkl *.pickle
*.db *.sqlite *.zip *.gz *.tgz *.tar *.xz *.zst *.bz2 *.7z *.safetensors *.bin *.pt *.pth *.ckpt *.gguf *.onnx
events.out.tfevents.*
"""
DATA_REASON = "data and weights"
ALWAYS = {
    "version control, environments and caches": NOT_CODE.split(),
    DATA_REASON: DATA.split(),
}
SECRETS_REASON = "secrets"
IGNORED = "ignored by .gitignore or .rayignore"
LINKS = "links and special files"


@dataclass(frozen=True)
class Choice:
    """The files that are sent, and those that are not. Names are relative to `folder` and use `/`."""

    folder: str
    sizes: dict[str, int] = field(default_factory=dict)
    """Size in bytes of each file that is sent."""
    left_out: dict[str, list[str]] = field(default_factory=dict)
    """Reason -> names. A name that ends with `/` is a folder and stands for everything in it."""
    doubtful: dict[str, str] = field(default_factory=dict)
    """Files that may be secrets, and why. They are not sent unless `include` is told to."""

    @property
    def total_bytes(self) -> int:
        """Total size of the files, before compression."""
        return sum(self.sizes.values())

    def lines(self) -> Iterator[str]:
        """A summary for the user, before anything is sent."""
        yield f"sending {len(self.sizes)} file{'s' * (len(self.sizes) != 1)}, {megabytes(self.total_bytes)}"
        for reason, names in self.left_out.items():
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            yield f"  left out, {reason}: {', '.join(names[:SHOWN])}{more}"
        if self.doubtful:
            yield "  left out, possible secrets; `--include NAME` sends one anyway:"
            yield from (f"    {name}: {why}" for name, why in self.doubtful.items())

    def include(self, patterns: Iterable[str]) -> None:
        """Send doubtful files after all.

        Args:
            patterns: Their names below the folder, or globs of them.

        Raises:
            ConfigError: One of them is the name of no doubtful file, or too much would be sent.
        """
        for pattern in patterns:
            names = _matching(self.doubtful, pattern)
            if not names and not _matching(self.sizes, pattern):
                raise ConfigError(_not_doubtful(self, pattern))
            for name in names:
                del self.doubtful[name]
                self.sizes[name] = os.lstat(f"{self.folder}/{name}").st_size
        self.check_size()

    def check_size(self) -> None:
        """Raises ConfigError when the files are too large."""
        if self.total_bytes > MOST_BYTES:
            raise ConfigError(_refusal(self))


@dataclass(frozen=True)
class _Ignore:
    """An ignore file: its patterns and its location."""

    spec: GitIgnoreSpec
    below: str = ""
    """Path of its folder below the one that is sent, ending with `/`."""
    above: str = ""
    """Path from its folder down to the one that is sent, if it is above that."""


def choose_files(folder: str, data_paths: Iterable[str] = ()) -> Choice:
    """Select the files of a folder that are sent.

    Args:
        data_paths: Absolute paths or globs that the config names. They belong on storage and are never sent.

    Raises:
        ConfigError: It is not a folder, or its files are too large.
    """
    folder = os.path.abspath(os.path.expanduser(folder))
    if not os.path.isdir(folder):
        raise ConfigError(f"--working-dir {folder} is not a folder")
    choice = Choice(folder)
    _look(choice, "", list(_ignores_above(folder)), list(data_paths))
    choice.check_size()
    return choice


def write_archive(path: str, choice: Choice | None, files: dict[str, bytes]) -> None:
    """Write a zip archive with the chosen files and some generated ones (name -> contents). Equal contents give equal
    bytes, so that the cluster recognizes an archive that it already has.

    Raises ConfigError when a file can't be read.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(set(choice.sizes) - set(files)) if choice else []:
            source = f"{choice.folder}/{name}" if choice else name
            try:
                with open(source, "rb") as file:
                    is_program = bool(os.fstat(file.fileno()).st_mode & stat.S_IXUSR)
                    archive.writestr(_entry(name, is_program), file.read())
            except OSError as error:
                raise ConfigError(f"--working-dir: can't read {source}: {error.strerror}") from None
        for name in sorted(files):
            archive.writestr(_entry(name), files[name])


def megabytes(num_bytes: int) -> str:
    """Such as 12.3 MB."""
    return f"{num_bytes / 1e6:,.1f} MB" if num_bytes >= 1e5 else f"{num_bytes / 1e3:,.1f} kB"


def _look(choice: Choice, below: str, ignores: list[_Ignore], data_paths: list[str]) -> None:
    """Add the entries of a folder, recursively, to the choice."""
    ignores = [*ignores, *(_Ignore(spec, below) for spec in _specs(f"{choice.folder}/{below}"))]
    with os.scandir(f"{choice.folder}/{below}") as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            name = f"{below}{entry.name}{'/' * entry.is_dir(follow_symlinks=False)}"
            reason = _reason_against(entry, name, ignores, data_paths)
            if reason is not None:
                choice.left_out.setdefault(reason, []).append(name)
            elif name.endswith("/"):
                _look(choice, name, ignores, data_paths)
            else:
                _look_into(choice, entry, name)


def _look_into(choice: Choice, entry: os.DirEntry[str], name: str) -> None:
    """Read the start of a file that its name does not exclude, and add it to what is sent or to what is left out."""
    try:
        with open(entry.path, "rb") as file:
            head = file.read(LOOKED_AT_BYTES)
    except OSError:
        head = b""  # `write_archive` says that it can't be read
    if (why := secret_in_file(entry.name, head)) is not None:
        reason = SECRETS_REASON if why == "its name" else f"{SECRETS_REASON}, {why}"
        choice.left_out.setdefault(reason, []).append(name)
    elif (doubt := doubt_about_file(name, head)) is not None:
        choice.doubtful[name] = doubt
    else:
        choice.sizes[name] = entry.stat(follow_symlinks=False).st_size


def _reason_against(entry: os.DirEntry[str], name: str, ignores: list[_Ignore], data_paths: list[str]) -> str | None:
    """Why an entry is not sent. None: it is sent."""
    if not (entry.is_dir(follow_symlinks=False) or entry.is_file(follow_symlinks=False)):
        return LINKS  # the target of a link may be outside the folder
    for reason, patterns in ALWAYS.items():
        if any(fnmatch(entry.name.lower(), pattern) for pattern in patterns):
            return reason
    if is_secret_name(entry.name):
        return SECRETS_REASON
    if any(fnmatch(os.path.abspath(entry.path), pattern) for pattern in data_paths):
        return DATA_REASON
    return IGNORED if _is_ignored(name, ignores) else None


def _is_ignored(name: str, ignores: list[_Ignore]) -> bool:
    """Decides as git does: the deepest file with a matching pattern wins."""
    for ignore in reversed(ignores):
        verdict = ignore.spec.check_file(ignore.above + name.removeprefix(ignore.below)).include
        if verdict is not None:
            return verdict
    return False


def _ignores_above(folder: str) -> Iterator[_Ignore]:
    """Ignore files of the parent folders up to the root of the repository, the outermost first: git applies them
    too."""
    above: list[str] = []
    inner = folder
    while not os.path.exists(f"{inner}/.git"):
        inner, last = os.path.dirname(inner), inner
        if inner == last:  # not in a repository
            return
        above.insert(0, inner)
    for outer in above:
        inside = os.path.relpath(folder, outer).replace(os.sep, "/")
        for spec in _specs(outer):
            yield _Ignore(spec, above=f"{inside}/")


def _specs(folder: str) -> Iterator[GitIgnoreSpec]:
    """Patterns of the ignore files in a folder."""
    for name in IGNORE_FILES:
        try:
            with open(f"{folder}/{name}", encoding="utf-8") as file:
                yield GitIgnoreSpec.from_lines(file)
        except FileNotFoundError:
            continue


def _refusal(choice: Choice) -> str:
    biggest = sorted(choice.sizes, key=lambda name: -choice.sizes[name])[:SHOWN]
    return "\n".join(
        [
            f"--working-dir {choice.folder} holds {megabytes(choice.total_bytes)} to send; allowed: "
            f"{megabytes(MOST_BYTES)}. The largest of its {len(choice.sizes)} files:",
            *(f"  {megabytes(choice.sizes[name]):>10}  {name}" for name in biggest),
            "Name what the job does not need in .gitignore or .rayignore, give a smaller folder, or none: the config "
            "is sent without one. Data and models belong where every node reads them",
        ]
    )


def _matching(names: Iterable[str], pattern: str) -> list[str]:
    """The names that are the pattern itself or match it as a glob."""
    pattern = pattern.removeprefix("./")
    return [name for name in names if name == pattern or fnmatchcase(name, pattern)]


def _not_doubtful(choice: Choice, pattern: str) -> str:
    """Why `--include` can't be followed."""
    left_out = [reason for reason, names in choice.left_out.items() if _matching(names, pattern)]
    allowed = ", ".join(choice.doubtful) or "none here"
    why = f"left out, {left_out[0]}; such files are never sent" if left_out else "no doubtful file has this name"
    return f"--include {pattern}: {why}. Allowed are the doubtful ones below --working-dir: {allowed}"


def _entry(name: str, is_program: bool = False) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))  # a fixed date, for reproducible bytes
    entry.external_attr = (0o755 if is_program else 0o644) << 16
    entry.compress_type = zipfile.ZIP_DEFLATED
    return entry
