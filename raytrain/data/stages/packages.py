"""The packages of `raytrain[clean]`, imported when a rule needs one, and their versions."""

import importlib
from importlib.metadata import version
from typing import Any

from raytrain.config import CleanConfig
from raytrain.errors import ConfigError

PACKAGES = {"mojibake": "ftfy", "html": "selectolax", "languages": "py3langid"}
"""Rule -> the package that decides its output."""


def needed(module: str, option: str, extra: str = "clean") -> Any:
    """A module of a package that is not always installed. Raises ConfigError, which names the option that needs it and
    the extra of raytrain that brings it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        package = module.partition(".")[0]
        raise ConfigError(
            f"{option} needs the package {package}, which is not installed: pip install 'raytrain[{extra}]', on "
            "every node"
        ) from None


def versions(clean: CleanConfig | None) -> dict[str, str]:
    """Package -> version of those that decide what is prepared."""
    if clean is None:
        return {}
    found = {package: version(package) for rule, package in PACKAGES.items() if clean.is_given(rule)}
    if clean.nfc:  # Python brings the tables of Unicode
        found["unicode"] = unicode_version()
    return found


def unicode_version() -> str:
    """Of the tables that normal forms are made with."""
    import unicodedata

    return unicodedata.unidata_version
