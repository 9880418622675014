"""Uploads an export to the Hub of Hugging Face. Everything that can be refused is refused before any work."""

import json
import os
import re
from typing import Any

from raytrain.errors import ConfigError, FailureCode, TrainingError, first_line
from raytrain.models.card import FACTS, without_folders

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
TOKEN = "HF_TOKEN"


def check(repository: str) -> Any:
    """The client of the Hub, which has accepted the token. Raises ConfigError."""
    from huggingface_hub import HfApi, constants

    if not REPOSITORY.fullmatch(repository):
        raise ConfigError(f"--push {repository!r}: give OWNER/NAME, such as ada/movie-reviews")
    if constants.HF_HUB_OFFLINE:
        raise ConfigError("--push needs the Hub, and HF_HUB_OFFLINE is set: unset it, or leave --push out")
    token = os.environ.get(TOKEN)
    if not token:
        raise ConfigError(
            f"--push needs a token that may write: set {TOKEN} in the environment, never on the command line"
        )
    api = HfApi(token=token)
    try:
        api.whoami()
    except Exception as error:  # of the HTTP library, which huggingface_hub may change
        reason = f"{type(error).__name__}: {first_line(str(error))}"
        raise ConfigError(
            f"--push: {api.endpoint} can't be reached, or does not accept {TOKEN} ({reason}). Nothing was exported"
        ) from None
    return api


def push(api: Any, folder: str, repository: str, *, is_public: bool) -> str:
    """Upload the files of an export in one commit; raytrain.json without the folders of its author. Returns the URL.
    Raises TrainingError; the export is in its folder then."""
    from huggingface_hub import CommitOperationAdd

    with open(f"{folder}/{FACTS}", encoding="utf-8") as file:
        public = without_folders(json.load(file))
    operations = [
        CommitOperationAdd(name, json.dumps(public, indent=1).encode() if name == FACTS else f"{folder}/{name}")
        for name in sorted(os.listdir(folder))
    ]
    try:
        url = api.create_repo(repository, private=not is_public, exist_ok=True)
        api.create_commit(repository, operations, commit_message="raytrain export")
    except Exception as error:  # of the HTTP library, which huggingface_hub may change
        raise TrainingError(
            f"{folder} was exported, but could not be uploaded to {repository}: {type(error).__name__}: "
            f"{first_line(str(error))}. Upload it with `hf upload {repository} {folder}`, or repeat with --overwrite",
            FailureCode.STORAGE,
        ) from error
    return str(url)
