"""Keeps credentials out of what raytrain writes and prints: one function for all writers.

A run's config is copied: to config.yaml and the archive of a submitted job, to the report, the model card and the
trackers, and its values are shown in messages. A credential in it would have to be kept in one of these copies, since
resuming a run reads config.yaml, and would be left out of the others; the first new writer would forget that. So a
config with a credential is refused when it is parsed (`config.io` asks `find_credential`), and config.yaml holds
everything that a resumed run needs. Credentials belong in the environment of every node. A config may hold a reference
to a variable, such as `${MY_KEY}`: raytrain passes it on as it is, and a task of the user's own can expand it with
`os.path.expandvars`.

Everything else, such as messages of other programs, command lines and old configs, passes through `redact` or
`redact_tree` on its way to a file, a tracker or the terminal.

Credentials are recognized by the name of their key, by their place in a URL, by the shapes that services give to their
keys, and by being the value of an environment variable with such a name. Imports nothing of raytrain, so that it can be
sent to nodes by value.
"""

import os
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote_plus

HIDDEN = "***"

# The last words of a name, in snake case, that make it the name of a credential.
NAMES = re.compile(
    r"(passw(or)?d|passphrase|apikey)$|(^|_)(secrets?|pwd|credentials?|bearer|authorization|cookie|sas|conn(ection)?_str(ing)?"
    r"|(api|access|account|private|secret|signing|encryption|shared|shared_access|auth|storage|service|master|ssh|license)"
    r"_key(_id)?"
    r"|(auth|access|api|hf|hub|github|gitlab|bearer|session|refresh|security|secret|personal|bot|slack|oauth|csrf|wandb|user"
    r"|login|service|deploy|sas)_token)$|^token$"
)
# Names that a credential may have and other things too, such as the special tokens of a tokenizer.
DOUBTFUL_NAMES = re.compile(r"_token$")
DOUBTFUL_LENGTH = 16  # characters; shorter values under such a name are not credentials
# In a URL's query, whose names are short.
QUERY_NAMES = re.compile(
    r"^(sig|key|pass)$|_signature$|access_?key|account_?key|secret|token(?!i|s)|passw|credential|^pwd$|^uid_?pwd$"
)
# Schemes in which what stands before @ is a container or a user's name, unless there is a colon in it.
WITH_USER_NAME: tuple[str, ...] = ("abfs", "abfss", "wasb", "wasbs", "hdfs", "viewfs", "ssh", "sftp", "scp", "git+ssh")
WITH_USER_NAME += ("postgresql", "mysql", "mssql", "oracle")

URL = re.compile(r"\b([A-Za-z][A-Za-z0-9+.-]*)://([^\s'\"<>`]+)")
# user:password@ before the first slash (but for host:port), where the password may have slashes; or anything@.
USER = re.compile(r"[^/@?#]*:(?!\d+(?:/|$))[^@]*@|[^/@?#]*@")
QUERY = re.compile(r"([^?&#=;]+)=([^&#]*)")
PAIR = re.compile(r"(?<![\w./-])([\w.-]+)=('[^']*'|\"[^\"]*\"|[^\s,;&'\")\]}]+)")
QUOTED_PAIR = re.compile(r"(?P<quote>['\"])([\w.-]+)(?P=quote)(\s*:\s*)('[^']*'|\"[^\"]*\")")
OPTION = re.compile(r"(--[\w-]+)(\s+)([^\s-]\S*)")
REFERENCE = re.compile(r"\$\{?\w+\}?|\*+|null|none|true|false", re.IGNORECASE)
FILE = re.compile(r"(~|\.{0,2})/[\w./-]*\.\w{1,8}")  # names a file with a credential, and holds none
SHAPES = re.compile(
    r"\b(?:A[KS]IA[0-9A-Z]{16}|gh[pousr]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|hf_[A-Za-z0-9]{20,}|npm_[A-Za-z0-9]{30,}"
    r"|xox[abeoprs]-[\w-]{10,}|sk-[\w-]{20,}|AIza[\w-]{30,}|ya29\.[\w-]{20,}|dapi[0-9a-f]{32}"
    r"|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]*)"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
    re.DOTALL,
)
HEADER = re.compile(
    r"\b(authorization['\"]?[:=]\s*['\"]?(?:\w+\s+)?|bearer\s+(?=\S*\d))([\w.~+/=-]{8,})", re.IGNORECASE
)
LIKELY = re.compile(r"secret|pass|pwd|cred|key|token|bearer|auth|cookie|sas|conn", re.IGNORECASE)  # in any such name
LEAST_OF_VARIABLES = 12  # characters; a shorter value of a variable may well be an ordinary word


