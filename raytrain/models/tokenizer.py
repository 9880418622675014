"""Tokenizers: loaded once per process, and identified by their content."""

import hashlib
import json
import os
import threading
from functools import lru_cache
from typing import Any

from raytrain.config import ModelConfig
from raytrain.errors import ConfigError
from raytrain.models.files import untrusted_code
from raytrain.models.images import PROCESSOR, image_identity, load_image_processor

HUB_TIMEOUT_S = 10.0


def load_tokenizer(model: ModelConfig) -> Any:
    """The model's tokenizer, or the `ImageProcessor` of a model on images, loaded once per process; None when the
    config names none.

    Raises ConfigError naming `model.path` or `model.tokenizer`.
    """
    if model.image is not None:
        return load_image_processor(model)
    if not model.tokenizer_path:
        return None
    try:
        place = model.tokenizer_path, model.revision or "main", model.trust_remote_code, _option(model)
        return _load(*place, tuple(model.add_tokens))
    except ConfigError:
        if said := untrusted_code(_option(model), model.tokenizer_path, model):
            raise ConfigError(said) from None
        raise


def check_tokenizer(model: ModelConfig) -> None:
    """Refuse a folder that does not exist or lacks a tokenizer or a model, and a name that is neither a folder nor
    available from the hub, which gets HUB_TIMEOUT_S seconds to answer. Does not import Transformers.

    Raises ConfigError.
    """
    places = {"model.path": model.path, "model.tokenizer": model.tokenizer}
    for option, path in places.items():
        if path and not os.path.isdir(path):
            _check_absent(option, path, model.revision)
    path = model.tokenizer_path
    if model.image is not None:
        if os.path.isdir(path) and PROCESSOR not in os.listdir(path):
            raise ConfigError(f"model.path {path}: this folder has no {PROCESSOR}, which a model on images has")
    elif os.path.isdir(path) and not any(name in os.listdir(path) for name in TOKENIZER_FILES):
        raise ConfigError(
            f"{_option(model)} {path}: this folder has no tokenizer (none of {', '.join(TOKENIZER_FILES)}); save it "
            "there with tokenizer.save_pretrained, or set model.tokenizer to where it is"
        )
    if model.path and os.path.isdir(model.path) and "config.json" not in os.listdir(model.path):
        raise ConfigError(f"model.path {model.path}: this folder has no config.json, so it holds no model")


def _check_absent(option: str, path: str, revision: str | None) -> None:
    """Refuse a path that is neither a cached hub id nor one that the hub has. Raises ConfigError."""
    if looks_local(path):
        raise ConfigError(f"{option} {path}: no such folder (looked for {os.path.abspath(os.path.expanduser(path))})")
    if _is_cached(path, revision):
        return
    reason = _why_not_on_hub(path, revision)
    if reason is not None:
        raise ConfigError(
            f"{option} {path}: there is no such folder (looked for {os.path.abspath(path)}), and {reason}. Give the "
            "folder's full path, or the id of a model that the hub has (HF_TOKEN opens private ones)"
        )


def _is_cached(name: str, revision: str | None) -> bool:
    """Whether the hub's cache on this machine has a file of the model."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        files = [try_to_load_from_cache(name, file, revision=revision) for file in ("config.json", *TOKENIZER_FILES)]
    except HFValidationError:
        return False
    return any(isinstance(file, str) for file in files)


def _why_not_on_hub(name: str, revision: str | None) -> str | None:
    """Why the hub can't provide a model; None when it can, or when the hub itself has a problem."""
    reasons: list[str | None] = []
    # In a thread, since the timeout of an HTTP client does not bound the DNS look-up.
    thread = threading.Thread(target=lambda: reasons.append(_ask_hub(name, revision)), daemon=True)
    thread.start()
    thread.join(HUB_TIMEOUT_S)
    return reasons[0] if reasons else f"the hub did not answer within {HUB_TIMEOUT_S:g} s"


def _ask_hub(name: str, revision: str | None) -> str | None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        HfApi().model_info(name, revision=revision, timeout=HUB_TIMEOUT_S)
    except HFValidationError:
        return "it is not a hub id either (owner/name)"
    except OfflineModeIsEnabled:
        return "the hub is turned off (HF_HUB_OFFLINE)"
    except RevisionNotFoundError:
        return f"the hub has no revision {revision!r} of this model (model.revision)"
    except RepositoryNotFoundError:
        return "the hub has no model of this name that you have access to"
    except HfHubHTTPError:  # overloaded or in maintenance: loading tries again
        return None
    except Exception as error:  # the HTTP client's own, which differ between versions of the hub's library
        return f"the hub can't be reached ({error})"
    return None


CHAT_TEMPLATE = "chat_template.jinja"
TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "tokenizer.model",
    "spiece.model",
    "tokenizer_config.json",
)


def looks_local(path: str) -> bool:
    """Whether a path can't be a hub id: hub ids have at most one slash and no leading dot or slash."""
    return path.startswith(("/", ".", "~")) or path.count("/") > 1


def tokenizer_identity(model: ModelConfig) -> str:
    """Hash of the tokenizer that a model config names. A local folder is identified by its files, so that a
    command whose data is prepared does not spend seconds on importing Transformers. Raises ConfigError."""
    path = model.tokenizer_path
    if model.image is not None:
        return image_identity(model)
    if not path:
        return ""
    if not os.path.isdir(path):
        return tokenizer_fingerprint(load_tokenizer(model))
    digest = hashlib.sha256()
    if model.add_tokens:
        digest.update(json.dumps(model.add_tokens).encode())
    for name in sorted(os.listdir(path)):
        if name in TOKENIZER_FILES or "token" in name or name in ("merges.txt", CHAT_TEMPLATE):
            with open(os.path.join(path, name), "rb") as file:
                digest.update(f"{name}\n".encode() + hashlib.sha256(file.read()).digest())
    return digest.hexdigest()


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Hash of everything in a tokenizer that determines its output, however it was used before."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = json.loads(backend.to_str()) if backend is not None else tokenizer.get_vocab()
    if backend is not None:  # these two are the settings of its last call
        content = {name: part for name, part in content.items() if name not in ("truncation", "padding")}
    parts = [content, tokenizer.special_tokens_map, getattr(tokenizer, "truncation_side", "right")]
    if (template := getattr(tokenizer, "chat_template", None)) is not None:
        parts.append(template)
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _option(model: ModelConfig) -> str:
    return "model.tokenizer" if model.tokenizer else "model.path"


@lru_cache(maxsize=4)
def _load(path: str, revision: str, trust_remote_code: bool, option: str, more: tuple[str, ...]) -> Any:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads and Ray's processes would compete for cores
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        first_line = str(error).strip().splitlines()[0]
        hint = (
            "save the tokenizer there, or set model.tokenizer"
            if os.path.isdir(path)
            else "it is neither a local folder nor available from the hub; without a network, give a local folder"
        )
        raise ConfigError(f"{option} {path}: no tokenizer could be loaded ({first_line}); {hint}") from None
    if tokenizer.pad_token_id is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token  # causal models have none; padding has no target anyway
    if tokenizer.pad_token_id is None:
        raise ConfigError(f"{option} {path}: this tokenizer has neither a padding nor an end-of-text token")
    known = tokenizer.get_vocab()
    if there := [token for token in more if token in known]:
        raise ConfigError(f"model.add_tokens: the tokenizer of {path} has the token {there[0]!r} already: leave it out")
    tokenizer.add_tokens(list(more))
    return tokenizer
