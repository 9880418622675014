"""Imports classes and functions by their dotted name, `package.module:Name`, and hashes the files that define them."""

import hashlib
import importlib.util
import os
import sys
from types import ModuleType
from typing import Any

from raytrain.errors import ConfigError, did_you_mean
from raytrain.tasks.user_code import told


def import_class(target: str, option: str = "task.target") -> Any:
    """The class, or function, that `package.module:Name` names. Raises ConfigError naming the option."""
    module, name = _import_module(target, option), target.partition(":")[2]
    if not hasattr(module, name):
        hint = did_you_mean(name, [known for known in vars(module) if not known.startswith("_")])
        raise ConfigError(f"{option} {target}: {module.__name__} has no {name!r}{hint}")
    return getattr(module, name)


def source_hash(target: str, option: str = "task.target") -> str:
    """SHA-256 of the file of the module that `package.module:Class` names. Raises ConfigError."""
    path = file_of(target, option)
    if path is None:
        raise ConfigError(f"{option} {target}: this module has no file; give it a file of its own")
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def file_of(target: str, option: str = "task.target") -> str | None:
    """Path of that file; None: a built-in module, which has none. Raises ConfigError."""
    path: str | None = getattr(_import_module(target, option), "__file__", None)
    return path


def _import_module(target: str, option: str) -> ModuleType:
    name = target.partition(":")[0]
    # Last, so that a user's file does not shadow an installed package. Ray's processes have the same path.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise ConfigError(
                f"{option} {target}: there is no module {error.name!r} in {os.getcwd()} or among the installed "
                "packages; run raytrain in the folder that holds it, on a cluster with `raytrain submit --working-dir "
                ".`, which sends that folder along"
            ) from None
        raise ConfigError(f"{option} {target}: importing {name} failed: {error}") from error
    except (Exception, SystemExit) as error:  # importing runs the user's code
        raise ConfigError(f"{option} {target}: importing {name} failed: {told(error, _found(name))}") from error


def _found(name: str) -> str | None:
    """Path of the file of a module that can't be imported; in a package, of the package's own file."""
    spec = importlib.util.find_spec(name.partition(".")[0])  # nothing is imported again
    return spec.origin if spec is not None else None
