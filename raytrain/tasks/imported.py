"""Imports classes and functions by their dotted name, `package.module:name`, and hashes the files that define them."""

import hashlib
import importlib.util
import os
import sys
from types import ModuleType
from typing import Any

from raytrain.errors import ConfigError, did_you_mean
from raytrain.tasks.user_code import told

TASK = "task.target"


def import_named(target: str, option: str = TASK) -> Any:
    """The class or function that `package.module:name` names. Raises ConfigError naming the dotted option."""
    module, name = _import_module(target, option), target.partition(":")[2]
    if not hasattr(module, name):
        hint = did_you_mean(name, [known for known in vars(module) if not known.startswith("_")])
        raise ConfigError(f"{option} {target}: {module.__name__} has no {name!r}{hint}")
    return getattr(module, name)


def import_function(target: str, option: str) -> Any:
    """The function that `package.module:name` names. Raises ConfigError naming the dotted option."""
    function = import_named(target, option)
    if not callable(function):
        raise ConfigError(f"{option} {target} is not a function")
    return function


def check_source(target: str, expected: str | None, option: str, source_option: str) -> None:
    """Compare the files of the user's code with those that the run was started with.

    Args:
        expected: Their `source_hash` then, the value of `source_option`; None: not known, nothing is checked.

    Raises ConfigError when they differ.
    """
    if expected is not None and source_hash(target, option) != expected:
        raise ConfigError(
            f"{option} {target}: the files of this package are not those that the run was started with; every node "
            f"needs the same ones. For a new run, leave out {source_option}"
        )


def source_hash(target: str, option: str = TASK) -> str:
    """SHA-256 of all Python files of the top-level package that `package.module:name` is in, by their paths in it; of
    the file alone, where the module is in no package. Raises ConfigError."""
    _import_module(target, option)
    top = sys.modules[target.partition(":")[0].partition(".")[0]]
    folders = [os.path.abspath(folder) for folder in getattr(top, "__path__", [])]
    paths = [(folder, path) for folder in folders for path in _python_files(folder)]
    if not paths and (path := getattr(top, "__file__", None)) is not None:
        paths = [(os.path.dirname(os.path.abspath(path)), os.path.abspath(path))]
    if not paths:
        raise ConfigError(f"{option} {target}: this module has no file; give it a file of its own")
    digest = hashlib.sha256()
    for folder, path in paths:
        with open(path, "rb") as file:
            content = hashlib.sha256(file.read()).hexdigest()
        digest.update(f"{os.path.relpath(path, folder)} {content}\n".encode())
    return digest.hexdigest()


def _python_files(folder: str) -> list[str]:
    found = [os.path.join(at, name) for at, _, names in os.walk(folder) for name in names if name.endswith(".py")]
    return sorted(found)


def file_of(target: str, option: str = TASK) -> str | None:
    """Path of that file; None: a built-in module, which has none. Raises ConfigError."""
    path: str | None = getattr(_import_module(target, option), "__file__", None)
    return path


def _import_module(target: str, option: str = TASK) -> ModuleType:
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