def redact(text: str) -> str:
    """The text with each credential in it replaced by `***`."""
    for value in _values_of_variables():
        text = text.replace(value, HIDDEN)
    text = URL.sub(_url, text)
    text = SHAPES.sub(HIDDEN, text)
    text = HEADER.sub(rf"\1{HIDDEN}", text)
    text = PAIR.sub(lambda found: f"{found[1]}={_hidden(found[1], found[2])}", text)
    text = QUOTED_PAIR.sub(lambda found: found[0][: -len(found[4])] + _hidden(found[2], found[4]), text)
    return OPTION.sub(lambda found: f"{found[1]}{found[2]}{_hidden(found[1].strip('-'), found[3])}", text)


def redact_tree(value: Any, name: str = "") -> Any:
    """A copy of nested mappings and lists in which each credential is `***`. `name`: the key that the value has."""
    if isinstance(value, dict):
        return {key: redact_tree(one, name if is_credential_name(name) else str(key)) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [redact_tree(one, name) for one in value]
    if is_credential(name, value):
        return HIDDEN
    return redact(value) if isinstance(value, str) else value


def find_credential(raw: Any, path: str = "", name: str = "") -> tuple[str, str] | None:
    """(dotted path, why) of the first credential in nested mappings and lists; None: there is none.

    `why` is `url`, `name` or `value`.
    """
    if isinstance(raw, dict | list | tuple):
        for key, value in raw.items() if isinstance(raw, dict) else enumerate(raw):
            is_item = not isinstance(raw, dict) or is_credential_name(name)
            place = path if not isinstance(raw, dict) else f"{path}.{key}" if path else str(key)
            last = str(key).rpartition(".")[2]  # a key of a search space is dotted itself
            if found := find_credential(value, place, name if is_item else last):
                return found
        return None
    if is_credential(name, raw):
        return path, "name"
    if isinstance(raw, str) and redact(raw) != raw:
        return path, "url" if URL.search(raw) else "value"
    return None


def is_credential(name: str, value: Any) -> bool:
    """Whether a value is a credential, by the name of its key."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        return False
    snake = _snake(name)
    if isinstance(value, int):  # a password of digits, but not a number of tokens
        return is_credential_name(name) and not snake.endswith("token")
    if not value or REFERENCE.fullmatch(value) or FILE.fullmatch(value):
        return False
    if NAMES.search(snake):
        return True
    is_special = value[:1] + value[-1:] in ("<>", "[]") or " " in value
    return bool(DOUBTFUL_NAMES.search(snake)) and len(value) >= DOUBTFUL_LENGTH and not is_special


def is_credential_name(name: str) -> bool:
    """Whether a key of this name holds a credential, such as api_key, AccountKey or AWS_SECRET_ACCESS_KEY."""
    return NAMES.search(_snake(name)) is not None


def _snake(name: str) -> str:
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return re.sub(r"[^a-z0-9]+", "_", spaced.lower()).strip("_")


def _hidden(name: str, value: str) -> str:
    """The value of a pair in a text, or `***`."""
    bare = value.strip("'\"")
    return HIDDEN if is_credential(name.rpartition(".")[2], bare) else value


def _values_of_variables() -> Iterator[str]:
    """Values of this process's environment variables that hold credentials."""
    for name, value in os.environ.items():
        if len(value) < LEAST_OF_VARIABLES or HIDDEN in value or not LIKELY.search(name):
            continue
        is_named = is_credential_name(name) or DOUBTFUL_NAMES.search(_snake(name))
        if is_named and not os.path.exists(value):  # some name a file
            yield value


def _url(found: re.Match[str]) -> str:
    scheme, rest = found[1], found[2]
    user = USER.match(rest)
    if user is not None and (":" in unquote_plus(user[0]) or scheme.lower() not in WITH_USER_NAME):
        rest = f"{HIDDEN}@{rest[user.end() :]}"
    place, mark, query = rest.partition("?")
    if not mark:
        place, mark, query = rest.partition("#")
    return f"{scheme}://{place}{mark}{QUERY.sub(_parameter, query)}"


def _parameter(found: re.Match[str]) -> str:
    """A parameter of a query. Its value may hold further parameters, encoded, such as odbc_connect=PWD%3D..."""
    name, value = _decoded(found[1]), _decoded(found[2])
    inner = re.findall(r"(?:^|[;&?\s{])([\w .-]+)=[^;&\s]", value)
    if not any(QUERY_NAMES.search(_snake(one)) or is_credential_name(one) for one in (name, *inner)):
        return found[0]
    end = len(found[2].rstrip(":;,.)]}"))  # punctuation of the sentence around the URL
    return f"{found[1]}={HIDDEN}{found[2][end:]}" if found[2][:end] != HIDDEN else found[0]


def _decoded(text: str) -> str:
    for _ in range(3):
        text = unquote_plus(text)
    return text
