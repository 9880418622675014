"""The token that clients send: where it comes from, and comparing it."""

import hmac
import os
import secrets
import stat
import tempfile
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

from raytrain.errors import ConfigError

VARIABLE = "RAYTRAIN_SERVE_TOKEN"
SHORTEST = 16


@dataclass(frozen=True)
class Token:
    """What a client has to send as `Authorization: Bearer ...`."""

    secret: str = field(repr=False)
    told: str
    """Where the user finds it."""

    def is_in(self, header: str | None) -> bool:
        """Whether the header Authorization has it. Takes the same time for all wrong ones."""
        kind, _, given = (header or "").partition(" ")
        is_same = hmac.compare_digest(given.strip().encode(errors="replace"), self.secret.encode())
        return kind.lower() == "bearer" and is_same


def find_token(host: str, port: int, file: str | None) -> Token | None:
    """The token of a server; None: it asks for none, since only this machine reaches it.

    Args:
        file: The path of a file with the token; one is made when it is not there.

    Raises ConfigError when the token can't be used, or others can read its file.
    """
    if file is not None:
        path = Path(file).expanduser()
        return Token(_read(path) if path.exists() else _made(path), f"in {path}")
    if secret := os.environ.get(VARIABLE):
        return Token(_checked(secret.strip(), VARIABLE), f"from {VARIABLE}")
    if is_loopback(host):
        return None
    path = own_folder() / f"serve-{port}.token"
    path.unlink(missing_ok=True)
    return Token(_made(path), f"in {path}")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def own_folder() -> Path:
    """A folder of this machine that only its user reads, for tokens and sockets. Raises ConfigError."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    place = Path(runtime) / "raytrain" if runtime else Path(tempfile.gettempdir()) / f"raytrain-{os.getuid()}"
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = place.lstat()
    except OSError as error:
        raise ConfigError(f"{place} can't be made: {error}. Set TMPDIR to a folder that can be written") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise ConfigError(f"{place} is not a folder that you alone can read: remove it, or set TMPDIR to another one")
    return place


def _read(path: Path) -> str:
    try:
        found = path.stat()
        text = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--token-file {path} can't be read: {error}") from error
    if found.st_mode & 0o077 or found.st_uid not in (os.getuid(), 0):
        raise ConfigError(f"--token-file {path} can be read by others: chmod 600 {path}, and make a new token")
    return _checked(text, f"--token-file {path}")


def _checked(secret: str, origin: str) -> str:
    if len(secret) < SHORTEST or not secret.isascii() or not secret.isprintable() or " " in secret:
        raise ConfigError(
            f"{origin}: a token has at least {SHORTEST} letters, digits or signs of ASCII without blanks, such as "
            "`openssl rand -hex 32` gives"
        )
    return secret


def _made(path: Path) -> str:
    secret = secrets.token_urlsafe(32)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise ConfigError(f"the token can't be written to {path}: {error}") from error
    with os.fdopen(handle, "w") as file:
        file.write(f"{secret}\n")
    return secret
