"""Recognizes files that hold secrets, by their names and by a look into them.

A file is a secret (never sent), doubtful (sent only if the user says so), or neither. Both kinds of error have a cost:
a key that travels lies in the cluster's control store and in each node's temporary folder, and a file that stays behind
may be one that the job needs. The corpus in `tests/secret_names.txt` says which names are which.
"""

import re
from fnmatch import fnmatchcase

SECRETS = """
.env .env[._-]* *.env .ssh .aws .azure .config .gcloud .kube .docker .dockercfg .dockerconfigjson .gnupg .ray .kaggle
.snowflake .snowsql .modal.toml .databrickscfg .terraform .terraformrc .vault* *vault?pass* *.tfstate *.tfstate.*
*.tfvars *.tfvars.json *.pem *.key *.p8 *.pk8 *.der *.p12 *.pfx *.jks *.keystore *.kdb *.kdbx *.psafe3 *.keychain
*.ppk *.agekey *.gpg *.ovpn id_rsa* id_dsa* id_ecdsa* id_ed25519* .netrc _netrc .npmrc .yarnrc .yarnrc.yml .pypirc
.condarc credentials auth_token *.token token *_token *-token secret secrets secrets.* .secrets* .envrc .s3cfg .boto
.passwd* .pgpass pgpass.conf .my.cnf .mylogin.cnf kaggle.json adc.json kubeconfig* *.kubeconfig rclone.conf
*_history .lesshst .viminfo wallet.dat
"""
"""Patterns of lower-case names, for both files and folders."""
DOUBTFUL = "key key.* keys keys.* *_keys *_keys.* pass pass.* pwd pwd.* auth auth.* pip.conf profiles.yml cookies*"
# A copy of a secret is one too: endings that say no more than that a file is a copy or a text.
COPY = re.compile(r"(~|#|\.(bak|backup|copy|old|orig|save|saved|sw[a-p]|tmp|txt|disabled|enc|\d+)|[ _-]copy)$")
CODE = re.compile(
    r"\.(py|pyi|pyx|ipynb|sh|bash|js|ts|c|h|cc|cpp|hpp|cu|cuh|rs|go|java|scala|r|jl|sql|md|rst|html|css)$"
)
SHELL = (".sh", ".bash")

WORDS = re.compile(
    r"credential|secret|passw|passphrase|(api|access|account|private|signing|ssh)[ _.-]?keys?|service.?account"
)
DOUBTFUL_WORDS = re.compile(r"(?<![a-z])(tokens?|private|oauth2?)(?![a-z])")
# What `token` means in this field.
TOKENS_OF_TEXT = re.compile(
    r"tokeni[sz]\w*|tokens?[ _-]?(class|cls|count|embed|freq|id|label|len|level|per|tag|type)\w*"
    r"|(special|added|num|max|total|extra)[ _-]tokens?(_map)?"
)

LOOKED_AT_BYTES = 256 * 1024
"""The part of a file, from its start, that is looked at."""
KEYS = {
    "a private key": rb"-----BEGIN [A-Z ]*PRIVATE KEY( BLOCK)?-----|PuTTY-User-Key-File-\d|AGE-SECRET-KEY-1[A-Z0-9]",
    "an AWS access key": rb"\b(AKIA|ASIA|ABIA|ACCA)(?![A-Z0-9]{9}EXAMPLE)[A-Z2-7]{16}\b",
    "an AWS secret key": rb"(?i)aws_secret_access_key[\"']?\s*[=:]\s*[\"']?(?!\S*EXAMPLE)[A-Za-z0-9/+]{40}\b",
    "a Google credential": rb"\bAIza[\w-]{35}\b"
    rb"|\"type\"\s*:\s*\"(authorized_user|service_account|external_account)\"|\"refresh_token\"\s*:\s*\"",
    "an Azure account key": rb"\bAccountKey=[A-Za-z0-9+/]{40,}",
    "a Hugging Face token": rb"\bhf_[A-Za-z0-9]{34}\b",
    "a GitHub or GitLab token": rb"\bgh[pousr]_[A-Za-z0-9]{36,}|\bgithub_pat_\w{22,}|\bglpat-[\w-]{20,}",
    "an API token": rb"\bxox[abposr]-[\w-]{10,}|\bsk-(ant|proj|svcacct)-[\w-]{20,}|\bsk-[A-Za-z0-9]{48}\b"
    rb"|\bdckr_pat_[\w-]{20,}|\bnpm_[A-Za-z0-9]{36}\b|\bpypi-AgE[\w-]{50,}|\bdapi[a-f0-9]{32}\b",
}
_KEYS = {what: re.compile(pattern) for what, pattern in KEYS.items()}
_PASSWORD = re.compile(  # `db_password: hunter22`, `"api_key": "..."`; not `password: ${PASSWORD}`, `secret: <yours>`
    rb"(?im)^[ \t{,;]*(?:-[ \t]+)?(?:export[ \t]+)?[\"']?[\w.-]*"
    rb"(?:passw(?:or)?d|passphrase|secret|api[_-]?key|(?:access|auth|api|hf)[_-]?token)"
    rb"[\"']?[ \t]*[=:][ \t]*(?!(?:true|false|null|none)\b)[\"']?(?![$<{*%[])[^\s\"',;#]{6,}[\"']?[ \t]*[,}]?[ \t]*\r?$"
)
_USERINFO = re.compile(rb"://[^/\s:@$<{]+:(?![$<{*%])[^/\s@]{3,}@[\w.-]")


def is_secret_name(name: str) -> bool:
    """Whether the name of a file or a folder, without its path, is that of a secret."""
    forms = _forms(name)
    return not _is_code(forms) and any(_matches(form, SECRETS) for form in forms)


def secret_in_file(name: str, head: bytes) -> str | None:
    """What makes a file a secret whose name is none of SECRETS, or None.

    Args:
        name: Its name, without its path.
        head: Its first LOOKED_AT_BYTES bytes.
    """
    forms = _forms(name)
    if _is_code(forms):  # doubtful at most: the job may import it
        return None
    return "its name" if any(WORDS.search(form) for form in forms) else _key_in(head)


def doubt_about_file(path: str, head: bytes) -> str | None:
    """Why a file that is not known to be a secret may be one, or None.

    Args:
        path: Its path below the folder that is sent, separated by `/`.
        head: Its first LOOKED_AT_BYTES bytes.
    """
    *folders, name = path.lower().split("/")
    forms = _forms(name)
    if _is_code(forms):
        return _key_in(head) or (_password_in(head) if forms[-1].endswith(SHELL) else None)
    if any(_matches(form, DOUBTFUL) or _has_doubtful_word(form) for form in forms):
        return "its name"
    if any(WORDS.search(folder) or _has_doubtful_word(folder) for folder in folders):
        return "the name of its folder"
    return _password_in(head)


def _forms(name: str) -> list[str]:
    """A name in lower case, and what is left of it as the endings of copies are taken off one by one."""
    forms = [name.lower().lstrip("#")]
    while (shorter := COPY.sub("", forms[-1])) and shorter != forms[-1]:
        forms.append(shorter)
    return forms


def _is_code(forms: list[str]) -> bool:
    return CODE.search(forms[-1]) is not None and not forms[-1].startswith(".env")


def _matches(name: str, patterns: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns.split())


def _has_doubtful_word(name: str) -> bool:
    return DOUBTFUL_WORDS.search(TOKENS_OF_TEXT.sub("", name)) is not None


def _key_in(head: bytes) -> str | None:
    text = head.replace(b"\0", b"")  # UTF-16 too
    return next((f"it holds {what}" for what, pattern in _KEYS.items() if pattern.search(text)), None)


def _password_in(head: bytes) -> str | None:
    text = head.replace(b"\0", b"")
    return "it holds a password" if _PASSWORD.search(text) or _USERINFO.search(text) else None
